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

The canvas may close on itself in x; see `dino_ray.plan.axis`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from dino_ray.errors import UsageError
from dino_ray.plan.axis import Axis, between
from dino_ray.plan.frames import Rect, Scaling

__all__ = ["CELL_MULTIPLE", "Axis", "Grid", "Rect", "Scaling", "make_grid"]

CELL_MULTIPLE = 16
"""Cells are multiples of this many canvas_px where seams leave room: whole blocks for JPEG and TIFF tiles."""


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
    def wrap(self) -> bool:
        """Whether the canvas closes on itself in x."""
        return self.xs.closed

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
        """Tile ``i``, canvas_px; always of full size, so it may stick out at the right and the bottom.

        What sticks out lies beyond the image, or, where the axis is closed, at its other end.
        """
        row, col = self.tile_position(i)
        return Rect(self.xs.origins[col], self.ys.origins[row], self.xs.tile, self.ys.tile)

    def support_rect(self, i: int) -> Rect:
        """The part of tile ``i`` that reaches the output, canvas_px; see ``Axis.support``."""
        row, col = self.tile_position(i)
        return _rect(self.xs.support(col), self.ys.support(row))

    def cell_rect(self, j: int) -> Rect:
        """Cell ``j``, canvas_px, clipped to the canvas."""
        row, col = self.cell_position(j)
        return _rect(self.xs.cell_span(col), self.ys.cell_span(row))

    def cell_tiles(self, j: int) -> tuple[int, ...]:
        """The tiles, at most 4 and in ascending order, that cell ``j`` is merged from."""
        row, col = self.cell_position(j)
        n = self.xs.n_tiles
        cols = sorted(c % n for c in self.xs.tiles_in(*self.xs.cell_span(col)))
        return tuple(r * n + c for r in self.ys.tiles_in(*self.ys.cell_span(row)) for c in cols)

    def tile_cells(self, i: int) -> tuple[int, ...]:
        """The cells, in ascending order, that need tile ``i``."""
        row, col = self.tile_position(i)
        cols = self.xs.cells_in(*self.xs.support(col))
        return tuple(r * self.xs.n_cells + c for r in self.ys.cells_in(*self.ys.support(row)) for c in cols)

    def tile_order(self) -> tuple[int, ...]:
        """All tiles, in the order in which the fewest finished ones wait for neighbours.

        Lines of tiles, rows or columns, one after another: what waits is about one line, so the lines that
        leave the fewest waiting are taken. ``max_waiting`` is the bound.
        """
        rows, cols = self.ys.n_tiles, self.xs.n_tiles
        by_rows, by_columns = self._waiting()
        if by_rows <= by_columns:
            return tuple(range(rows * cols))
        return tuple(row * cols + col for col in range(cols) for row in range(rows))

    def tile_groups(self, size: int) -> tuple[tuple[int, ...], ...]:
        """All tiles in groups of ``size``, the last one of what is left: neighbours in ``tile_order``.

        Pixels can depend on which tiles a model sees at once, so this depends on nothing but the plan.
        """
        order = self.tile_order()
        return tuple(order[start : start + size] for start in range(0, len(order), size))

    def max_waiting(self) -> int:
        """The most finished tiles that any cell still needs, when tiles finish in ``tile_order``.

        Counted when a tile has finished and the cells that it completes are not merged yet. Tiles that finish
        out of order come on top, as many as the engine lets run ahead.
        """
        return min(self.n_tiles, *self._waiting())

    def _waiting(self) -> tuple[int, int]:
        """The most tiles that wait when tiles finish by rows, and when they do by columns.

        A tile is free once the tile diagonally after it is done. With lines of ``s`` tiles that leaves at
        most one line, the tile at hand and the one it hangs diagonally from: ``s + 2``.

        Where x is closed, the first tile of a row has the last one for a neighbour, and waits one tile longer
        than the others do: for the end of the next row. And the first column waits, whole, for the last.
        """
        rows, cols, closed = self.ys.n_tiles, self.xs.n_tiles, self.xs.closed
        return cols + 2 + closed, rows + 2 + closed * rows


def _rect(x: tuple[int, int], y: tuple[int, int]) -> Rect:
    return Rect(x[0], y[0], x[1] - x[0], y[1] - y[0])


def make_grid(width: int, height: int, *, tile: int, overlap: int, multiple: int, wrap: bool = False) -> Grid:
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
        most half a tile once rounded up to ``multiple``: more would let three tiles meet on one axis. Where
        ``wrap`` makes a tile go all around, its halves are what it shares, if that is less.
    multiple
        Tile origins are multiples of this, canvas_px; the last tile sticks out of the canvas by less.
    wrap
        Close the canvas on itself in x: the left edge goes on where the right one ends. There are then at least
        two tiles around, none of them longer than the canvas is.

    Raises
    ------
    UsageError
        ``tile`` or ``overlap`` is out of range; ``width`` does not close: it must be a multiple of
        ``multiple``, two of them at least. Names the option.
    """
    assert min(width, height, multiple) >= 1
    _check_request(tile, overlap, multiple)
    if wrap:
        _check_width(width, multiple)
    x_tile, x_origins = (_closed_origins if wrap else _tile_origins)(width, tile, overlap, multiple)
    y_tile, y_origins = _tile_origins(height, tile, overlap, multiple)
    # One more tile at either end lets the seams of a closed axis see their neighbours there.
    x_around = (x_origins[-1] - width, *x_origins, width, width + x_origins[1]) if wrap else x_origins
    x_ramps, y_ramps = _ramps(x_tile, x_around), _ramps(y_tile, y_origins)
    # Cells are square, so both axes take the smaller limit; an axis without seams sets none worth mention.
    cell = min(_cell_limit(tile, x_around, x_ramps), _cell_limit(tile, y_origins, y_ramps))
    if cell > CELL_MULTIPLE:
        cell -= cell % CELL_MULTIPLE
    if wrap:
        x_ramps = x_ramps[1:-1]
    return Grid(
        Axis(width, x_tile, x_origins, x_ramps, min(cell, width), closed=wrap),
        Axis(height, y_tile, y_origins, y_ramps, min(cell, height)),
    )


def _check_width(width: int, multiple: int) -> None:
    if width < 2 * multiple:
        raise UsageError(
            f"--wrap: a result {width:,} px wide is too narrow to close, two tiles around it take {2 * multiple} px; "
            "use a larger --scale or --wrap off"
        )
    if width % multiple:
        below = width - width % multiple
        raise UsageError(
            f"--wrap: a result {width:,} px wide does not close, its tiles lie on multiples of {multiple} px; "
            f"use a --scale that makes it {below:,} or {below + multiple:,} px wide, or --wrap off"
        )


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


def _closed_origins(length: int, tile: int, overlap: int, multiple: int) -> tuple[int, tuple[int, ...]]:
    """(tile size, tile origins) around a closed axis; as even as the grid of ``multiple`` allows."""
    units = length // multiple  # lengths count in multiples
    tile_units = min(tile // multiple, units)
    overlap_units = min(-(-overlap // multiple), tile_units // 2)
    n_tiles = max(2, -(-units // (tile_units - overlap_units)))
    return tile_units * multiple, tuple(multiple * (i * units // n_tiles) for i in range(n_tiles))


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
    return max(1, min(stride // 2, *(right - left for left, right in between(ramps))))
