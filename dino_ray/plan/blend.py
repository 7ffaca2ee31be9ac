"""Merging tiles into a cell by an integer partition of unity.

Each seam has one ramp of integers that rises from 0 to ``RAMP_ONE``. A tile's weight along an axis is the
ramp of the seam before it less that of the seam after it, so the weights of all tiles telescope to exactly
``RAMP_ONE`` at every pixel, and their products in two dimensions to ``RAMP_ONE ** 2`` = 65,536, whatever the
layout. Pixels are uint16 and sums are integers: what tiles agree on comes out unchanged, constants above
all, and neither the order of the tiles nor the machine can change a bit.

The ramp is the smoothstep polynomial ``3 u² - 2 u³``. Its slope vanishes at both ends, so the gradient of the
blend has no kink for the eye to find; it lies within 1.1 % of a raised cosine and needs no cosine, whose last
bit may differ between machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise, product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dino_ray.plan.geometry import Axis, Grid

RAMP_ONE = 256
"""Full weight along one axis: 16-bit pixels times its square just fit uint32, rounding included."""

_RAMP_BITS = RAMP_ONE.bit_length() - 1
_SHALLOW = 1
"""Inside a ramp both tiles weigh at least this much, so that a tile's support is its ramps to the pixel."""

Pixels = NDArray[np.uint16]
Sums = NDArray[np.uint32]
Span = tuple[int, int]


@lru_cache(maxsize=64)
def ramp(width: int) -> NDArray[np.int32]:
    """The rising ramp of a seam: smoothstep at pixel centres, rounded to 1 ... ``RAMP_ONE - 1``.

    Returns
    -------
    ndarray
        int32 (width,), read-only.
    """
    # u = a / b with a = 2k + 1 and b = 2 width; all integers, exact up to widths of 2 ** 17.
    a = 2 * np.arange(width, dtype=np.int64) + 1
    b = 2 * max(width, 1)
    rise = (RAMP_ONE * a * a * (3 * b - 2 * a) + b**3 // 2) // b**3
    levels: NDArray[np.int32] = rise.clip(_SHALLOW, RAMP_ONE - _SHALLOW).astype(np.int32)
    levels.flags.writeable = False
    return levels


@lru_cache(maxsize=64)
def _handover(width: int, bands: int) -> tuple[Sums, Sums]:
    """What the tiles before and after a seam weigh along its ramp: (width * bands,) each, together ``RAMP_ONE``."""
    rising = ramp(width).astype(np.uint32).repeat(bands)
    falling = RAMP_ONE - rising
    rising.flags.writeable = falling.flags.writeable = False
    return falling, rising


def blend(grid: Grid, cell: int, tiles: Mapping[int, Pixels]) -> Pixels:
    """Merge one cell from the tiles that overlap it.

    Only ramps cost arithmetic: where one tile stands alone, its pixels are copied.

    Parameters
    ----------
    grid
        The layout.
    cell
        Which cell, row-major.
    tiles
        At least ``grid.cell_tiles(cell)``: whole tiles, each (h, w, c) of its ``grid.tile_rect``.

    Returns
    -------
    ndarray
        uint16, (h, w, c) of ``grid.cell_rect(cell)``: the weighted mean, halves rounded up.
    """
    rect = grid.cell_rect(cell)
    any_tile = tiles[grid.cell_tiles(cell)[0]]
    out = np.empty((rect.h, rect.w, any_tile.shape[2]), np.uint16)
    pieces = product(_pieces(grid.ys, rect.y, rect.y1), _pieces(grid.xs, rect.x, rect.x1))
    for (ys, rows), (xs, cols) in pieces:
        piece = _blend_piece(grid, tiles, (ys, rows), (xs, cols))
        out[ys[0] - rect.y : ys[1] - rect.y, xs[0] - rect.x : xs[1] - rect.x] = piece
    return out


def _pieces(axis: Axis, lo: int, hi: int) -> Iterator[tuple[Span, range]]:
    """``[lo, hi)`` cut at the ends of its ramp: spans with the one or two tiles that have weight there."""
    ends = [end for i in axis.tiles_in(lo, hi)[:-1] for end in axis.ramp(i)]
    for a, b in pairwise(sorted({lo, hi, *(end for end in ends if lo < end < hi)})):
        yield (a, b), axis.tiles_in(a, b)


def _blend_piece(
    grid: Grid, tiles: Mapping[int, Pixels], y: tuple[Span, range], x: tuple[Span, range]
) -> Pixels:
    """Merge one piece, in which the same tiles have weight everywhere: 1, 2 or 4 of them."""
    (y0, y1), rows = y
    (x0, x1), cols = x

    def window(row: int, col: int) -> Pixels:
        top, left = grid.ys.origin(row), grid.xs.origin(col)
        return tiles[row * grid.xs.n_tiles + col % grid.xs.n_tiles][
            y0 - top : y1 - top, x0 - left : x1 - left
        ]

    seams = len(rows) + len(cols) - 2
    first = window(rows[0], cols[0])
    if seams == 0:
        return first
    # Rows of pixels are flattened, so that numpy's inner loops run over more than the three channels.
    lines = [_flat(window(row, cols[0])) for row in rows]
    if len(cols) > 1:
        weights = _weights(grid.xs, cols[0], x0, x1, first.shape[2])
        lines = [
            _mix(line, _flat(window(row, cols[1])), weights) for line, row in zip(lines, rows, strict=True)
        ]
    total = lines[0]
    if len(rows) > 1:
        falling, rising = _weights(grid.ys, rows[0], y0, y1, 1)
        total = _mix(total, lines[1], (falling[:, None], rising[:, None]))
    return _rounded(total, seams * _RAMP_BITS).reshape(first.shape)


def _weights(axis: Axis, i: int, lo: int, hi: int, bands: int) -> tuple[Sums, Sums]:
    """Of tiles ``i`` and ``i + 1`` over canvas_px ``[lo, hi)``, which lies within the ramp between them."""
    start, stop = axis.ramp(i)
    falling, rising = _handover(stop - start, bands)
    within = slice((lo - start) * bands, (hi - start) * bands)
    return falling[within], rising[within]


def _flat(window: Pixels) -> Sums:
    return window.astype(np.uint32, order="C").reshape(len(window), -1)


def _mix(first: Sums, second: Sums, weights: tuple[Sums, Sums]) -> Sums:
    """The sum of two parts, weighted to ``RAMP_ONE`` in all."""
    mixed: Sums = first * weights[0]
    mixed += second * weights[1]
    return mixed


def _rounded(total: Sums, bits: int) -> Pixels:
    return ((total + np.uint32(1 << (bits - 1))) >> np.uint32(bits)).astype(np.uint16)


def to_depth(pixels16: Pixels, dtype: Literal["uint8", "uint16"]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """16-bit pixels at the depth of the output: as they are, or rounded to 8 bits (``v * 257`` is ``v``)."""
    if dtype == "uint16":
        return pixels16
    # round(v / 257) as one multiplication and one shift; exact for all 65,536 values, as a test shows.
    return ((pixels16.astype(np.uint32) * 255 + 32895) >> 16).astype(np.uint8)
