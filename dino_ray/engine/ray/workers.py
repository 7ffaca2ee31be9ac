"""What runs on Ray's workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dino_ray.engine.protocol import ImageTask, Readable, Timings
from dino_ray.engine.replica import Replica, merge
from dino_ray.errors import for_user

if TYPE_CHECKING:
    import numpy as np

    from dino_ray.plan.geometry import Rect
    from dino_ray.raster.source import SourceInfo


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
    def load_here(self) -> tuple[str, Timings]:
        """Load, and name the node."""
        return ray.get_runtime_context().get_node_id(), self.load()

    prepare = sendable(Replica.prepare)
    refine = sendable(Replica.refine)
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
        return cast("np.ndarray", ray.get(pinned(read_task, self.node, "read").remote(self.source, rect)))


def pinned(function: Callable[..., Any], node: str, name: str) -> Any:
    """A function as a task of one node, which asks for no resources and is not retried by Ray."""
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=where, name=name)


def read_task(source: Readable, rect: Rect) -> np.ndarray:
    return source.read(rect)


@sendable
def merge_task(task: ImageTask, cell: int, numbers: list[int], *pixels: Any) -> Timings:
    return merge(task, cell, dict(zip(numbers, pixels, strict=True)))


def nothing() -> None:
    """Imports this module on a worker; that was the point."""
