"""Where tiles, seams and merge cells lie on the canvas.

All of it is integer arithmetic, so every process computes the same layout. A tile is a window of the
canvas that a model refines whole. Where two neighbouring tiles overlap lies a *seam*: a *ramp* centred in
the overlap, over which one tile hands over to the next, with *context* on either side of it that the models
see and the merge discards. A *cell* is one chunk of the output, merged by one task.

::

    tile 0   |----------------------------|
    tile 1                  |----------------------------|
    ramp                         |####|
    support  |<------- 0 ------------>|
                                 |<-------- 1 ---------->|
    cells    |------|------|------|------|------|------|--|
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise

from dino_ray.errors import UsageError
from dino_ray.plan.frames import Rect, Scaling

__all__ = ["CELL_MULTIPLE", "Axis", "Grid", "Rect", "Scaling", "make_grid"]

CELL_MULTIPLE = 16
"""Cells are multiples of this many canvas_px where seams leave room: whole blocks for JPEG and TIFF tiles."""


@dataclass(frozen=True)
class Axis:
    """Tiles, seams and cells along one axis of the canvas; all numbers canvas_px."""

    length: int
    """Canvas size along this axis."""
    tile: int
    """Tile size along this axis."""
    origins: tuple[int, ...]
    """First pixel of each tile, strictly increasing from 0."""
    ramps: tuple[tuple[int, int], ...]
    """Per seam the half-open interval over which tile ``i`` gives way to ``i + 1``; disjoint, in order."""
    cell: int
    """Cell ``k`` covers ``[k * cell, (k + 1) * cell)``, the last one clipped to the canvas."""

    def __post_init__(self) -> None:
        assert 1 <= self.cell <= self.length
        assert self.origins[0] == 0
        assert self.origins[-1] + self.tile >= self.length
        assert len(self.ramps) == len(self.origins) - 1
        for i, (start, stop) in enumerate(self.ramps):
            assert self.origins[i + 1] <= start <= stop <= self.origins[i] + self.tile
        # Tiles i and i + 2 then never meet in a cell, so a cell touches at most two tiles per axis.
        assert all(self.cell <= right - left for left, right in _between(self.ramps))

    @property
    def n_tiles(self) -> int:
        return len(self.origins)

    @property
    def n_cells(self) -> int:
        return -(-self.length // self.cell)

    def support(self, i: int) -> tuple[int, int]:
        """Half-open interval of the canvas where tile ``i`` has weight; what lies outside is its context."""
        lo = self.ramps[i - 1][0] if i > 0 else 0
        hi = self.ramps[i][1] if i < len(self.ramps) else self.length
        return lo, hi

    def tiles_in(self, lo: int, hi: int) -> range:
        """The tiles that have weight somewhere in ``[lo, hi)``, a non-empty interval of the canvas."""
        first = bisect_right(self.ramps, lo, key=_stop)
        last = bisect_left(self.ramps, hi, key=_start)
        return range(first, last + 1)

    def cells_in(self, lo: int, hi: int) -> range:
        """The cells that share a pixel with ``[lo, hi)``, a non-empty interval of the canvas."""
        return range(lo // self.cell, -(-hi // self.cell))

    def cell_span(self, k: int) -> tuple[int, int]:
        """Half-open interval of cell ``k``."""
        return k * self.cell, min((k + 1) * self.cell, self.length)


def _start(ramp: tuple[int, int]) -> int:
    return ramp[0]


def _stop(ramp: tuple[int, int]) -> int:
    return ramp[1]


def _between(ramps: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """The intervals between successive ramps, where one tile stands alone."""
    return [(a[1], b[0]) for a, b in pairwise(ramps)]


@dataclass(frozen=True)
class Grid:
    """The layout of a canvas: tiles and cells are both numbered row-major, from the top left.

    Everything is computed from the two axes on demand, so a grid is small to send whatever the canvas.
    """

    xs: Axis
    ys: Axis

    @property
    def width(self) -> int:
        return self.xs.length

    @property
    def height(self) -> int:
        return self.ys.length

    @property
    def n_tiles(self) -> int:
        return self.xs.n_tiles * self.ys.n_tiles

    @property
    def n_cells(self) -> int:
        return self.xs.n_cells * self.ys.n_cells

    def tile_position(self, i: int) -> tuple[int, int]:
        """(row, column) of tile ``i``."""
        return divmod(i, self.xs.n_tiles)

    def cell_position(self, j: int) -> tuple[int, int]:
        """(row, column) of cell ``j``."""
        return divmod(j, self.xs.n_cells)

    def tile_rect(self, i: int) -> Rect:
        """Tile ``i``, canvas_px; always of full size, so it may stick out at the right and the bottom."""
        row, col = self.tile_position(i)
        return Rect(self.xs.origins[col], self.ys.origins[row], self.xs.tile, self.ys.tile)

    def support_rect(self, i: int) -> Rect:
        """The part of tile ``i`` that reaches the output, canvas_px."""
        row, col = self.tile_position(i)
        return _rect(self.xs.support(col), self.ys.support(row))

    def cell_rect(self, j: int) -> Rect:
        """Cell ``j``, canvas_px, clipped to the canvas."""
        row, col = self.cell_position(j)
        return _rect(self.xs.cell_span(col), self.ys.cell_span(row))

    def cell_tiles(self, j: int) -> tuple[int, ...]:
        """The tiles, at most 4 and in ascending order, that cell ``j`` is merged from."""
        row, col = self.cell_position(j)
        cols = self.xs.tiles_in(*self.xs.cell_span(col))
        return tuple(r * self.xs.n_tiles + c for r in self.ys.tiles_in(*self.ys.cell_span(row)) for c in cols)

    def tile_cells(self, i: int) -> tuple[int, ...]:
        """The cells, in ascending order, that need tile ``i``."""
        row, col = self.tile_position(i)
        cols = self.xs.cells_in(*self.xs.support(col))
        return tuple(r * self.xs.n_cells + c for r in self.ys.cells_in(*self.ys.support(row)) for c in cols)

    def tile_order(self) -> tuple[int, ...]:
        """All tiles, in the order in which the fewest finished ones wait for neighbours.

        Lines of tiles along the shorter axis, one after another: what waits is about one line, so the line
        should be short. ``max_waiting`` is the bound.
        """
        rows, cols = self.ys.n_tiles, self.xs.n_tiles
        if cols <= rows:
            return tuple(range(rows * cols))
        return tuple(row * cols + col for col in range(cols) for row in range(rows))

    def max_waiting(self) -> int:
        """The most finished tiles that any cell still needs, when tiles finish in ``tile_order``.

        A tile is free once the tile diagonally after it is done. With lines of ``s`` tiles that leaves at
        most one line, the tile at hand and the one it hangs diagonally from: ``s + 2``, counted when a tile
        has finished and the cells that it completes are not merged yet. Tiles that finish out of order come
        on top, as many as the engine lets run ahead.
        """
        return min(self.n_tiles, min(self.xs.n_tiles, self.ys.n_tiles) + 2)


def _rect(x: tuple[int, int], y: tuple[int, int]) -> Rect:
    return Rect(x[0], y[0], x[1] - x[0], y[1] - y[0])


def make_grid(width: int, height: int, *, tile: int, overlap: int, multiple: int) -> Grid:
    """Lay evenly spaced tiles and uniform merge cells over a canvas.

    Parameters
    ----------
    width, height
        Canvas size, canvas_px, at least 1.
    tile
        Tile side, canvas_px, a multiple of ``multiple``. A canvas that needs less gets a smaller tile: its
        size rounded up to ``multiple``.
    overlap
        Least overlap of neighbouring tiles, canvas_px; even spacing and ``multiple`` can make it larger. At
        most half a tile once rounded up to ``multiple``: more would let three tiles meet on one axis.
    multiple
        Tile origins are multiples of this, canvas_px; the last tile sticks out of the canvas by less.

    Raises
    ------
    UsageError
        ``tile`` or ``overlap`` is out of range; names the option.
    """
    assert min(width, height, multiple) >= 1
    _check_request(tile, overlap, multiple)
    xs, ys = (_tile_origins(n, tile, overlap, multiple) for n in (width, height))
    x_ramps, y_ramps = _ramps(*xs), _ramps(*ys)
    # Cells are square, so both axes take the smaller limit; an axis without seams sets none worth mention.
    cell = min(_cell_limit(tile, xs[1], x_ramps), _cell_limit(tile, ys[1], y_ramps))
    if cell > CELL_MULTIPLE:
        cell -= cell % CELL_MULTIPLE
    return Grid(Axis(width, *xs, x_ramps, min(cell, width)), Axis(height, *ys, y_ramps, min(cell, height)))


def _check_request(tile: int, overlap: int, multiple: int) -> None:
    if tile < multiple:
        raise UsageError(f"--tile {tile}: this model needs at least {multiple} px")
    if tile % multiple:
        below = tile - tile % multiple
        raise UsageError(
            f"--tile {tile}: must be a multiple of {multiple} px here; use {below} or {below + multiple}"
        )
    most = tile // multiple // 2 * multiple
    if not 0 <= overlap <= most:
        raise UsageError(
            f"--overlap {overlap}: must be 0 to {most} px with --tile {tile}; "
            "use a smaller overlap or a larger tile"
        )


def _tile_origins(length: int, tile: int, overlap: int, multiple: int) -> tuple[int, tuple[int, ...]]:
    """(tile size, tile origins) along one axis; origins are as even as the grid of ``multiple`` allows."""
    units = -(-length // multiple)  # from here to the return statement, lengths count in multiples
    tile_units = min(tile // multiple, units)
    reach = units - tile_units
    if reach == 0:
        return tile_units * multiple, (0,)
    steps = -(-reach // (tile_units - -(-overlap // multiple)))
    return tile_units * multiple, tuple(multiple * (i * reach // steps) for i in range(steps + 1))


def _ramps(tile: int, origins: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """A ramp for each seam, centred in the overlap and half as wide, context on either side of it.

    Even spacing can make overlaps larger than half a tile. There the ramp stays within a quarter of a tile,
    as at the largest overlap that one may ask for, and within half the distance to the next seam, so that
    between two ramps there is always room for a cell.
    """
    # Seams i and i + 1 have their centres spans[i] / 2 apart.
    spans = [c - a for a, c in zip(origins, origins[2:], strict=False)]
    widths = [
        min([(left + tile - right) // 2, tile // 4, *(span // 4 for span in spans[max(i - 1, 0) : i + 1])])
        for i, (left, right) in enumerate(pairwise(origins))
    ]
    starts = [
        right + (left + tile - right - w) // 2
        for (left, right), w in zip(pairwise(origins), widths, strict=True)
    ]
    return tuple((start, start + w) for start, w in zip(starts, widths, strict=True))


def _cell_limit(tile: int, origins: tuple[int, ...], ramps: tuple[tuple[int, int], ...]) -> int:
    """The largest useful cell along one axis: half a stride, and no more than fits between two ramps.

    Larger cells would wait for four tiles more often. With fewer than two seams half a tile takes that part.
    """
    if len(ramps) < 2:
        return max(1, tile // 2)
    stride = min(b - a for a, b in pairwise(origins))
    return max(1, min(stride // 2, *(right - left for left, right in _between(ramps))))
