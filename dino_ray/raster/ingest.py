"""Decoding a source once, top to bottom, into a chunked store that any worker reads windows of."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyvips

from dino_ray.errors import JobError, UsageError
from dino_ray.plan.geometry import Rect
from dino_ray.raster import chunks, orientation, samples, store
from dino_ray.raster.decode import Opened, open_image
from dino_ray.raster.info import AS_IS, ReadOptions, SourceInfo, to_record
from dino_ray.raster.rows import decoded_bands
from dino_ray.raster.store import Depth, Pixels
from dino_ray.raster.vips import one_line, overhear

logger = logging.getLogger(__name__)

# Pixels of a chunk: so many that a gigapixel is a few thousand files, so few that a window of one tile reads
# little beyond itself.
_CHUNK_PIXELS = 512**2
_MOST_CHUNK_ROWS = 512
_FEWEST_CHUNK_ROWS = 64
# A band of rows as high as a chunk is the unit of decoding; three are alive at a time. Wide images get flatter
# and longer chunks, so that a band stays within this and memory hardly grows with the width.
_BAND_BYTES = 2 * 2**20

INFO_ATTRIBUTE = "dino_ray_source"

Stop = Callable[[], bool]


class IngestStopped(JobError):
    """An ingest ended early because it was asked to; what it stored is no image."""


def ingest(
    path: str | Path, folder: str | Path, options: ReadOptions = AS_IS, stop: Stop | None = None
) -> SourceInfo:
    """Decode an image file into a store; see `dino_ray.raster.source.ingest`."""
    with closing(open_measured(path, options, stop)) as opened:
        info = upright_info(opened)
        rows, columns = chunk_shape(opened.image.width, opened.bands, opened.dtype)
        chunk = (columns, rows) if orientation.transposes(opened.orientation) else (rows, columns)
        with overhear() as heard, closing(upright_bands(opened, rows, heard)) as bands:
            _fill(folder, info, bands, chunk, stop)
    tell(opened, heard)
    _give_memory_back()
    return info


def _give_memory_back() -> None:
    """Return to the system what decoders have freed: glibc would keep it, and the job has long to run."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def open_measured(path: str | Path, options: ReadOptions, stop: Stop | None = None) -> Opened:
    """Open a file; if its samples have to be scaled, decode it once to find from where to where.

    Raises
    ------
    UsageError
        As `open_image`, or if samples are NaN or infinite, or cut short, or damaged.
    """
    opened = open_image(path, options)
    if opened.unmeasured is None:
        return opened
    with closing(opened), overhear() as heard:
        try:
            span = samples.measure(
                _stoppable(opened.unmeasured(), opened, stop), opened.alpha, opened.input.shown
            )
        except pyvips.Error as error:
            raise _damaged(opened, one_line(error, heard)) from error
    measured = open_image(path, options, span)
    return replace(measured, notes=(*measured.notes, samples.described(span, measured.kind)))


def tell(opened: Opened, heard: Sequence[str]) -> None:
    """Log what of a file was not taken as it is, and what libvips warned of."""
    for note in opened.notes:
        logger.warning("%s: %s", opened.input.shown, note)
    if heard:
        logger.warning("%s: decoded, but may be damaged (%s)", opened.input.shown, heard[0])


