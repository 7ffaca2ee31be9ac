"""Opening an image file with libvips: what it is, and a lazy image in one of the plain forms.

Plain means 8 or 16 unsigned bits and one of grey, grey + alpha, RGB, RGBA, in the order that the file
stores its rows. Nothing here decodes more than a header; pixels flow when someone pulls rows.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pyvips

from dino_ray.errors import UsageError
from dino_ray.raster.store import Depth
from dino_ray.raster.vips import VipsImage, one_line, overhear

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

# A picture with anything on it stays far below 16,384 pixels per byte: deflate ends at 1:1032, which is 8,256
# pixels per byte for a blank 1-bit PNG. What is small enough to do no harm may be as blank as it likes (and
# every WebP is that small); vector drawings have no pixels to count.
_MAX_PIXELS_PER_BYTE = 16_384
_ALWAYS_PLAUSIBLE_PIXELS = 2**28

# Interpretations by libvips that are plain already, by their number of colour bands.
_COLOUR_BANDS = {"b-w": 1, "grey16": 1, "srgb": 3, "rgb": 3, "rgb16": 3}
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DEPTHS: dict[str, Depth] = {"uchar": "uint8", "ushort": "uint16"}


@dataclass(frozen=True)
class Opened:
    """A file whose header was read.

    ``image`` yields rows as the file stores them; ``orientation`` is the EXIF number (1 to 8) of the turn
    that shows it upright. All numbers are of the stored rows, before that turn. ``notes`` say what of the
    file is not taken as it is.
    """

    image: VipsImage
    orientation: int
    bands: int
    dtype: Depth
    icc: bytes | None
    dpi: tuple[float, float] | None
    notes: tuple[str, ...]


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
    with overhear() as heard:
        try:
            image = _load(path, fail_on="error")
            if _loader(image).startswith("tiff"):
                # Tiles that end early are read as far as they go on any other level.
                image = _load(path, fail_on="warning")
                _check_colours_of_tiff(path)
            plain, notes = _plain(path, image)
        except pyvips.Error as error:
            raise _unreadable(path, one_line(error, heard)) from error
    _check_plausible(path, image, size)
    icc, icc_notes = _icc(plain)
    orientation = _field(image, "orientation", 1)
    return Opened(
        image=plain,
        orientation=orientation if 1 <= orientation <= 8 else 1,
        bands=plain.bands,
        dtype=_DEPTHS[plain.format],
        icc=icc,
        dpi=_dpi(image),
        notes=(*_page_notes(image), *notes, *icc_notes),
    )


def _check_colours_of_tiff(path: str | Path) -> None:
    """Refuse the TIFFs whose luma and chroma libvips would hand out as red, green and blue.

    It converts YCbCr where JPEG compression has libtiff do it, and else takes it for RGB; Pillow's header tells.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tags, and of sizes that are nothing here
            with PIL.Image.open(path) as header:
                mode = header.mode
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return  # what Pillow does not know, or finds too large to look at, libvips reads
    if mode == "YCbCr":
        raise UsageError(f"{path}: has YCbCr samples without JPEG compression; convert it to RGB first")


def _unreadable(path: str | Path, reason: str) -> UsageError:
    if "known format" not in reason:
        return UsageError(
            f"{path}: cannot be opened as an image ({reason}); it is truncated, damaged or of a rare kind: "
            "get a whole copy or convert it"
        )
    # A TIFF that lost its end often lost its directory too, and libvips no longer takes it for one.
    with open(path, "rb") as file:
        if file.read(4) in _TIFF_MAGIC:
            return UsageError(f"{path}: is a truncated TIFF; get a whole copy")
    known = ", ".join(readable_formats())
    return UsageError(f"{path}: not an image in a format that can be read here ({known}); convert it")


def _load(path: str | Path, fail_on: str) -> VipsImage:
    # Errors of earlier files that nobody collected would be told as this one's.
    pyvips.vips_lib.vips_error_clear()
    # As a source, because libvips takes "[...]" at the end of a file name for options.
    source = pyvips.Source.new_from_file(os.fsencode(path))
    return pyvips.Image.new_from_source(source, "", access="sequential", fail_on=fail_on)


def _loader(image: VipsImage) -> str:
    return str(_field(image, "vips-loader", ""))


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
    vector = _loader(image).startswith("svg")
    if not vector and claimed > max(_ALWAYS_PLAUSIBLE_PIXELS, size * _MAX_PIXELS_PER_BYTE):
        raise UsageError(
            f"{path}: claims {image.width:,} × {image.height:,} pixels in {size:,} bytes, more than such a "
            "file can hold; it is truncated or made to exhaust memory: get a whole copy"
        )


def _page_notes(image: VipsImage) -> tuple[str, ...]:
    pages = _field(image, "n-pages", 1)
    return (f"has {pages} pages or frames; the first is taken",) if pages > 1 else ()


def _dpi(image: VipsImage) -> tuple[float, float] | None:
    """Dots per inch along stored columns and rows, or None where the file does not say."""
    # libvips makes up a resolution for files without one. It notes the unit of those that have one, except
    # for PNG, where the unit is fixed and the made-up number is known.
    png = _loader(image).startswith("png")
    stated = image.xres != _PNG_UNSTATED_XRES if png else image.get_typeof("resolution-unit") != 0
    if not stated or image.xres <= 0 or image.yres <= 0:
        return None
    return (image.xres * _MM_PER_INCH, image.yres * _MM_PER_INCH)


def _plain(path: str | Path, image: VipsImage) -> tuple[VipsImage, tuple[str, ...]]:
    """Convert CMYK through its profile, refuse what has no plain form, and say what was done."""
    if image.format not in _DEPTHS:
        raise UsageError(
            f"{path}: has samples of type {image.format}; only 8 and 16 bits unsigned are taken: convert it "
            "first, for example to a 16-bit TIFF"
        )
    notes: tuple[str, ...] = ()
    if image.interpretation == "cmyk":
        depth = 16 if image.format == "ushort" else 8
        # Files without a usable profile get libvips' own generic press profile.
        image = image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=depth)
        notes = ("is CMYK; converted to sRGB through its profile",)
    colour_bands = _COLOUR_BANDS.get(image.interpretation)
    if colour_bands is None or image.bands - colour_bands not in (0, 1):
        raise UsageError(
            f"{path}: has {image.bands} bands of kind {image.interpretation}; only grey and RGB, each with "
            "or without alpha, are taken: convert it first"
        )
    return image, notes


def _icc(image: VipsImage) -> tuple[bytes | None, tuple[str, ...]]:
    """The colour profile, if it describes the bands that the image has."""
    profile = _field(image, "icc-profile-data", None)
    if profile is None:
        return None, ()
    data = bytes(profile)
    # ICC.1:2022, 7.2: bytes 16 to 19 of the header are the data colour space.
    expected = b"GRAY" if image.bands <= 2 else b"RGB "
    if data[16:20] != expected:
        return None, (f"has a colour profile that is not for {expected.decode().strip()} pixels; left out",)
    return data, ()
