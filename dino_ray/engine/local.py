"""The engine of one process: one replica, no transport. What needs no Ray, and what the Ray engine must equal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import cast

import numpy as np

from dino_ray.engine.protocol import (
    CellDone,
    DinoEffect,
    EngineEvent,
    Guide,
    Handle,
    ImageTask,
    ReplicaLost,
    ReplicaReady,
    ReplicaSpec,
    TileCall,
    TilesDone,
    TilesLost,
    Timings,
)
from dino_ray.engine.replica import Replica, merge
from dino_ray.errors import describe_error, for_user


class LocalEngine:
    """Runs every call in this process, one after the other; handles are the objects themselves."""

    replicas = 1
    merges_at_once = 1

    def __init__(self, spec: ReplicaSpec) -> None:
        self._spec = spec
        self._replica = Replica(spec)
        self._pending: deque[Callable[[], EngineEvent]] = deque()
        self._torch_before: tuple[int, bool] | None = None
        self.ready: Collection[int] = ()
        self.hopeless: str | None = None

    def __enter__(self) -> LocalEngine:
        if self._spec.torch:
            import torch

            self._torch_before = torch.get_num_threads(), torch.backends.cudnn.deterministic
        self.settle()
        return self

    def __exit__(self, *exc: object) -> None:
        self.settle()
        if self._torch_before is not None:  # the process is its owner's: leave it as it was
            import torch

            threads, torch.backends.cudnn.deterministic = self._torch_before
            torch.set_num_threads(threads)

    def prepare(self, task: ImageTask) -> tuple[Handle, Timings]:
        try:
            return self._replica.prepare(task)
        except Exception as error:
            raise for_user(error) from error

    def share(self, task: ImageTask) -> Handle:
        return task

    def submit_tiles(self, task: Handle, guide: Handle, call: TileCall, replica: int) -> None:
        def run() -> EngineEvent:
            try:
                pixels, timings = self._replica.refine(cast(ImageTask, task), cast(Guide, guide), call)
            except Exception as error:  # whatever the model raises costs this tile, not the job
                return TilesLost(call, replica, describe_error(error), "raised")
            return TilesDone(call, replica, tuple(pixels), timings)

        self._pending.append(run)

    def cancel(self, call: TileCall, replica: int) -> None:
        pass

    def replace(self, replica: int, reason: str) -> None:
        pass

    def describe(self) -> str:
        return "one replica, in this process"

    def submit_merge(self, task: Handle, cells: Sequence[int], tiles: Sequence[tuple[int, Handle]]) -> None:
        pixels = {tile: cast(np.ndarray, handle) for tile, handle in tiles}

        def run(cell: int) -> EngineEvent:
            return CellDone(cell, merge(cast(ImageTask, task), cell, pixels))

        self._pending.extend(partial(run, cell) for cell in cells)

    def dino_effect(self, task: Handle, guide: Handle, tile: int) -> DinoEffect:
        try:
            return self._replica.dino_effect(cast(ImageTask, task), cast(Guide, guide), tile)
        except Exception as error:
            raise for_user(error) from error

    def wait(self, timeout: float) -> list[EngineEvent]:
        if not self._pending:
            time.sleep(timeout)
            return []
        return [self._pending.popleft()()]

    def settle(self) -> None:
        self._pending.clear()
        if not self.ready and not self.hopeless:
            self._pending.append(
                self._load
            )  # after ``prepare``, whose encoders then need not share the memory

    def _load(self) -> EngineEvent:
        try:
            timings = self._replica.load()
        except Exception as error:
            self.hopeless = describe_error(error)
            return ReplicaLost(0, self.hopeless, for_good=True, fault="raised")
        self.ready = (0,)
        return ReplicaReady(0, timings, self._replica.device)
