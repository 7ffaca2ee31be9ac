"""The engine of one process: one replica, no transport. What needs no Ray, and what the Ray engine must equal.

On processors one thing is done after the other. A GPU would wait meanwhile: there calls run beside what this thread
does, two at once, of which one has the GPU, and the other comes from it or is on the way to it.
"""

from __future__ import annotations

import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np

from dino_ray.engine.protocol import (
    CellDone,
    DinoEffect,
    EngineEvent,
    Fault,
    Guide,
    Handle,
    ImageTask,
    ReplicaLoading,
    ReplicaLost,
    ReplicaPlaced,
    ReplicaReady,
    ReplicaSpec,
    TileCall,
    TilesDone,
    TilesLost,
    Timings,
)
from dino_ray.engine.replica import Replica, merge
from dino_ray.engine.thrift import free
from dino_ray.engine.watch import Cancelled, Stop, never
from dino_ray.errors import describe_error, for_user

CALLS_AT_ONCE = 2
"""Beside this thread: one that has the GPU, and one that comes or goes."""


@dataclass(frozen=True)
class _Waiting:
    """A piece of work whose turn has not come."""

    run: Callable[[Stop], EngineEvent]
    call: TileCall | None = None
    """What it is, if it is a call."""


@dataclass(frozen=True)
class _AtWork:
    """A call that runs beside this thread."""

    call: TileCall
    end: Future[EngineEvent]
    stop: threading.Event


