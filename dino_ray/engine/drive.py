"""The control flow that all engines share: ask the scheduler what to do, have the engine do it, tell both what came."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dino_ray.engine.protocol import (
    CellDone,
    CellLost,
    DriveDone,
    Engine,
    Event,
    Handle,
    ImageTask,
    Listener,
    ReplicaLost,
    ReplicaReady,
    TilePoisoned,
    TilesDone,
    TilesLost,
    TilesStarted,
)
from dino_ray.engine.scheduler import Scheduler
from dino_ray.errors import JobError

POLL_S = 1.0
"""How long one wait blocks: short enough that an interrupt is felt at once."""

NO_PROGRESS_S = 1800.0
"""Nothing got done for this long: longer than any model takes to load or any tile to refine."""

PROGRESS = (ReplicaReady, TilesDone, CellDone)

POISONED_BEFORE_DOUBT = 3
"""With so many tiles poisoned and not one refined, it is the model that does not work, not the tiles."""


def drive(
    engine: Engine,
    task: ImageTask,
    guide: Handle,
    listen: Listener,
    *,
    cells_done: Sequence[int] = (),
    clock: Callable[[], float] = time.monotonic,
) -> DriveDone:
    """Refine the tiles of one image and merge them into its canvas.

    Parameters
    ----------
    engine
        Open, with its replicas loading or ready.
    task, guide
        The image, and what ``engine.prepare`` made of it.
    listen
        Called with every event, in this thread.
    cells_done
        Cells that the canvas holds already.

    Raises
    ------
    JobError
        If the canvas can't be written, no replica is left, every tile fails, or nothing happens any more.
    """
    run = _Run(engine, task, guide, listen, Scheduler(task.grid, cells_done))
    last = clock()
    try:
        run.check_somebody_is_left()
        while not run.scheduler.done:
            run.start_what_can_start()
            events = engine.wait(POLL_S)
            for event in events:
                run.handle(event)
            if any(isinstance(event, PROGRESS) for event in events):
                last = clock()
            elif clock() - last > NO_PROGRESS_S:
                raise JobError(f"nothing got done for {NO_PROGRESS_S:.0f} s: {run.scheduler.describe()}")
    finally:
        engine.settle()
    return DriveDone(run.tile_calls, run.retries, run.scheduler.poisoned)


class _Run:
    """One image's way through an engine: the pixels that wait for a merge, and what has been counted."""

    def __init__(
        self, engine: Engine, task: ImageTask, guide: Handle, listen: Listener, scheduler: Scheduler
    ) -> None:
        self.engine, self.listen, self.scheduler = engine, listen, scheduler
        self.grid, self.task, self.guide = task.grid, engine.share(task), guide
        self.pixels: dict[int, Handle] = {}
        self.tile_calls = 0
        self.retries = 0
        for replica in engine.ready:
            scheduler.replica_ready(replica)

    def start_what_can_start(self) -> None:
        for cells in self.scheduler.next_merges(self.engine.merges_at_once):
            tiles = [(tile, self.pixels[tile]) for tile in self.grid.cell_tiles(cells[0])]
            self.engine.submit_merge(self.task, cells, tiles)
        for call, replica in self.scheduler.next_tiles():
            self.engine.submit_tiles(self.task, self.guide, call, replica)
            self.tile_calls += 1
            self.listen(TilesStarted(call, replica))

    def handle(self, event: Event) -> None:
        self.listen(event)
        match event:
            case ReplicaReady(replica):
                self.scheduler.replica_ready(replica)
            case ReplicaLost(replica):
                self.scheduler.replica_lost(replica)
                self.check_somebody_is_left()
            case TilesDone(call, replica, pixels):
                if self.scheduler.tile_done(call.tiles[0], replica):
                    self.pixels[call.tiles[0]] = pixels[0]
            case TilesLost(call, replica, reason, fault):
                self.retries += 1
                tile = call.tiles[0]
                if self.scheduler.tile_lost(tile, replica, reason, died=fault != "raised"):
                    self._poison(tile, reason)
                elif self.scheduler.has_failed_for_good(tile):
                    raise JobError(f"tile {tile} fails even without the model: {reason}")
            case CellDone(cell):
                for tile in self.scheduler.cell_done(cell):
                    self.pixels.pop(tile, None)
            case CellLost(cell, reason, tiles_lost):
                again = self.scheduler.cell_lost(cell, tiles_lost)
                self.retries += len(again)
                if self.scheduler.cell_has_failed_for_good(cell):
                    raise JobError(f"cell {cell} can't be merged: {reason}")
                for tile in again:
                    self.pixels.pop(tile, None)
            case _:
                pass

    def _poison(self, tile: int, reason: str) -> None:
        suspicious = min(POISONED_BEFORE_DOUBT, self.scheduler.tiles_to_do)
        if self.scheduler.refined == 0 and len(self.scheduler.poisoned) >= suspicious:
            raise JobError(f"the model fails on every tile it was given: {reason}")
        self.listen(TilePoisoned(tile, reason))

    def check_somebody_is_left(self) -> None:
        if self.engine.hopeless is not None:
            raise JobError(f"no replica is left: {self.engine.hopeless}")
