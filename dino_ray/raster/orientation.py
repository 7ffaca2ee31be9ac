"""EXIF orientation, applied to bands of rows: a turned image is put upright without ever being whole.

A file stores rows; the orientation (1 to 8, EXIF 2.32, tag 0x0112) says how to show them. A band of stored
rows is a band of rows or of columns of the upright image, so it can be turned alone and put in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from dino_ray.plan.geometry import Rect
from dino_ray.raster.store import Pixels

# Upright = transpose first (5 to 8), then mirror left-right and up-down.
_TRANSPOSED = frozenset({5, 6, 7, 8})
_MIRRORED_X = frozenset({2, 3, 6, 7})
_MIRRORED_Y = frozenset({3, 4, 7, 8})


def transposes(orientation: int) -> bool:
    """Whether width and height change places."""
    return orientation in _TRANSPOSED


def upright(orientation: int, stored: Pixels) -> Pixels:
    """Turn pixels (rows, columns, bands) from stored to upright; a view."""
    pixels = stored.transpose(1, 0, 2) if orientation in _TRANSPOSED else stored
    if orientation in _MIRRORED_X:
        pixels = pixels[:, ::-1]
    if orientation in _MIRRORED_Y:
        pixels = pixels[::-1]
    return pixels


def _reversed(orientation: int) -> bool:
    """Whether later stored rows come earlier along their upright axis."""
    return orientation in (_MIRRORED_X if orientation in _TRANSPOSED else _MIRRORED_Y)


def upright_rect(orientation: int, width: int, height: int, start: int, stop: int) -> Rect:
    """Where rows ``start`` to ``stop`` (exclusive) of a stored width × height image lie in source_px."""
    low = height - stop if _reversed(orientation) else start
    if orientation in _TRANSPOSED:
        return Rect(low, 0, stop - start, width)
    return Rect(0, low, width, stop - start)


def spans(orientation: int, height: int, side: int) -> Iterator[tuple[int, int]]:
    """Cut stored rows, in stored order, into spans whose upright places begin on multiples of ``side``.

    So every chunk of a store with chunks of that side is written once, whole.
    """
    first = height % side if _reversed(orientation) else 0
    edges = [0, *range(first or min(side, height), height, side), height]
    yield from ((a, b) for a, b in pairwise(edges) if b > a)
