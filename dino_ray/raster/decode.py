"""Opening an image file with libvips: what it is, and a lazy image in one of the plain forms.

Plain means 8 or 16 unsigned bits and one of grey, grey + alpha, RGB, RGBA, in the order that the file
stores its rows. Nothing here decodes more than a header; pixels flow when someone pulls rows.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyvips

from dino_ray.errors import UsageError
from dino_ray.raster.store import Depth
from dino_ray.raster.vips import VipsImage, one_line

logger = logging.getLogger(__name__)

_MM_PER_INCH = 25.4
_PNG_UNSTATED_XRES = 2.834  # px/mm: 72 dpi, cut short

# The formats a file may have, by the loader that reads it from a stream; messages leave out those that the
# installed libvips lacks.
_LOADERS = {
    "jpegload_source": "JPEG",
    "pngload_source": "PNG",
    "tiffload_source": "TIFF",
    "webpload_source": "WebP",
    "gifload_source": "GIF",
    "heifload_source": "HEIF/AVIF",
    "jxlload_source": "JPEG XL",
    "jp2kload_source": "JPEG 2000",
    "ppmload_source": "PPM",
    "svgload_source": "SVG",
}

# No lossy or lossless coding of pixels in a JPEG, PNG, GIF or deflated TIFF reaches 16,384 pixels per byte
# (a 1-bit PNG at deflate's limit of 1:1032 reaches 8,256), and every WebP is smaller than 2^28 pixels. Vector
# drawings have no such limit.
_MAX_PIXELS_PER_BYTE = 16_384
_ALWAYS_PLAUSIBLE_PIXELS = 2**28

# libvips' interpretations that are plain already.
_PLAIN = {
    "b-w": "grey",
    "grey16": "grey",
    "srgb": "RGB",
    "rgb": "RGB",
    "rgb16": "RGB",
}
_DEPTHS: dict[str, Depth] = {"uchar": "uint8", "ushort": "uint16"}


@dataclass(frozen=True)
class Opened:
    """A file whose header was read.

    ``image`` yields rows as the file stores them; ``orientation`` is the EXIF number (1 to 8) of the turn
    that shows it upright. All numbers are of the stored rows, before that turn.
    """

    image: VipsImage
    orientation: int
    bands: int
    dtype: Depth
    icc: bytes | None
    dpi: tuple[float, float] | None


def readable_formats() -> list[str]:
    """Names of the image formats that the installed libvips can read."""
    return [name for loader, name in _LOADERS.items() if pyvips.type_find("VipsOperation", loader)]


def open_image(path: str | Path) -> Opened:
    """Read the header of an image file and set up its conversion to a plain form.

    Raises
    ------
    UsageError
        If the path is no file, is empty, is no image that libvips reads here, or holds samples that have no
        plain form (floating point, signed, more than four bands).
    """
    size = _check_file(path)
    try:
        image = pyvips.Image.new_from_source(
            pyvips.Source.new_from_file(os.fsencode(path)), "", access="sequential", fail_on="truncated"
        )
    except pyvips.Error as error:
        if "known format" in one_line(error):
            known = ", ".join(readable_formats())
            raise UsageError(f"{path}: not an image in a format that can be read here ({known})") from error
        raise UsageError(f"{path}: damaged or truncated ({one_line(error)}); get a whole copy") from error
    _check_plausible(path, image, size)
    _mention_pages(path, image)
    orientation = _field(image, "orientation", 1)
    dpi = _dpi(image)
    image = _plain(path, image)
    return Opened(
        image=image,
        orientation=orientation if 1 <= orientation <= 8 else 1,
        bands=image.bands,
        dtype=_DEPTHS[image.format],
        icc=_icc(path, image),
        dpi=dpi,
    )


def _check_file(path: str | Path) -> int:
    """Size in bytes of a file that is there, is a regular file, may be read and is not empty."""
    file = Path(path)
    try:
        if file.is_dir():
            raise UsageError(f"{path}: is a folder; name an image file")
        size = file.stat().st_size
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not file.is_file():
        raise UsageError(f"{path}: is not a regular file; save the image to a file first")
    if not os.access(file, os.R_OK):
        raise UsageError(f"{path}: may not be read; check its permissions")
    if size == 0:
        raise UsageError(f"{path}: is empty (0 bytes); name an image file")
    return size


def _field(image: VipsImage, name: str, default: Any) -> Any:
    return image.get(name) if image.get_typeof(name) else default


def _check_plausible(path: str | Path, image: VipsImage, size: int) -> None:
    claimed = image.width * image.height
    vector = str(_field(image, "vips-loader", "")).startswith("svg")
    if not vector and claimed > max(_ALWAYS_PLAUSIBLE_PIXELS, size * _MAX_PIXELS_PER_BYTE):
        raise UsageError(
            f"{path}: claims {image.width:,}×{image.height:,} pixels in {size:,} bytes, more than such a "
            "file can hold; it is truncated or made to exhaust memory"
        )


def _mention_pages(path: str | Path, image: VipsImage) -> None:
    pages = _field(image, "n-pages", 1)
    if pages > 1:
        logger.warning("%s: has %d pages or frames; the first is taken", path, pages)


def _dpi(image: VipsImage) -> tuple[float, float] | None:
    """Dots per inch along stored columns and rows, or None where the file does not say."""
    # libvips makes up a resolution for files without one. It notes the unit of those that have one, except
    # for PNG, where the unit is fixed and the made-up number is known.
    png = str(_field(image, "vips-loader", "")).startswith("png")
    stated = image.xres != _PNG_UNSTATED_XRES if png else image.get_typeof("resolution-unit") != 0
    if not stated or image.xres <= 0 or image.yres <= 0:
        return None
    return (image.xres * _MM_PER_INCH, image.yres * _MM_PER_INCH)


def _plain(path: str | Path, image: VipsImage) -> VipsImage:
    """Convert CMYK and Lab through profiles, and refuse what has no plain form."""
    if image.interpretation == "cmyk":
        deep = image.format == "ushort"
        logger.warning("%s: CMYK, converted to sRGB through its profile", path)
        # Files without a profile get libvips' own generic press profile.
        image = image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=16 if deep else 8)
    elif image.interpretation in ("lab", "labs"):
        deep = _field(image, "bits-per-sample", 8) > 8
        logger.warning("%s: CIELAB, converted to sRGB", path)
        image = image.colourspace("rgb16" if deep else "srgb")
    kind = _PLAIN.get(image.interpretation)
    if image.format not in _DEPTHS:
        raise UsageError(
            f"{path}: has {image.format} samples; only 8 and 16 bits unsigned are taken: convert it first, "
            "for example to a 16-bit TIFF"
        )
    colours = 1 if image.bands <= 2 else 3
    if kind is None or image.bands > 4 or (kind == "grey") != (colours == 1):
        raise UsageError(
            f"{path}: has {image.bands} bands of kind {image.interpretation}; only grey and RGB, each with "
            "or without alpha, are taken: convert it first"
        )
    return image


def _icc(path: str | Path, image: VipsImage) -> bytes | None:
    """The colour profile, if it describes the bands that the image has."""
    profile = _field(image, "icc-profile-data", None)
    if profile is None:
        return None
    data = bytes(profile)
    # ICC.1:2022, 7.2: bytes 16 to 19 of the header are the data colour space.
    expected = b"GRAY" if image.bands <= 2 else b"RGB "
    if data[16:20] != expected:
        logger.warning(
            "%s: its colour profile is not for %s pixels; left out", path, expected.decode().strip()
        )
        return None
    return data
