"""The finished canvas as a file, one module per family of formats.

The file is written beside its final name and renamed once it is whole, so whatever goes wrong an older
file of that name is still there.
"""

from __future__ import annotations

import logging
import os
import uuid
from contextlib import suppress
from pathlib import Path

import pyvips

from dino_ray.errors import JobError, UsageError
from dino_ray.files import check_place
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export import jpeg, png, tiff, webp
from dino_ray.raster.export.formats import Format
from dino_ray.raster.export.vips_source import pull
from dino_ray.raster.source import SourceInfo
from dino_ray.raster.store import Depth
from dino_ray.raster.vips import VipsImage, one_line

__all__ = ["check_output", "export", "known_suffixes", "output_dtype"]

logger = logging.getLogger(__name__)

_FORMATS: tuple[Format, ...] = (png.FORMAT, jpeg.FORMAT, webp.FORMAT, tiff.FORMAT)

_MM_PER_INCH = 25.4
_UNSTATED_DPI = (72.0, 72.0)  # what programs assume for, and write into, files that have nothing to say


def known_suffixes() -> list[str]:
    """File name endings that an output may have, in lower case."""
    return [suffix for form in _FORMATS for suffix in form.suffixes]


def output_dtype(path: str | Path, source_dtype: Depth) -> Depth:
    """Depth that the canvas should have: the source's, or 8 bits where the output can hold no more.

    Raises
    ------
    UsageError
        If the path's suffix is not known.
    """
    form = _format_of(path)
    if source_dtype in form.depths:
        return source_dtype
    logger.warning("%s: %s holds 8 bits, so the result is rounded from the source's 16", path, form.name)
    return "uint8"


def check_output(
    path: str | Path,
    width: int,
    height: int,
    bands: int,
    dtype: Depth,
    source: str | Path | None = None,
) -> None:
    """Refuse, before any work, an output that could not be written at the end of it.

    Parameters
    ----------
    path
        Where the result is to go; its suffix names the format.
    width, height, bands
        The canvas.
    dtype
        Depth of the source. A format that holds less is no reason to refuse: the canvas is then made in the
        depth that `output_dtype` gives.
    source
        The input file, which is never written over.

    Raises
    ------
    UsageError
        If the suffix is not known, the format cannot hold the canvas, or the file cannot be written.
    """
    form = _format_of(path)
    check_place(path)
    if source is not None and _same_file(path, source):
        raise UsageError(f"{path}: is the input file; name another output")
    reason = form.shortcoming(width, height, bands)
    if reason is not None:
        fitting = [f for f in _FORMATS if f.shortcoming(width, height, bands) is None]
        # Those that also keep the source's depth come first.
        fitting.sort(key=lambda f: dtype not in f.depths)
        advice = f"; name a {' or '.join(f.suffixes[0] for f in fitting)} file instead" if fitting else ""
        raise UsageError(f"{path}: {form.name} {reason}{advice}")


def export(canvas: Canvas, info: SourceInfo, path: str | Path) -> None:
    """Write a finished canvas to a file in the format of the path's suffix, streaming.

    The source's colour profile goes with it, and its dots per inch grow with the image, so that it prints
    at the size at which the source did. Memory is a few bands of cells, except for WebP.

    Parameters
    ----------
    canvas
        All of whose cells are done.
    info
        The source that it was made from.
    path
        Replaced if it exists, once the new file is whole.

    Raises
    ------
    UsageError
        As `check_output`.
    ValueError
        If the canvas has more depth than the format holds.
    JobError
        If cells are missing, or writing fails; the path is then as it was.
    """
    form = _format_of(path)
    check_output(path, canvas.width, canvas.height, canvas.bands, canvas.dtype)
    if canvas.dtype not in form.depths:
        raise ValueError(f"a {canvas.dtype} canvas for {form.name}: make it in the depth of output_dtype()")
    missing = canvas.missing()
    if missing:
        raise JobError(f"{canvas.folder}: {len(missing):,} cells are not done, the first is {missing[0]}")
    # A link stays a link: what it points at is replaced.
    target = os.path.realpath(path)
    # Names may be as long as the file system allows, so this one is not derived from it.
    partial = os.path.join(os.path.dirname(target), f".dino-ray-{uuid.uuid4().hex}.partial")
    try:
        pull(canvas, lambda image: form.save(_labelled(image, canvas, info), partial))
        _flush(partial)
        os.replace(partial, target)
    except (pyvips.Error, OSError) as error:
        raise JobError(f"{path}: could not be written ({one_line(error)}); check the disk") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(partial)


def _format_of(path: str | Path) -> Format:
    suffix = Path(path).suffix.lower()
    for form in _FORMATS:
        if suffix in form.suffixes:
            return form
    what = f"the suffix {suffix} is not known" if suffix else "has no suffix to tell its format by"
    raise UsageError(f"{path}: {what}; use one of {', '.join(known_suffixes())}")


def _same_file(path: str | Path, source: str | Path) -> bool:
    try:
        return os.path.samefile(path, source)
    except FileNotFoundError:
        return False


def _labelled(image: VipsImage, canvas: Canvas, info: SourceInfo) -> VipsImage:
    """The image with what the source said of itself: profile and resolution."""
    dpi_x, dpi_y = info.dpi or _UNSTATED_DPI
    if info.dpi is not None:
        dpi_x *= canvas.width / info.width
        dpi_y *= canvas.height / info.height
    image = image.copy(xres=dpi_x / _MM_PER_INCH, yres=dpi_y / _MM_PER_INCH)
    image.set_type(pyvips.GValue.gstr_type, "resolution-unit", "in")
    if info.icc is not None:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", info.icc)
    return image


def _flush(path: str) -> None:
    """Put the file's bytes on the disk: a power cut must not leave the new name with nothing behind it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
