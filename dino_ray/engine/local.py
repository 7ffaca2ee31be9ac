"""The engine of one process: one replica, no transport. What needs no Ray, and what the Ray engine must equal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import cast

import numpy as np

from dino_ray.engine.protocol import (
    CellDone,
    DinoEffect,
    Event,
    Guide,
    Handle,
    ImageTask,
    ReplicaReady,
    ReplicaSpec,
    TileCall,
    TileDone,
    TileLost,
    Timings,
)
from dino_ray.engine.replica import Replica, merge


class LocalEngine:
    """Runs every call in this process, one after the other; handles are the objects themselves."""

    replicas = 1
    merges_at_once = 1

    def __init__(self, spec: ReplicaSpec) -> None:
        self._spec = spec
        self._replica = Replica(spec)
        self._pending: deque[Callable[[], Event]] = deque()
        self._threads: int | None = None
        self.ready: Collection[int] = ()

    def __enter__(self) -> LocalEngine:
        if self._spec.torch:
            import torch

            self._threads = torch.get_num_threads()
        self.settle()
        return self

    def __exit__(self, *exc: object) -> None:
        self.settle()
        if self._threads is not None:  # the process is its owner's: leave it as it was
            import torch

            torch.set_num_threads(self._threads)

    def prepare(self, task: ImageTask) -> tuple[Handle, Timings]:
        return self._replica.prepare(task)

    def share(self, task: ImageTask) -> Handle:
        return task

    def submit_tile(self, task: Handle, guide: Handle, call: TileCall, replica: int) -> None:
        def run() -> Event:
            try:
                pixels, timings = self._replica.refine(cast(ImageTask, task), cast(Guide, guide), call)
            except Exception as error:  # whatever the model raises costs this tile, not the job
                return TileLost(call.tile, replica, describe_error(error), replica_died=False)
            return TileDone(call.tile, replica, pixels, timings)

        self._pending.append(run)

    def submit_cell(self, task: Handle, cell: int, tiles: Sequence[tuple[int, Handle]]) -> None:
        def run() -> Event:
            pixels = {tile: cast(np.ndarray, handle) for tile, handle in tiles}
            return CellDone(cell, merge(cast(ImageTask, task), cell, pixels))

        self._pending.append(run)

    def dino_effect(self, task: Handle, guide: Handle, tile: int) -> DinoEffect:
        return self._replica.dino_effect(cast(ImageTask, task), cast(Guide, guide), tile)

    def wait(self, timeout: float) -> list[Event]:
        return [self._pending.popleft()()] if self._pending else []

    def settle(self) -> None:
        self._pending.clear()
        if not self.ready:
            self._pending.append(
                self._load
            )  # after ``prepare``, whose encoders then need not share the memory

    def _load(self) -> Event:
        timings = self._replica.load()
        self.ready = (0,)
        return ReplicaReady(0, timings)


def describe_error(error: BaseException) -> str:
    """An exception as one line: its kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
