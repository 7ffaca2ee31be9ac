"""The finished canvas as a file or folder, one module per family of formats.

It is written beside its final name and renamed once it is whole, so whatever goes wrong an older output
of that name is still there. What goes to an address is made on a local disk and sent once it is whole; an OME-Zarr that
replaces none is written where it belongs, its index last.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pyvips

from dino_ray import places
from dino_ray.errors import JobError, UsageError
from dino_ray.raster import metadata
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export import deepzoom, jpeg, ome_zarr, png, tiff, webp
from dino_ray.raster.export.formats import ExportOptions, Format, Labels, listed
from dino_ray.raster.export.place import making, scratch_folder
from dino_ray.raster.info import SourceInfo
from dino_ray.raster.store import Depth
from dino_ray.raster.vips import one_line
from dino_ray.storage_errors import of_disk

__all__ = [
    "ExportOptions",
    "check_output",
    "compressions",
    "default_suffix",
    "export",
    "known_formats",
    "known_suffixes",
    "output_dtype",
    "root_file",
    "scratch_bytes",
    "scratch_folder",
]

logger = logging.getLogger(__name__)

_DEFAULTS = ExportOptions()
_FORMATS: tuple[Format, ...] = (
    png.FORMAT,
    jpeg.FORMAT,
    webp.FORMAT,
    tiff.FORMAT,
    deepzoom.FORMAT,
    ome_zarr.FORMAT,
)


def known_suffixes() -> list[str]:
    """File name endings that an output may have, in lower case."""
    return [suffix for form in _FORMATS for suffix in form.suffixes]


def known_formats() -> list[str]:
    """What ``ExportOptions.format`` may be."""
    return [form.key for form in _FORMATS]


def default_suffix(key: str | None) -> str:
    """Suffix of a format by its key; of PNG where none is named."""
    return next(form.suffixes[0] for form in _FORMATS if form.key == (key or png.FORMAT.key))


def compressions() -> dict[str, list[str]]:
    """What ``ExportOptions.compression`` may be, the default first, for each of `known_formats`."""
    return {form.key: [compression.name for compression in form.compressions] for form in _FORMATS}


def output_dtype(path: str | Path, source_dtype: Depth, options: ExportOptions = _DEFAULTS) -> Depth:
    """Depth that the canvas should have: as asked for, or the source's, or 8 bits where there is no room for more.

    Raises
    ------
    UsageError
        If the format is not known, or does not hold the depth asked for.
    """
    form = _format_of(path, options)
    dtype = form.dtype_for(options, source_dtype)
    if dtype != source_dtype and options.depth is None:
        how = f" with {options.compression} compression" if "uint16" in form.depths else ""
        logger.warning(
            "%s: %s%s holds 8 bits, so the result is rounded from the source's 16",
            places.shown(path),
            form.name,
            how,
        )
    return dtype


def check_output(
    path: str | Path,
    width: int,
    height: int,
    bands: int,
    dtype: Depth,
    source: str | Path | None = None,
    options: ExportOptions = _DEFAULTS,
) -> None:
    """Refuse, before any work, an output that could not be written at the end of it.

    Parameters
    ----------
    path
        Where the result is to go, a path or an address; its suffix names the format unless the options do.
    width, height, bands
        The canvas.
    dtype
        Depth of the source. A format that holds less is no reason to refuse: the canvas is then made in the
        depth that `output_dtype` gives.
    source
        The input, a file or an address, which is never written over.
    options
        What was asked for.

    Raises
    ------
    UsageError
        If the format is not known or cannot hold the canvas, an option cannot be honoured, or the output cannot
        be written.
    """
    form = _format_of(path, options)
    if source is not None and _same_file(path, source):
        raise UsageError(f"{places.shown(path)}: is the input file; name another output")
    form.check(str(path))
    reason = form.shortcoming(width, height, bands)
    if reason is not None:
        fitting = [f for f in _FORMATS if f.shortcoming(width, height, bands) is None]
        # Those that also keep the source's depth come first.
        fitting.sort(key=lambda f: dtype not in f.depths)
        advice = (
            f"; name a {listed([f.suffixes[0] for f in fitting], 'or')} output instead" if fitting else ""
        )
        raise UsageError(f"{places.shown(path)}: {form.name} {reason}{advice}")
    form.dtype_for(options, dtype)
    form.settle(options, width, height, bands)


def root_file(path: str | Path, options: ExportOptions = _DEFAULTS) -> str:
    """The file of an output that is written last: the output itself, or a folder's index.

    Raises
    ------
    UsageError
        If the format is not known.
    """
    return _format_of(path, options).root(str(path))


def scratch_bytes(
    path: str | Path, width: int, height: int, bands: int, dtype: Depth, options: ExportOptions = _DEFAULTS
) -> int:
    """What an output of that canvas may take in `scratch_folder` until it is sent.

    Nothing for a local one, and for a folder that can be written where it belongs since it replaces none.

    Raises
    ------
    UsageError
        As `check_output`.
    """
    form = _format_of(path, options)
    if not places.is_url(path) or _goes_straight(form, str(path)):
        return 0
    pixel_bytes = width * height * bands * np.dtype(dtype).itemsize
    return form.most_bytes(form.settle(options, width, height, bands), pixel_bytes)


def export(canvas: Canvas, info: SourceInfo, path: str | Path, options: ExportOptions = _DEFAULTS) -> None:
    """Write a finished canvas to a file or folder in the format of the path's suffix, streaming.

    What the source said of itself goes with it: the colour profile as it is; dots per inch, which grow with the
    image, so that it prints at the size at which the source did; EXIF, XMP and IPTC, made true of the output.
    Memory is bounded whatever the canvas's size, except for WebP.

    Parameters
    ----------
    canvas
        All of whose cells are done.
    info
        The source that it was made from.
    path
        Replaced if it exists, once the new output is whole; a folder behind an address once it is whole here.
    options
        What was asked for.

    Raises
    ------
    UsageError
        As `check_output`.
    ValueError
        If the canvas has another depth than `output_dtype` gives.
    JobError
        If cells are missing, or writing fails; the path is then as it was.
    """
    form = _format_of(path, options)
    check_output(path, canvas.width, canvas.height, canvas.bands, canvas.dtype, options=options)
    if canvas.dtype != form.dtype_for(options, canvas.dtype):
        raise ValueError(f"a {canvas.dtype} canvas for {form.name}: make it in the depth of output_dtype()")
    missing = canvas.missing()
    if missing:
        raise JobError(f"{canvas.folder}: {len(missing):,} cells are not done, the first is {missing[0]}")
    settings = form.settle(options, canvas.width, canvas.height, canvas.bands)
    # A link stays a link: what it points at is replaced.
    target = str(path) if places.is_url(path) else os.path.realpath(path)
    named = places.shown(path)
    if places.is_url(path):
        named += f" (made in {scratch_folder()})"
    try:
        if _goes_straight(form, target):
            form.save(canvas, _labels_of(canvas, info), settings, target)
            return
        with making(target) as partial:
            form.save(canvas, _labels_of(canvas, info), settings, partial)
            form.place(partial, target)
    except OSError as error:
        raise JobError(f"{named}: cannot be written: {of_disk(error)}") from error
    except pyvips.Error as error:
        reason = one_line(error).replace(f"{partial}: ", "")
        raise JobError(
            f"{named}: cannot be written ({reason}); make room on its disk, or check it"
        ) from error


def _goes_straight(form: Format, target: str) -> bool:
    """Whether an output needs no copy on a disk on its way to an address."""
    return form.straight and places.is_url(target) and not places.exists(form.root(target))


def _format_of(path: str | Path, options: ExportOptions) -> Format:
    suffix = Path(path).suffix.lower()
    by_suffix = next((form for form in _FORMATS if suffix in form.suffixes), None)
    if options.format is None:
        if by_suffix is not None:
            return by_suffix
        what = f"the suffix {suffix} is not known" if suffix else "has no suffix to tell its format by"
        raise UsageError(
            f"{places.shown(path)}: {what}; use one of {', '.join(known_suffixes())}, or add --format"
        )
    named = next((form for form in _FORMATS if form.key == options.format), None)
    if named is None:
        raise UsageError(f"--format {options.format}: is not known; use {listed(known_formats(), 'or')}")
    if by_suffix not in (None, named):
        raise UsageError(
            f"--format {named.key}: {places.shown(path)} ends as another format does; name it {named.suffixes[0]}, "
            "or leave --format out"
        )
    return named


def _same_file(path: str | Path, source: str | Path) -> bool:
    if places.is_url(path) or places.is_url(source):
        return str(path) == str(source)
    try:
        return os.path.samefile(path, source)
    except OSError:
        return False


def _labels_of(canvas: Canvas, info: SourceInfo) -> Labels:
    """What the source said of itself, as it holds for the canvas."""
    dpi = info.dpi and (info.dpi[0] * canvas.width / info.width, info.dpi[1] * canvas.height / info.height)
    sizes = (info.width, info.height), (canvas.width, canvas.height)
    return Labels(info.icc, dpi, metadata.for_output(info.metadata, *sizes, dpi))
