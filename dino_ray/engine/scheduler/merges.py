"""Cells on their way to the canvas: which wait, which are being merged, which go together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

Tiles = tuple[int, ...]

MOST_TILES = 16
"""In one merge: all of them are in its process's memory and have to come to its machine, and Ray's wide merges can
block one another, as received copies can't be spilled (ray #62093)."""

MOST_BYTES = 64 << 20
"""Of tile pixels in one merge of several groups of cells: a merge of that size takes long enough that starting it
costs nothing beside it."""


class Merges:
    """Cells by the tiles they are made of: those of the same tiles always go together.

    Parameters
    ----------
    tile_bytes
        Size of one tile's pixels.
    """

    def __init__(self, tile_bytes: int = 0) -> None:
        self.most_tiles = max(1, min(MOST_TILES, MOST_BYTES // tile_bytes if tile_bytes else MOST_TILES))
        """In one merge of several groups of cells."""
        self._waiting: dict[Tiles, dict[int, None]] = {}  # both oldest first
        self._by_tile: dict[int, dict[Tiles, None]] = {}
        self._running: dict[int, int] = {}  # cell to the number of its merge
        self._left: dict[int, int] = {}  # number of a merge to its cells in flight
        self._started = 0
        self.failures: dict[int, int] = {}
        """Of cells, how often their merge was lost."""

    @property
    def waiting(self) -> int:
        """Groups of cells that wait for a merge."""
        return len(self._waiting)

    @property
    def tiles_waiting(self) -> int:
        """Tiles that those groups are made of."""
        return len(self._by_tile)

    @property
    def in_flight(self) -> int:
        """Merges."""
        return len(self._left)

    def add(self, cell: int, tiles: Tiles) -> None:
        """All tiles of a cell are there."""
        if cell in self._running:
            return
        self._waiting.setdefault(tiles, {})[cell] = None
        for tile in tiles:
            self._by_tile.setdefault(tile, {})[tiles] = None

    def withhold(self, tile: int) -> None:
        """A tile's pixels are lost: what waits for a merge and is made of it is no longer ready."""
        for tiles in list(self._by_tile.get(tile, ())):
            self._remove(tiles)

    def ended(self, cell: int) -> None:
        """A cell's merge ended, one way or the other."""
        number = self._running.pop(cell, None)
        if number is None:
            return
        self._left[number] -= 1
        if not self._left[number]:
            del self._left[number]

    def lost(self, cell: int) -> int:
        """A cell's merge was lost; returns how often that was so far."""
        self.ended(cell)
        self.failures[cell] = self.failures.get(cell, 0) + 1
        return self.failures[cell]

    def start(self, at_once: int, *, patient: bool = False) -> list[tuple[tuple[int, ...], Tiles]]:
        """Cells and tiles of the merges to start now, with no more than ``at_once`` in flight.

        Where there is room for all groups that wait, each goes alone, which is fastest. Where not, they are shared
        out among the merges that there is room for: first the one that waits longest, then those that share tiles
        with it, then those that come next.

        Parameters
        ----------
        patient
            More tiles are about to come. What waits goes together then, and while a merge is in flight, only as much
            as fills one: starting a merge costs more than merging a small tile does.
        """
        room = at_once - self.in_flight
        if patient:
            room = min(room, max(self.tiles_waiting // self.most_tiles, 1 - self.in_flight))
        if room <= 0 or not self._waiting:
            return []
        share = -(-len(self._waiting) // room)
        started: list[tuple[tuple[int, ...], Tiles]] = []
        while self._waiting and len(started) < room:
            groups, tiles = self._take(share)
            cells = tuple(cell for group in groups for cell in group)
            self._started += 1
            self._running.update(dict.fromkeys(cells, self._started))
            self._left[self._started] = len(cells)
            started.append((cells, tiles))
        return started

    def running(self) -> list[int]:
        """Cells that are being merged, the longest first."""
        return list(self._running)

    def _take(self, share: int) -> tuple[list[dict[int, None]], Tiles]:
        """Up to ``share`` groups of cells, and all of their tiles."""
        oldest = next(iter(self._waiting))
        union = dict.fromkeys(oldest)
        groups = [self._remove(oldest)]
        if self._failed_before(groups[0]):  # whatever ends its merges must not take others along
            return groups, oldest
        while len(groups) < share:
            fitting = (
                tiles
                for tiles in self._near(union)
                if len(union.keys() | tiles) <= self.most_tiles
                and not self._failed_before(self._waiting[tiles])
            )
            if (tiles := next(fitting, None)) is None:
                break
            union |= dict.fromkeys(tiles)
            groups.append(self._remove(tiles))
        return groups, tuple(union)

    def _near(self, union: dict[int, None]) -> Iterator[Tiles]:
        for tile in union:
            yield from self._by_tile.get(tile, ())
        yield from islice(self._waiting, 1)

    def _failed_before(self, group: dict[int, None]) -> bool:
        return bool(self.failures) and any(cell in self.failures for cell in group)

    def _remove(self, tiles: Tiles) -> dict[int, None]:
        for tile in tiles:
            of_tile = self._by_tile[tile]
            del of_tile[tiles]
            if not of_tile:
                del self._by_tile[tile]
        return self._waiting.pop(tiles)
