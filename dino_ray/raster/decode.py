"""Opening an image file with libvips: what it is, and a lazy image in one of the plain forms.

Plain means 8 or 16 unsigned bits and one of grey, grey + alpha, RGB, RGBA, in the order that the file
stores its rows. Nothing here decodes more than a header; pixels flow when someone pulls rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyvips

from dino_ray.errors import UsageError
from dino_ray.raster import colour, limits, metadata, samples
from dino_ray.raster.image_file import ImageFile, open_file
from dino_ray.raster.info import AS_IS, ReadOptions
from dino_ray.raster.metadata import Metadata
from dino_ray.raster.rows import decoded_bands
from dino_ray.raster.samples import Span
from dino_ray.raster.store import Depth
from dino_ray.raster.tiff import layout as tiff_layout
from dino_ray.raster.tiff.layout import TiffLayout
from dino_ray.raster.tiff.wide import WideTiff
from dino_ray.raster.vips import VipsImage, field, loader, one_line, overhear

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

_DEPTHS: dict[str, Depth] = {"uchar": "uint8", "ushort": "uint16"}
# Samples that are brought to 16 bits once it is known what they span: numpy's name for them, and ours.
_SCALED = {
    "char": ("int8", "signed 8-bit"),
    "short": ("int16", "signed 16-bit"),
    "int": ("int32", "signed 32-bit"),
    "uint": ("uint32", "32-bit"),
    "float": ("float32", "floating-point"),
    "double": ("float64", "floating-point"),
}

# Decoded, for measuring, in bands of about so much.
_MEASURED_BYTES = 8 * 2**20

RawBands = Callable[[], Generator[npt.NDArray[Any], None, None]]


@dataclass(frozen=True)
class Opened:
    """A file whose header was read; close it when done.

    Attributes
    ----------
    input
        Where its bytes come from.
    image
        Plain; yields rows as the file stores them.
    orientation
        The EXIF number (1 to 8) of the turn that shows them upright; all else is of before that turn.
    bands, dtype, icc, dpi, metadata
        As in `SourceInfo`.
    notes
        What of the file is not taken as it is.
    unmeasured
        For samples that need scaling: their bands of rows, from which `samples.measure` finds the span with which
        to open the file again. Until then ``image`` has the right form and the wrong values.
    kind
        What such samples are called.
    untouched
        Whether libvips gives these pixels right from the file, with nothing to convert.
    tiff
        The layout of a TIFF.
    """

    input: ImageFile
    image: VipsImage
    orientation: int
    bands: int
    dtype: Depth
    icc: bytes | None
    dpi: tuple[float, float] | None
    metadata: Metadata
    notes: tuple[str, ...]
    unmeasured: RawBands | None
    kind: str
    untouched: bool
    tiff: TiffLayout | None

    @property
    def alpha(self) -> bool:
        """Whether the last band is alpha."""
        return self.bands in (2, 4)

    def close(self) -> None:
        """Let go of the file."""
        self.input.close()


def readable_formats() -> list[str]:
    """Names of the image formats that the installed libvips can read."""
    return [name for loader, name in _LOADERS.items() if pyvips.type_find("VipsOperation", loader)]


def open_image(
    path: str | Path,
    options: ReadOptions = AS_IS,
    span: Span | None = None,
    access: str = "sequential",
) -> Opened:
    """Read the header of an image file and set up its conversion to a plain form.

    Parameters
    ----------
    path
        A local path or an fsspec URL.
    span
        What becomes black and white, for samples that are not 8 or 16 unsigned bits.
    access
        "sequential", or "random" for windows of a tiled file.

    Raises
    ------
    UsageError
        If there is no such file, it is no image that libvips reads here, is cut short, has not that page,
        cannot hold what it claims, or has samples or bands that have no plain form.
    """
    file = open_file(path)
    try:
        with overhear() as heard:
            try:
                return _opened(file, options, span, access)
            except pyvips.Error as error:
                failure = file.failure()
                raise failure or _unreadable(file, one_line(error, heard)) from error
    except BaseException:
        file.close()
        raise


def _opened(file: ImageFile, options: ReadOptions, span: Span | None, access: str) -> Opened:
    is_tiff = _is_tiff(file)
    page = (options.page or 1) - 1
    tiff = _tiff_layout(file, page) if is_tiff else None
    if tiff is not None:
        _check_page(file, options, tiff.pages)
        tiff_layout.check(tiff, file.shown)
    if tiff is not None and tiff.wide:
        file = WideTiff(file, page, span)
    # Tiles of a TIFF that end early are read as far as they go on any other level.
    fail_on = "warning" if is_tiff else "error"
    image = _load(file, access, fail_on)
    pages = field(image, "n-pages", 1) if tiff is None else tiff.pages
    _check_page(file, options, pages)
    if page and not isinstance(file, WideTiff):
        image = _load(file, access, fail_on, page=page)
    limits.check_plausible(image, file.size, file.shown)
    limits.check_memory(image, file.shown)
    even, kind, unmeasured = _sixteen_bits(file, image, span)
    plain = colour.plain(even, file.shown, options.to_srgb)
    orientation = field(image, "orientation", 1)
    return Opened(
        input=file,
        image=plain.image,
        orientation=orientation if 1 <= orientation <= 8 else 1,
        bands=plain.image.bands,
        dtype=_DEPTHS[plain.image.format],
        icc=plain.icc,
        dpi=_dpi(image),
        metadata=_metadata(file, image, first_of_tiff=is_tiff and page == 0),
        notes=(*_page_notes(pages, tiff, options), *plain.notes),
        unmeasured=unmeasured,
        kind=kind,
        untouched=plain.image is image,
        tiff=tiff,
    )


def _metadata(file: ImageFile, image: VipsImage, first_of_tiff: bool) -> Metadata:
    if not first_of_tiff:
        return metadata.read(image)
    with closing(file.stream()) as stream:  # libvips finds no EXIF in a TIFF
        return metadata.read_tiff(stream)


def _load(file: ImageFile, access: str, fail_on: str, **options: Any) -> VipsImage:
    # Errors of earlier files that nobody collected would be told as this one's.
    pyvips.vips_lib.vips_error_clear()
    return pyvips.Image.new_from_source(file.vips_source(), "", access=access, fail_on=fail_on, **options)


def _is_tiff(file: ImageFile) -> bool:
    with closing(file.stream()) as stream:
        return tiff_layout.is_tiff(stream)


def _tiff_layout(file: ImageFile, page: int) -> TiffLayout | None:
    with closing(file.stream()) as stream:
        if not stream.seekable():
            raise UsageError(
                f"{file.shown}: its server sends whole files only, and a TIFF is read in parts; download it first"
            )
        return tiff_layout.read(stream, file.size, page)


def _check_page(file: ImageFile, options: ReadOptions, pages: int) -> None:
    if options.page is not None and not 1 <= options.page <= pages:
        has = "1 page" if pages == 1 else f"{pages:,} pages"
        raise UsageError(f"--page {options.page}: {file.shown} has {has}; name one of them, counted from 1")


def _unreadable(file: ImageFile, reason: str) -> UsageError:
    if "known format" not in reason:
        return UsageError(
            f"{file.shown}: cannot be opened as an image ({reason}); it is truncated, damaged or of a rare kind: "
            "get a whole copy or convert it"
        )
    # A TIFF that lost its end often lost its directory too, and libvips no longer takes it for one.
    if _is_tiff(file):
        return UsageError(f"{file.shown}: is a truncated TIFF; get a whole copy")
    known = ", ".join(readable_formats())
    return UsageError(f"{file.shown}: not an image in a format that can be read here ({known}); convert it")


def _sixteen_bits(
    file: ImageFile, image: VipsImage, span: Span | None
) -> tuple[VipsImage, str, RawBands | None]:
    """An image of 8 or 16 unsigned bits, what its samples were, and how to measure them if that must be done."""
    if isinstance(file, WideTiff):
        return image, file.kind, None if span else file.bands
    if image.format in _DEPTHS:
        return image, "", None
    if image.format not in _SCALED or image.interpretation == "cmyk":
        raise UsageError(
            f"{file.shown}: has {image.interpretation} samples of type {image.format}, which are not taken: "
            "convert it first, for example to a 16-bit TIFF"
        )
    dtype, kind = _SCALED[image.format]
    alpha = image.bands > colour.colour_bands(image, file.shown)

    def bands() -> Generator[npt.NDArray[Any], None, None]:
        rows = max(1, _MEASURED_BYTES // (image.width * image.bands * np.dtype(dtype).itemsize))
        heights = [min(rows, image.height - y) for y in range(0, image.height, rows)]
        return decoded_bands(image, dtype, heights)

    return samples.scaled(image, span or samples.UNIT, alpha), kind, None if span else bands


def _page_notes(pages: int, tiff: TiffLayout | None, options: ReadOptions) -> tuple[str, ...]:
    if options.page is not None:
        return ()
    # Reduced copies of a page are a pyramid's levels, nobody's second picture.
    pages = pages if tiff is None else tiff.full_pages
    return (f"has {pages} pages or frames; the first is taken (--page takes another)",) if pages > 1 else ()


def _dpi(image: VipsImage) -> tuple[float, float] | None:
    """Dots per inch along stored columns and rows, or None where the file does not say."""
    # libvips makes up a resolution for files without one. It notes the unit of those that have one, except
    # for PNG, where the unit is fixed and the made-up number is known.
    png = loader(image).startswith("png")
    stated = image.xres != _PNG_UNSTATED_XRES if png else image.get_typeof("resolution-unit") != 0
    if not stated or image.xres <= 0 or image.yres <= 0:
        return None
    return (image.xres * _MM_PER_INCH, image.yres * _MM_PER_INCH)
