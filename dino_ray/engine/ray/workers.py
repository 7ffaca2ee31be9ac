"""What runs on Ray's workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dino_ray.engine.protocol import Guide, ImageTask, Readable, TileCall, Timings
from dino_ray.engine.replica import Replica, merge
from dino_ray.errors import for_user

if TYPE_CHECKING:
    from dino_ray.plan.geometry import Rect
    from dino_ray.raster.source import SourceInfo


GLIBC_MOST_DYNAMIC = 31 << 20
"""Bytes: just below the largest block that glibc's allocator learns from, 32 MiB (mallopt(3), M_MMAP_THRESHOLD)."""

P = ParamSpec("P")
T = TypeVar("T")


def sendable(function: Callable[P, T]) -> Callable[P, T]:
    """Has a function raise errors of this package only: others may not survive the way back."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise for_user(error) from None

    return run


class RayReplica(Replica):
    """A replica that also says where it lives."""

    @sendable
    def load_here(self) -> tuple[str, str, Timings]:
        """Load, and name the node and the device."""
        keep_heap()
        timings = self.load()
        return ray.get_runtime_context().get_node_id(), self.device, timings

    prepare = sendable(Replica.prepare)

    @sendable
    def refine(self, task: ImageTask, guide: Guide, call: TileCall) -> tuple[Any, ...]:
        """The pixels of each tile, and the timings: a return of its own each, so that pixels stay in the store."""
        pixels, timings = super().refine(task, guide, call)
        return (*pixels, timings)

    dino_effect = sendable(Replica.dino_effect)


@dataclass(frozen=True)
class FarSource:
    """A source on another node's disk: windows are read by tasks there and come through the object store."""

    source: Readable
    node: str

    @property
    def info(self) -> SourceInfo:
        return self.source.info

    def read(self, rect: Rect) -> np.ndarray:
        return cast(np.ndarray, ray.get(light(read_task, "read", self.node).remote(self.source, rect)))


def light(function: Callable[..., Any], name: str, node: str | None = None) -> Any:
    """A function as a task that asks for no resources and is not retried by Ray.

    Parameters
    ----------
    node
        Where it has to run; None: anywhere, best where its arguments are.
    """
    where = "DEFAULT" if node is None else NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=where, name=name)


def read_task(source: Readable, rect: Rect) -> np.ndarray:
    return source.read(rect)


@sendable
def merge_task(task: ImageTask, cells: Sequence[int], numbers: Sequence[int], *pixels: Any) -> list[Timings]:
    keep_heap()
    tiles = dict(zip(numbers, pixels, strict=True))
    return [merge(task, cell, tiles) for cell in cells]


def nothing() -> None:
    """Imports this module on a worker; that was the point."""


@lru_cache(maxsize=1)
def keep_heap() -> None:
    """Have this process keep the memory that it frees, up to 64 MB, for its next arrays.

    On Linux, arrays of some MB would go back to the kernel each time, and the page faults for the next ones cost more
    than the arithmetic on them. glibc stops that for blocks as large as one that was freed before; so free a large
    one, whose pages were never touched.
    """
    np.empty(GLIBC_MOST_DYNAMIC, np.uint8)
