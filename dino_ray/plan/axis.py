"""One axis of the canvas: its tiles, the seams between them, and its cells.

An axis may be *closed*, as the horizontal one of a 360° panorama is: past its last pixel comes its first. It
has as many seams as tiles. The last tile sticks out of the canvas by its overlap with tile 0, which it meets
there; the ramp between them counts on past the canvas's end and falls on the pixels from 0 on. Cells do not
wrap: the canvas is an ordinary array. Tiles and seams of a closed axis may be named by any integer: tile
``i + n`` is tile ``i`` one turn further, and tile -1 is the last one as it reaches in from the left.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

_start, _stop = itemgetter(0), itemgetter(1)
"""The two ends of a ramp."""


@dataclass(frozen=True)
class Axis:
    """Tiles, seams and cells along one axis of the canvas; all numbers canvas_px.

    Tiles and seams are numbered from 0; on a closed axis the numbers go on around it in both directions.
    """

    length: int
    """Canvas size along this axis."""
    tile: int
    """Tile size along this axis."""
    origins: tuple[int, ...]
    """First pixel of each tile, strictly increasing from 0."""
    ramps: tuple[tuple[int, int], ...]
    """Per seam the half-open interval over which tile ``i`` gives way to ``i + 1``; disjoint, in order. The
    last one of a closed axis lies past ``length``; where overlaps are large, so may the one before."""
    cell: int
    """Cell ``k`` covers ``[k * cell, (k + 1) * cell)``, the last one clipped to the canvas."""
    closed: bool = False
    """Past the last pixel comes the first, and past the last tile tile 0."""

    def __post_init__(self) -> None:
        assert 1 <= self.cell <= self.length
        assert self.origins[0] == 0
        assert self.origins[-1] + self.tile >= self.length
        assert len(self.ramps) == len(self.origins) - (not self.closed)
        if self.closed:
            assert len(self.origins) >= 2
            assert self.tile <= self.length  # no tile overlaps itself
        for i in range(len(self.ramps)):
            start, stop = self.ramp(i)
            assert self.origin(i + 1) <= start <= stop <= self.origin(i) + self.tile
        # Tiles i and i + 2 then never meet in a cell, so a cell touches at most two tiles per axis.
        around = [self.ramp(i) for i in range(-self.closed, len(self.ramps))]
        assert all(self.cell <= right - left for left, right in between(around))

    @property
    def n_tiles(self) -> int:
        return len(self.origins)

    @property
    def n_cells(self) -> int:
        return -(-self.length // self.cell)

    @property
    def period(self) -> int | None:
        """Length around, canvas_px; None where the axis is open and nothing comes again."""
        return self.length if self.closed else None

    def origin(self, i: int) -> int:
        """First pixel of tile ``i``."""
        turn, i = divmod(i, self.n_tiles)
        return self.origins[i] + turn * self.length

    def ramp(self, i: int) -> tuple[int, int]:
        """Half-open interval over which tile ``i`` gives way to tile ``i + 1``."""
        turn, i = divmod(i, self.n_tiles)
        start, stop = self.ramps[i]
        return start + turn * self.length, stop + turn * self.length

    def starts_at_edge(self, i: int) -> bool:
        """Whether no seam comes before tile ``i``."""
        return not self.closed and i == 0

    def ends_at_edge(self, i: int) -> bool:
        """Whether no seam comes after tile ``i``."""
        return not self.closed and i == self.n_tiles - 1

    def support(self, i: int) -> tuple[int, int]:
        """Half-open interval where tile ``i`` has weight; what lies outside is its context.

        Within the canvas, but for the last tiles of a closed axis, whose support may end, or even lie, past it.
        """
        lo = 0 if self.starts_at_edge(i) else self.ramp(i - 1)[0]
        hi = self.length if self.ends_at_edge(i) else self.ramp(i)[1]
        return lo, hi

    def tiles_in(self, lo: int, hi: int) -> range:
        """The tiles that have weight somewhere in ``[lo, hi)``, a non-empty interval of the canvas.

        On a closed axis they may begin below 0, with the last ones as they reach in from the left.
        """
        first = bisect_right(self.ramps, lo, key=_stop)
        last = bisect_left(self.ramps, hi, key=_start)
        if self.closed:  # less the seams, one turn back, that are still to come
            first -= self.n_tiles - bisect_right(self.ramps, lo + self.length, key=_stop)
            last -= self.n_tiles - bisect_left(self.ramps, hi + self.length, key=_start)
        return range(first, last + 1)

    def cells_in(self, lo: int, hi: int) -> tuple[int, ...]:
        """The cells that share a pixel with ``[lo, hi)``, a support, in ascending order."""
        turns = ((lo, min(hi, self.length)), (max(lo - self.length, 0), hi - self.length))
        # Between a tile and itself one turn further another stands alone for a cell or more: none comes twice.
        return tuple(sorted(k for a, b in turns if a < b for k in range(a // self.cell, -(-b // self.cell))))

    def cell_span(self, k: int) -> tuple[int, int]:
        """Half-open interval of cell ``k``."""
        return k * self.cell, min((k + 1) * self.cell, self.length)


def between(ramps: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The intervals between successive ramps, where one tile stands alone."""
    return [(a[1], b[0]) for a, b in pairwise(ramps)]