def describe_array(array: npt.NDArray[Any], name: str = "array") -> SourceInfo:
    """What an array is as a source; what `probe` is for a file.

    Parameters
    ----------
    array
        uint8 or uint16, (height, width) or (height, width, 1 to 4): grey, grey + alpha, RGB, RGBA.
    name
        What messages and reports call it.

    Raises
    ------
    UsageError
        If the array has another shape or type, or no pixels.
    """
    array = np.asarray(array)
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise UsageError(f"{name}: has {array.dtype} samples; give uint8 (0 to 255) or uint16 (0 to 65,535)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and not 1 <= array.shape[2] <= 4):
        raise UsageError(f"{name}: has shape {array.shape}; give (height, width) or (height, width, 1 to 4)")
    if array.size == 0:
        raise UsageError(f"{name}: has no pixels (shape {array.shape}); give at least one")
    height, width, bands = _banded(array).shape
    dtype: Depth = "uint8" if array.dtype.itemsize == 1 else "uint16"
    return SourceInfo(name, width, height, bands, dtype, alpha=bands in (2, 4))


def ingest_array(
    array: npt.NDArray[Any], folder: str | Path, name: str = "array", stop: Stop | None = None
) -> SourceInfo:
    """Store an array; see `dino_ray.raster.source.ingest_array`."""
    info, pixels = describe_array(array, name), _banded(np.asarray(array))
    chunk = rows, _ = chunk_shape(info.width, info.bands, info.dtype)

    def bands() -> Iterator[tuple[Rect, Pixels]]:
        for y in range(0, info.height, rows):
            yield (
                Rect(0, y, info.width, min(rows, info.height - y)),
                pixels[y : y + rows].astype(info.dtype, copy=False),
            )

    _fill(folder, info, bands(), chunk, stop)
    return info


def _banded(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array[:, :, None] if array.ndim == 2 else array


def chunk_shape(width: int, bands: int, dtype: Depth) -> tuple[int, int]:
    """Rows and columns of a chunk such that a band of so many rows of ``width`` pixels fits in `_BAND_BYTES`."""
    row_bytes = width * bands * np.dtype(dtype).itemsize
    rows = _MOST_CHUNK_ROWS
    while rows > _FEWEST_CHUNK_ROWS and rows * row_bytes > _BAND_BYTES:
        rows //= 2
    return rows, _CHUNK_PIXELS // rows


def stored_bytes(info: SourceInfo) -> int:
    """Disk that an ingested image takes: chunks are uncompressed, and whole at the borders too."""
    chunk = chunk_shape(info.width, info.bands, info.dtype)
    stored = [
        -(-length // side) * min(side, length)
        for length, side in zip((info.height, info.width), chunk, strict=True)
    ]
    return stored[0] * stored[1] * info.bands * np.dtype(info.dtype).itemsize


def upright_info(opened: Opened) -> SourceInfo:
    """What a file is once it is turned upright."""
    width, height = opened.image.width, opened.image.height
    dpi = opened.dpi
    if orientation.transposes(opened.orientation):
        width, height = height, width
        dpi = dpi and (dpi[1], dpi[0])
    return SourceInfo(
        name=opened.input.name,
        width=width,
        height=height,
        bands=opened.bands,
        dtype=opened.dtype,
        alpha=opened.alpha,
        icc=opened.icc,
        dpi=dpi,
        metadata=opened.metadata,
    )


def upright_bands(
    opened: Opened, rows: int, heard: Sequence[str]
) -> Generator[tuple[Rect, Pixels], None, None]:
    """Bands of the file in stored order, each upright and with its place in source_px."""
    width, height = opened.image.width, opened.image.height
    spans = list(orientation.spans(opened.orientation, height, rows))
    try:
        with closing(decoded_bands(opened.image, opened.dtype, [b - a for a, b in spans])) as bands:
            for (start, end), stored in zip(spans, bands, strict=True):
                place = orientation.upright_rect(opened.orientation, width, height, start, end)
                yield place, orientation.upright(opened.orientation, stored)
    except pyvips.Error as error:
        raise _damaged(opened, one_line(error, heard)) from error


def _damaged(opened: Opened, reason: str) -> Exception:
    # Not where: libvips decodes ahead of the rows that it gives.
    return opened.input.failure() or UsageError(
        f"{opened.input.shown}: is truncated or damaged ({reason}); get a whole copy"
    )


def _stoppable(
    bands: Generator[npt.NDArray[Any], None, None], opened: Opened, stop: Stop | None
) -> Iterator[npt.NDArray[Any]]:
    with closing(bands):
        for pixels in bands:
            _check_stop(stop, opened.input.name)
            yield pixels


def _check_stop(stop: Stop | None, name: str) -> None:
    if stop is not None and stop():
        raise IngestStopped(f"{name}: its ingest was stopped; start it again")


def _fill(
    folder: str | Path,
    info: SourceInfo,
    bands: Iterable[tuple[Rect, Pixels]],
    chunk: tuple[int, int],
    stop: Stop | None,
) -> None:
    """Write bands as they come, and note at the end that all is there."""
    shape = (info.height, info.width, info.bands)
    within = (min(chunk[0], info.height), min(chunk[1], info.width))
    array = store.create(folder, shape, within, info.dtype)
    for rect, pixels in bands:
        _check_stop(stop, info.name)
        chunks.write(array.folder, array.layout, rect, pixels)
    store.set_attributes(array, {INFO_ATTRIBUTE: to_record(info)})
