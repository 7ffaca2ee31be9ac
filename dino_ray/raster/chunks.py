"""Chunks of an uncompressed zarr array, moved straight between memory and storage.

Zarr's own way through an uncompressed chunk (codecs, event loop, threads) costs more than the disk does:
`scripts/bench/canvas.py` has the numbers. What lies in storage is what zarr itself writes and reads: per chunk
one file of its samples, row by row, little-endian, whole at the array's borders too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dino_ray import places
from dino_ray.errors import JobError
from dino_ray.plan.geometry import Rect

Depth = Literal["uint8", "uint16"]
Pixels = npt.NDArray[np.uint8 | np.uint16]
Position = tuple[int, int]
"""Row and column of a chunk."""

METADATA = "zarr.json"
KEY_ENCODING = {"name": "default", "separator": "."}
"""Zarr's spelling of a chunk's name such that all chunks lie in one folder.

With slashes each chunk would have a folder of its own: a block of disk more for each, and as many folders to look
into to see what is there.
"""
_KEY = re.compile(r"c\.(\d+)\.(\d+)\.0")


@dataclass(frozen=True)
class Layout:
    """How an array of pixels is cut into chunks; coordinates are the array's pixels.

    Attributes
    ----------
    shape
        Height, width and bands of the array.
    chunk
        Height and width of a chunk; all bands lie in it.
    dtype
        Depth of a sample.
    """

    shape: tuple[int, int, int]
    chunk: tuple[int, int]
    dtype: Depth

    @property
    def stored(self) -> np.dtype[Any]:
        """The type of a sample in storage."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def row_bytes(self) -> int:
        """Size of a chunk's row of pixels."""
        return self.chunk[1] * self.shape[2] * self.stored.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Size of every chunk in storage."""
        return self.chunk[0] * self.row_bytes

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of chunks."""
        return -(-self.shape[0] // self.chunk[0]), -(-self.shape[1] // self.chunk[1])

    def rect(self, position: Position) -> Rect:
        """Window of a chunk, cut off at the array's border."""
        y, x = position[0] * self.chunk[0], position[1] * self.chunk[1]
        return Rect(x, y, min(self.chunk[1], self.shape[1] - x), min(self.chunk[0], self.shape[0] - y))

    def spans(self, rect: Rect) -> tuple[range, range]:
        """Rows and columns of the chunks that share a pixel with a window inside the array."""
        (h, w) = self.chunk
        return range(rect.y // h, -(-rect.y1 // h)), range(rect.x // w, -(-rect.x1 // w))

    def whole_chunks(self, rect: Rect) -> bool:
        """Whether a window consists of chunks, each of them whole but for the array's border."""
        (h, w), (height, width, _) = self.chunk, self.shape
        return (
            0 <= rect.x < rect.x1 <= width
            and 0 <= rect.y < rect.y1 <= height
            and rect.x % w == rect.y % h == 0
            and (rect.x1 % w == 0 or rect.x1 == width)
            and (rect.y1 % h == 0 or rect.y1 == height)
        )


def name(position: Position) -> str:
    """A chunk's file name."""
    return f"c.{position[0]}.{position[1]}.0"


def is_remnant(file: str) -> bool:
    """Whether a file's name is that of a chunk, or of something that was being written."""
    return bool(_KEY.fullmatch(file)) or file.endswith(places.PARTIAL)


def finished(folder: str, layout: Layout) -> set[Position]:
    """Every chunk that is there with all its bytes, found by one listing.

    A file may be too short after a power cut, which can undo what was written and yet keep that it was renamed.

    Raises
    ------
    JobError
        If the store is gone or can't be read.
    """
    sizes = places.list_files(folder)
    if METADATA not in sizes:
        raise vanished(folder)
    rows, columns = layout.grid
    matches = (_KEY.fullmatch(file) for file, size in sizes.items() if size == layout.chunk_bytes)
    positions = ((int(m[1]), int(m[2])) for m in matches if m)
    return {(row, column) for row, column in positions if row < rows and column < columns}


def all_finished(folder: str, layout: Layout) -> bool:
    """Whether no chunk is missing; see `finished`."""
    rows, columns = layout.grid
    return len(finished(folder, layout)) == rows * columns


def write(folder: str, layout: Layout, rect: Rect, pixels: Pixels) -> None:
    """Store a window of whole chunks; each appears whole or not at all, whenever the process dies.

    Raises
    ------
    ValueError
        If the window is not made of whole chunks, or the pixels are not of its shape and type.
    JobError
        If the store can't be written; chunks that were not reached are as they were.
    """
    if not layout.whole_chunks(rect):
        raise ValueError(f"{rect} is not made of chunks of {layout}")
    if pixels.shape != (rect.h, rect.w, layout.shape[2]) or pixels.dtype != layout.dtype:
        raise ValueError(f"{pixels.shape} {pixels.dtype} does not fit {rect} of {layout}")
    rows, columns = layout.spans(rect)
    with places.explained(folder, "written"):
        if not places.is_url(folder):
            path = places.local_path(folder)
            for position in ((row, column) for row in rows for column in columns):
                # Not synced to the disk, which takes several times as long even on a fast one (see the bench). A
                # killed process loses nothing, for by now the system has the bytes; and what a power cut takes,
                # `finished` does not count.
                places.write_local(
                    path / name(position), _encoded(layout, rect, pixels, position), durable=False
                )
            return
        files, root = places.filesystem(folder)
        for row in rows:  # all of a row at once: a store far away has its price per request
            sent = {
                f"{root}/{name((row, k))}": bytes(_encoded(layout, rect, pixels, (row, k))) for k in columns
            }
            files.pipe(sent)


def _encoded(layout: Layout, rect: Rect, pixels: Pixels, position: Position) -> memoryview:
    """The bytes of one chunk within ``rect``; beyond the array's border lies zarr's fill value, 0."""
    inside = layout.rect(position)
    y, x = inside.y - rect.y, inside.x - rect.x
    part = pixels[y : y + inside.h, x : x + inside.w]
    if (inside.h, inside.w) != layout.chunk:
        whole = np.zeros((*layout.chunk, layout.shape[2]), layout.stored)
        whole[: inside.h, : inside.w] = part
        return whole.data.cast("B")
    return np.ascontiguousarray(part, layout.stored).data.cast("B")


def read(folder: str, layout: Layout, rect: Rect, absent: Literal["zeros", "error"]) -> Pixels:
    """Pixels of a window inside the array, (rect.h, rect.w, bands), owned by the caller.

    Parameters
    ----------
    absent
        What to make of chunks that nobody has stored.

    Raises
    ------
    JobError
        If a chunk, or the whole store, is not there, can't be read or has lost bytes.
    """
    pixels = np.empty((rect.h, rect.w, layout.shape[2]), layout.stored)
    rows, columns = layout.spans(rect)
    fetch = _fetch_remote if places.is_url(folder) else _fetch_local
    here = False
    with places.explained(folder, "read"):
        for row in rows:
            top = row * layout.chunk[0]
            span = max(rect.y - top, 0), min(rect.y1 - top, layout.chunk[0])
            into = pixels[top + span[0] - rect.y : top + span[1] - rect.y]
            for column, part in zip(columns, fetch(folder, layout, row, columns, span), strict=True):
                left = column * layout.chunk[1]
                x0, x1 = max(rect.x, left), min(rect.x1, left + layout.chunk[1])
                if part is None:
                    if absent == "error":
                        raise _missing(folder, (row, column))
                    here = here or _check_it_is_here(folder)
                    into[:, x0 - rect.x : x1 - rect.x] = 0
                else:
                    into[:, x0 - rect.x : x1 - rect.x] = part[:, x0 - left : x1 - left]
    return pixels.astype(layout.dtype, copy=False)


Rows = npt.NDArray[Any] | None
"""Some rows of a chunk, (rows, chunk width, bands); None for a chunk that is not there. Valid until the next one."""


def _fetch_local(
    folder: str, layout: Layout, row: int, columns: range, span: tuple[int, int]
) -> Iterator[Rows]:
    path = places.local_path(folder)
    # One buffer that stays in the processor's cache is twice as fast as a new one per chunk.
    part = np.empty((span[1] - span[0], layout.chunk[1], layout.shape[2]), layout.stored)
    buffer = part.data.cast("B")
    for column in columns:
        try:
            with open(path / name((row, column)), "rb", buffering=0) as file:
                size = file.seek(0, 2)
                file.seek(span[0] * layout.row_bytes)
                filled = size == layout.chunk_bytes and _fill(file, buffer)
        except FileNotFoundError:
            yield None
        else:
            if not filled:
                raise _damaged(folder, (row, column), layout, size)
            yield part


def _fill(file: Any, buffer: memoryview) -> bool:
    filled = 0
    while filled < len(buffer):
        count = file.readinto(buffer[filled:])
        if not count:
            return False
        filled += count
    return True


def _fetch_remote(
    folder: str, layout: Layout, row: int, columns: range, span: tuple[int, int]
) -> Iterator[Rows]:
    files, root = places.filesystem(folder)
    # By range only where that saves something: a chunk that is too long would not be noticed.
    whole = span == (0, layout.chunk[0])
    start, stop = (None, None) if whole else (span[0] * layout.row_bytes, span[1] * layout.row_bytes)
    paths = [f"{root}/{name((row, column))}" for column in columns]
    count = len(paths)
    found = files.cat_ranges(paths, [start] * count, [stop] * count, on_error="return")
    for column, content in zip(columns, found, strict=True):
        if isinstance(content, FileNotFoundError):
            yield None
            continue
        if isinstance(content, BaseException):
            if "not satisfiable" not in str(content):  # what S3 calls a range beyond the object's end
                raise content
            content = b""
        if len(content) != (span[1] - span[0]) * layout.row_bytes:
            raise _damaged(folder, (row, column), layout, len(content) if whole else None)
        yield np.frombuffer(content, layout.stored).reshape(-1, layout.chunk[1], layout.shape[2])


def _missing(folder: str, position: Position) -> JobError:
    _check_it_is_here(folder)
    return JobError(f"{places.shown(places.join(folder, name(position)))}: is missing; start the job anew")


def _check_it_is_here(folder: str) -> bool:
    """A chunk that nobody has stored yet is one thing, a mount that is gone another."""
    if not places.exists(places.join(folder, METADATA)):
        raise vanished(folder)
    return True


def vanished(folder: str) -> JobError:
    """What to say of a store that was there before."""
    return JobError(f"{places.shown(folder)}: is gone; bring it back (is its disk mounted?), then resume")


def _damaged(folder: str, position: Position, layout: Layout, size: int | None) -> JobError:
    found = "is too short" if size is None else f"has {size:,} bytes, not {layout.chunk_bytes:,}"
    where = places.shown(places.join(folder, name(position)))
    return JobError(f"{where}: cannot be read: it {found}; remove it, then resume")
