"""Which piece of work goes next, to whom; what is tried again, and what is given up.

A state machine over plain integers: it knows no engine, starts nothing and keeps no time. ``drive`` feeds it
what happened and asks what to do.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from dino_ray.engine.protocol import TileCall
from dino_ray.plan.geometry import Grid

CALLS_PER_REPLICA = 2
"""One runs, one waits beside it, so that a replica never idles for the driver's round trip."""

TRIES = 3
"""A tile that failed this often on replicas that were otherwise well is poison."""

MERGES_BEHIND = 1
"""Merges per replica that may wait for their turn before no more tiles are started: a store full of tiles that
merges are too slow for helps nobody."""

MERGE_TRIES = 10
"""A merge is innocent of what befalls its node, so it is tried more often; but not for ever."""


@dataclass
class _Tile:
    """A tile that has been dispatched and not yet been merged into all of its cells."""

    cells_left: set[int]
    done: bool = False
    failures: int = 0
    refine: bool = True


@dataclass
class _Replica:
    ready: bool = False
    calls: deque[int] = field(default_factory=deque)
    """Tiles in flight on it, oldest (the one it works on) first."""
    fallen: bool = False
    """It died, and the tile it worked on is known; calls still to be reported lost only waited there."""


class Scheduler:
    """The state of one image's work.

    Parameters
    ----------
    grid
        The plan: which cell needs which tiles.
    cells_done
        Cells that the canvas holds already; what only they need is not computed.
    """

    def __init__(self, grid: Grid, cells_done: Sequence[int] = ()) -> None:
        self._grid = grid
        already = set(cells_done)
        self._order = {tile: rank for rank, tile in enumerate(grid.tile_order())}
        self._queue: list[tuple[int, int]] = []
        self._cells_left: set[int] = set(range(grid.n_cells)) - already
        needed = sorted(
            {t for c in self._cells_left for t in grid.cell_tiles(c)}, key=self._order.__getitem__
        )
        for tile in needed:
            heapq.heappush(self._queue, (self._order[tile], tile))
        self._live: dict[int, _Tile] = {}
        self._mergeable: dict[
            tuple[int, ...], list[int]
        ] = {}  # cells by the tiles they are made of, oldest first
        self._merging: dict[int, int] = {}  # cell to the number of its merge
        self._merges = 0
        self._calls = 0
        self._cell_failures: dict[int, int] = {}
        self._replicas: dict[int, _Replica] = {}
        self.tiles_to_do = len(needed)
        self.poisoned: dict[int, str] = {}
        self.refined = 0
        """Tiles whose refinement succeeded."""

    # ---- what to do

    def next_tiles(self) -> list[tuple[TileCall, int]]:
        """Calls to start now: earliest tiles first, each to the least loaded ready replica."""
        calls = []
        while self._queue:
            _, tile = self._queue[0]
            if tile not in self._live and self._has_enough_alive():
                break
            replica = self._least_loaded()
            if replica is None:
                break
            heapq.heappop(self._queue)
            state = self._live.setdefault(tile, self._new_tile(tile))
            if not state.cells_left:  # its last cell was merged while it waited here to be redone
                del self._live[tile]
                continue
            self._replicas[replica].calls.append(tile)
            self._calls += 1
            calls.append((TileCall(self._calls, (tile,), state.refine), replica))
        return calls

    def next_merges(self, at_once: int) -> list[tuple[int, ...]]:
        """Merges to start now, with no more than ``at_once`` in flight: each some cells made of the same tiles."""
        merges = []
        while self._mergeable and len(set(self._merging.values())) < at_once:
            waiting = self._mergeable.pop(next(iter(self._mergeable)))
            cells = tuple(
                cell
                for cell in dict.fromkeys(waiting)
                if cell in self._cells_left and cell not in self._merging and self._is_complete(cell)
            )
            if cells:
                self._merges += 1
                self._merging.update(dict.fromkeys(cells, self._merges))
                merges.append(cells)
        return merges

    @property
    def done(self) -> bool:
        return not self._cells_left

    def describe(self) -> str:
        """Who waits for what: one line for the diagnosis of a stuck job."""
        flying = {r: list(s.calls) for r, s in self._replicas.items() if s.calls}
        ready = [r for r, s in self._replicas.items() if s.ready]
        return (
            f"{len(self._cells_left)} cells left, {len(self._queue)} tiles queued, "
            f"in flight by replica: {flying or 'none'}, ready replicas: {ready or 'none'}, "
            f"merging: {sorted(self._merging)[:8] or 'none'}"
        )

    # ---- what happened

    def replica_ready(self, replica: int) -> None:
        state = self._replicas.setdefault(replica, _Replica())
        state.ready, state.fallen = True, False

    def replica_lost(self, replica: int) -> None:
        self._replicas.setdefault(replica, _Replica()).ready = False

    def tile_done(self, tile: int, replica: int) -> bool:
        """Returns whether anybody still needs the tile; if not, its pixels may go."""
        self._replicas[replica].calls.remove(tile)
        state = self._live.get(tile)
        if state is None:
            return False
        state.done = True
        self.refined += state.refine
        for cell in sorted(state.cells_left):
            if self._is_complete(cell):
                self._queue_merge(cell)
        return True

    def tile_lost(self, tile: int, replica: int, reason: str, *, died: bool) -> bool:
        """Queue a failed tile again.

        Parameters
        ----------
        died
            The replica went with it, and takes no calls until it is ready again.

        Returns
        -------
        bool
            True if the tile is poison from now on: it failed ``TRIES`` times while it was the one being worked on.
            Its next call asks for the base alone.
        """
        place = self._replicas[replica]
        at_work = place.calls[0] == tile and not place.fallen
        place.calls.remove(tile)
        if died:
            place.ready, place.fallen = False, True
        state = self._live.get(tile)
        if state is None:
            return False
        state.failures += at_work
        heapq.heappush(self._queue, (self._order[tile], tile))
        if not state.refine or state.failures < TRIES:
            return False
        state.refine = False
        self.poisoned[tile] = reason
        return True

    def has_failed_for_good(self, tile: int) -> bool:
        """Whether not even the base of a poisoned tile can be had."""
        return tile in self._live and self._live[tile].failures >= 2 * TRIES

    def cell_done(self, cell: int) -> list[int]:
        """Returns the tiles that nobody needs any more."""
        self._merging.pop(cell, None)
        self._cells_left.discard(cell)
        released = []
        for tile in self._grid.cell_tiles(cell):
            state = self._live[tile]
            state.cells_left.discard(cell)
            if not state.cells_left:
                del self._live[tile]
                released.append(tile)
        return released

    def cell_lost(self, cell: int, tiles_lost: bool) -> list[int]:
        """Queue a cell whose merge failed again, and, if any of its tiles may be what was lost, those first.

        Returns
        -------
        list
            The tiles to be redone.
        """
        self._merging.pop(cell, None)
        self._cell_failures[cell] = self._cell_failures.get(cell, 0) + 1
        if not tiles_lost:
            self._queue_merge(cell)
            return []
        again = [tile for tile in self._grid.cell_tiles(cell) if self._live[tile].done]
        for tile in again:
            self._live[tile].done = False
            heapq.heappush(self._queue, (self._order[tile], tile))
        return again

    def cell_has_failed_for_good(self, cell: int) -> bool:
        """Whether it is the merge itself that does not work."""
        return self._cell_failures[cell] >= MERGE_TRIES

    # ---- inside

    def _new_tile(self, tile: int) -> _Tile:
        return _Tile(cells_left={c for c in self._grid.tile_cells(tile) if c in self._cells_left})

    def _queue_merge(self, cell: int) -> None:
        self._mergeable.setdefault(self._grid.cell_tiles(cell), []).append(cell)

    def _is_complete(self, cell: int) -> bool:
        return all(t in self._live and self._live[t].done for t in self._grid.cell_tiles(cell))

    def _has_enough_alive(self) -> bool:
        replicas = max(1, len(self._replicas))
        # As many tiles as must wait for their neighbours in the best order, and those in flight: fewer could stand
        # still, more would only fill the store.
        limit = self._grid.max_waiting() + CALLS_PER_REPLICA * replicas
        return len(self._live) >= limit or len(self._mergeable) > MERGES_BEHIND * replicas

    def _least_loaded(self) -> int | None:
        free = [
            (len(state.calls), replica)
            for replica, state in self._replicas.items()
            if state.ready and len(state.calls) < CALLS_PER_REPLICA
        ]
        return min(free)[1] if free else None
