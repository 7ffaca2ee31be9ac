"""The control flow that all engines share: ask the scheduler what to do, have the engine do it, tell both what came."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dino_ray.engine.protocol import (
    DriveDone,
    Engine,
    Handle,
    ImageTask,
    Listener,
    ReplicaLost,
    TilesStarted,
)
from dino_ray.engine.scheduler import Cancel, Decision, Merge, Replace, Scheduler, Start, Stop
from dino_ray.errors import JobError

SAMPLE_BYTES = 2
"""Tiles travel as 16-bit integers."""


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
    clock
        Seconds since whenever.

    Raises
    ------
    JobError
        If the canvas can't be written, no replica is left, every tile fails, or nothing happens any more.
    """
    scheduler = Scheduler(
        task.grid,
        batch=task.batch,
        cells_done=cells_done,
        ready=engine.ready,
        tile_bytes=task.grid.xs.tile * task.grid.ys.tile * task.canvas.bands * SAMPLE_BYTES,
        now=clock(),
    )
    shared = engine.share(task)
    try:
        _check_somebody_is_left(engine)
        patience = (
            0.0  # first, how those that are ready came to be so: later, it would look like news of their end
        )
        while not scheduler.done:
            events = engine.wait(patience)
            now = clock()
            for event in events:
                for told in scheduler.hear(event, now):
                    listen(told)
                if isinstance(event, ReplicaLost):
                    _check_somebody_is_left(engine)
            if scheduler.done:
                break
            for decision in scheduler.decide(now, engine.merges_at_once):
                _perform(decision, engine, shared, guide, listen)
            patience = scheduler.patience(now)
        for told in scheduler.abandon():
            listen(told)
    finally:
        engine.settle()
    return scheduler.summary()


def _perform(decision: Decision, engine: Engine, task: Handle, guide: Handle, listen: Listener) -> None:
    match decision:
        case Start(call, replica, copy):
            engine.submit_tiles(task, guide, call, replica)
            listen(TilesStarted(call, replica, copy))
        case Cancel(call, replica):
            engine.cancel(call, replica)
        case Replace(replica, reason):
            engine.replace(replica, reason)
        case Merge(cells, tiles):
            engine.submit_merge(task, cells, tiles)
        case Stop(reason, stuck):
            raise JobError(f"{reason}; {engine.describe()}" if stuck else reason)


def _check_somebody_is_left(engine: Engine) -> None:
    if engine.hopeless is not None:
        raise JobError(f"no replica is left: {engine.hopeless}")