class LocalEngine:
    """Runs every call in this process; handles are the objects themselves."""

    replicas = 1
    merges_at_once = 1

    def __init__(self, spec: ReplicaSpec) -> None:
        self._spec = spec
        self._replica = Replica(spec)
        self._queue: deque[_Waiting] = deque()
        self._ended: list[EngineEvent] = []
        self._at_work: list[_AtWork] = []
        self._threads = ThreadPoolExecutor(CALLS_AT_ONCE, "replica")
        self._torch_before: tuple[int, bool] | None = None
        self.ready: Collection[int] = ()
        self.hopeless: str | None = None

    # ---- life

    def __enter__(self) -> LocalEngine:
        if self._spec.torch:
            import torch

            self._torch_before = torch.get_num_threads(), torch.backends.cudnn.deterministic
        self._place()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop_work()
        self._threads.shutdown()
        self._threads = ThreadPoolExecutor(CALLS_AT_ONCE, "replica")
        self._queue.clear()
        self._ended.clear()
        self.ready = ()
        self._replica = Replica(self._spec)
        if (
            self._torch_before is not None
        ):  # the process is its owner's: leave it, and its GPU's memory, as it was
            import torch

            free()
            threads, torch.backends.cudnn.deterministic = self._torch_before
            torch.set_num_threads(threads)

    def _place(self) -> None:
        """Have a replica loaded by the first ``wait``: after ``prepare``, whose encoders then need not share the
        memory.
        """
        self._ended += [ReplicaPlaced(0, platform.node()), ReplicaLoading(0)]
        self._queue.appendleft(_Waiting(self._load))

    def _load(self, stop: Stop) -> EngineEvent:
        try:
            timings = self._replica.load()
        except Exception as error:
            self.hopeless = describe_error(error)
            return ReplicaLost(0, self.hopeless, for_good=True, fault="raised")
        self.ready = (0,)
        return ReplicaReady(0, timings, self._replica.device)

    def replace(self, replica: int, reason: str) -> None:
        for work in self._at_work:  # and is not waited for: it does not answer
            work.stop.set()
        self._ended += [TilesLost(work.call, replica, reason, "died") for work in self._at_work]
        self._at_work.clear()
        self._threads.shutdown(wait=False)
        self._threads = ThreadPoolExecutor(CALLS_AT_ONCE, "replica")
        self._lose(lambda call: True, reason, "died")
        self._ended.append(ReplicaLost(replica, reason))
        self.ready = ()
        self._replica = Replica(self._spec)
        self._place()

    def settle(self) -> None:
        self._stop_work()
        self._ended = [event for event in self._ended if not isinstance(event, TilesLost)]
        self._queue = deque(work for work in self._queue if work.run == self._load)

    def describe(self) -> str:
        return f"one replica, in this process on {platform.node()}"

    # ---- work

    def prepare(self, task: ImageTask) -> tuple[Handle, Timings]:
        try:
            return self._replica.prepare(task)
        except Exception as error:
            raise for_user(error) from error

    def share(self, task: ImageTask) -> Handle:
        return task

    def submit_tiles(self, task: Handle, guide: Handle, call: TileCall, replica: int) -> None:
        def run(stop: Stop) -> EngineEvent:
            try:
                pixels, timings = self._replica.refine(cast(ImageTask, task), cast(Guide, guide), call, stop)
            except Cancelled as error:
                return TilesLost(call, replica, describe_error(error), "cancelled")
            except Exception as error:  # whatever the model raises costs these tiles, not the job
                return TilesLost(call, replica, describe_error(error), "raised")
            return TilesDone(call, replica, tuple(pixels), timings)

        self._queue.append(_Waiting(run, call))

    def cancel(self, call: TileCall, replica: int) -> None:
        for (
            work
        ) in self._at_work:  # none on processors: calls run within ``wait``, in the thread that says this
            if work.call.number == call.number:
                work.stop.set()
        self._lose(lambda waiting: waiting.number == call.number, "cancelled", "cancelled")

    def _lose(self, which: Callable[[TileCall], bool], reason: str, fault: Fault) -> None:
        """End waiting calls."""
        lost = [work for work in self._queue if work.call and which(work.call)]
        self._queue = deque(work for work in self._queue if work not in lost)
        self._ended += [TilesLost(work.call, 0, reason, fault) for work in lost if work.call]

    def submit_merge(self, task: Handle, cells: Sequence[int], tiles: Sequence[tuple[int, Handle]]) -> None:
        pixels = {tile: cast(np.ndarray, handle) for tile, handle in tiles}

        def run(cell: int, stop: Stop) -> EngineEvent:
            return CellDone(cell, *merge(cast(ImageTask, task), [cell], pixels))

        self._queue.extend(_Waiting(partial(run, cell)) for cell in cells)

    def dino_effect(self, task: Handle, guide: Handle, tile: int) -> DinoEffect:
        try:
            return self._replica.dino_effect(cast(ImageTask, task), cast(Guide, guide), tile)
        except Exception as error:
            raise for_user(error) from error

    def wait(self, timeout: float) -> list[EngineEvent]:
        if self._replica.overlaps:
            self._start_calls()
        if self._ended:
            ended, self._ended = self._ended, []
            return ended
        here = next((work for work in self._queue if not self._beside(work)), None)
        if here is not None:
            self._queue.remove(here)
            return [here.run(never)]
        if not self._at_work:
            time.sleep(timeout)
            return []
        futures.wait([work.end for work in self._at_work], timeout, futures.FIRST_COMPLETED)
        return self._collect()

    def _beside(self, work: _Waiting) -> bool:
        """Whether it runs beside this thread."""
        return work.call is not None and self._replica.overlaps

    def _start_calls(self) -> None:
        self._ended += self._collect()
        for work in [work for work in self._queue if self._beside(work)][
            : CALLS_AT_ONCE - len(self._at_work)
        ]:
            assert work.call is not None
            self._queue.remove(work)
            stop = threading.Event()
            self._at_work.append(_AtWork(work.call, self._threads.submit(work.run, stop.is_set), stop))

    def _collect(self) -> list[EngineEvent]:
        """What has ended beside this thread."""
        ended = [work for work in self._at_work if work.end.done()]
        self._at_work = [work for work in self._at_work if work not in ended]
        return [work.end.result() for work in ended]

    def _stop_work(self) -> None:
        """End the calls that are at work, and forget them."""
        for work in self._at_work:
            work.stop.set()
        futures.wait([work.end for work in self._at_work])
        self._at_work.clear()
