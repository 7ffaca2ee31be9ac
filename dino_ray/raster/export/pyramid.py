"""Walking over a canvas and its halvings, block by block, in memory that does not depend on its size.

A *level* is the canvas, or the level before it at half the size, rounded up. Levels are made of square blocks; four
blocks of one level, halved, make one of the next. Blocks of the canvas come in Z-order, so that four of them become one
as soon as may be, and at most about one block of each level waits to be whole.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from dino_ray.plan.geometry import Rect
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.store import Pixels

Packed = TypeVar("Packed")

# Larger blocks read less of what lies to the left and right of them, and cost memory: at 2048 an export of a
# gigapixel peaks at 170 MiB instead of 90 and is no faster.
_MAX_BLOCK_SIDE = 1024
_BLOCK_BYTES = 8 * 2**20
# Blocks being packed at once: more would make memory depend on the machine, and a disk keeps up with no more.
_MAX_THREADS = 4
# One block more than there are threads, so that none waits while the oldest one is written.
_AHEAD = 1
# Rows of a half that are made at a time, so that what is summed stays in the processor's cache.
_ROWS = 16


@dataclass(frozen=True)
class Block:
    """A square of a level, cut off at its right and bottom borders.

    Attributes
    ----------
    level
        0 for the canvas itself.
    rect
        Its place, in pixels of its level.
    pixels
        (rect.h, rect.w, bands).
    """

    level: int
    rect: Rect
    pixels: Pixels


def level_sizes(width: int, height: int, smallest: int) -> list[tuple[int, int]]:
    """Width and height of every level, down to the first of which no side is above ``smallest``."""
    sizes = [(width, height)]
    while max(sizes[-1]) > smallest:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def block_side(tile: int, pixel_bytes: int) -> int:
    """Side of a block: the largest of ``tile`` times a power of two that stays within the budget, or one tile."""
    side = tile
    while 2 * side <= _MAX_BLOCK_SIDE and (2 * side) ** 2 * pixel_bytes <= _BLOCK_BYTES:
        side *= 2
    return side


def build(
    canvas: Canvas,
    sizes: list[tuple[int, int]],
    side: int,
    pack: Callable[[Block], Packed],
    commit: Callable[[Packed], None],
) -> None:
    """Have every block of every level packed, in threads, and committed, in this one and always in the same order.

    Parameters
    ----------
    canvas
        Whose pixels are level 0.
    sizes
        Of the levels, as `level_sizes` gives them, as many as are wanted.
    side
        Of a block; even.
    pack
        Called from several threads at once.
    commit
        Called with what ``pack`` returned.

    Raises
    ------
    JobError
        If the canvas cannot be read.
    Exception
        What ``pack`` or ``commit`` raised.
    """
    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    waiting: deque[Future[_Step[Packed]]] = deque()
    parents = _Parents(sizes, side, canvas.bands, canvas.dtype)

    def work(level: int, rect: Rect, pixels: Pixels | None) -> _Step[Packed]:
        block = Block(level, rect, canvas.read(rect) if pixels is None else pixels)
        packed = pack(block)
        return _Step(level, rect, packed, halve(block.pixels) if level + 1 < len(sizes) else None)

    with ThreadPoolExecutor(threads, thread_name_prefix="export") as pool:

        def finish_oldest() -> None:
            step = waiting.popleft().result()
            commit(step.packed)
            if step.half is not None:
                whole = parents.put(step.level + 1, step.rect, step.half)
                if whole is not None:
                    waiting.append(pool.submit(work, whole.level, whole.rect, whole.pixels))

        try:
            for rect in z_order(*sizes[0], side):
                while len(waiting) >= threads + _AHEAD:
                    finish_oldest()
                waiting.append(pool.submit(work, 0, rect, None))
            while waiting:
                finish_oldest()
        finally:
            pool.shutdown(cancel_futures=True)


def z_order(width: int, height: int, side: int) -> Iterator[Rect]:
    """Blocks of a level in Z-order: squares of 2 × 2 blocks, of 4 × 4, and so on, each done before the next."""
    columns, rows = -(-width // side), -(-height // side)

    def quarter(x: int, y: int, span: int) -> Iterator[Rect]:
        if x >= columns or y >= rows:
            return
        if span == 1:
            left, top = x * side, y * side
            yield Rect(left, top, min(side, width - left), min(side, height - top))
            return
        half = span // 2
        for dy in (0, half):
            for dx in (0, half):
                yield from quarter(x + dx, y + dy, half)

    yield from quarter(0, 0, 1 << (max(columns, rows) - 1).bit_length())


def halve(pixels: Pixels) -> Pixels:
    """Half the size, rounded up: the mean of every 2 × 2 pixels, colours weighted by their alpha.

    Parameters
    ----------
    pixels
        (height, width, 1 to 4) of uint8 or uint16; with 2 or 4 bands, the last is straight alpha.
    """
    height, width, bands = pixels.shape
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    half = np.empty((pixels.shape[0] // 2, pixels.shape[1] // 2, bands), pixels.dtype)
    mean = _mean if bands in (1, 3) else _weighted_mean
    for y in range(0, len(half), _ROWS):
        half[y : y + _ROWS] = mean(pixels[2 * y : 2 * (y + _ROWS)])
    return half


def _weighted_mean(pixels: Pixels) -> Pixels:
    colour, alpha = pixels[:, :, :-1], pixels[:, :, -1:]
    if alpha.min() == alpha.max():  # as where all is opaque
        return _mean(pixels)
    wide = np.uint32 if pixels.itemsize == 1 else np.uint64
    weight = _sums(alpha, wide)
    weighted = _sums(colour * alpha.astype(wide), wide)
    mean = (weighted + weight // 2) // np.maximum(weight, 1)
    mean = np.where(weight > 0, mean, _mean(colour))
    return np.concatenate([mean.astype(pixels.dtype), _mean(alpha)], axis=2)


def _mean(pixels: Pixels) -> Pixels:
    total = _sums(pixels, np.uint16 if pixels.itemsize == 1 else np.uint32)
    total += 2  # half of four: rounds
    total >>= 2
    return total.astype(pixels.dtype)


def _sums(pixels: npt.NDArray[Any], wide: type[np.unsignedinteger[Any]]) -> npt.NDArray[Any]:
    """Sums over every 2 × 2 pixels."""
    height, width, bands = pixels.shape
    rows: npt.NDArray[Any] = np.add(pixels[0::2], pixels[1::2], dtype=wide)
    # As opaque items, pixels are moved faster than their bands would be one by one.
    items = rows.view(np.dtype((np.void, bands * rows.itemsize)))[:, :, 0]
    left = np.ascontiguousarray(items[:, 0::2]).view(wide)
    left += np.ascontiguousarray(items[:, 1::2]).view(wide)
    return left.reshape(height // 2, width // 2, bands)


@dataclass(frozen=True)
class _Step(Generic[Packed]):
    """What became of a block: how it was packed, and its part of the next level if there is one."""

    level: int
    rect: Rect
    packed: Packed
    half: Pixels | None


class _Parents:
    """Blocks that wait for halves of blocks of the level before."""

    def __init__(self, sizes: list[tuple[int, int]], side: int, bands: int, dtype: str) -> None:
        self._sizes, self._side, self._bands, self._dtype = sizes, side, bands, dtype
        self._open: dict[tuple[int, int, int], tuple[Block, int]] = {}

    def put(self, level: int, child: Rect, half: Pixels) -> Block | None:
        """Lay a half into its parent; the parent, if that made it whole."""
        column, row = child.x // self._side // 2, child.y // self._side // 2
        key = (level, row, column)
        block, pixels_missing = self._open.pop(key) if key in self._open else self._fresh(*key)
        x, y = child.x // 2 - block.rect.x, child.y // 2 - block.rect.y
        block.pixels[y : y + half.shape[0], x : x + half.shape[1]] = half
        pixels_missing -= half.shape[0] * half.shape[1]
        if pixels_missing == 0:
            return block
        self._open[key] = (block, pixels_missing)
        return None

    def _fresh(self, level: int, row: int, column: int) -> tuple[Block, int]:
        width, height = self._sizes[level]
        x, y = column * self._side, row * self._side
        rect = Rect(x, y, min(self._side, width - x), min(self._side, height - y))
        pixels = np.empty((rect.h, rect.w, self._bands), self._dtype)
        return Block(level, rect, pixels), rect.w * rect.h
