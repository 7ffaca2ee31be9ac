"""What runs on Ray's workers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dino_ray.engine.protocol import DinoEffect, Guide, ImageTask, Readable, ReplicaSpec, TileCall, Timings
from dino_ray.engine.replica import Replica, merge
from dino_ray.engine.watch import Cancelled, heed
from dino_ray.errors import for_user

if TYPE_CHECKING:
    from dino_ray.plan.geometry import Rect
    from dino_ray.raster.source import SourceInfo


GLIBC_MOST_DYNAMIC = 31 << 20
"""Bytes: just below the largest block that glibc's allocator learns from, 32 MiB (mallopt(3), M_MMAP_THRESHOLD)."""

CONTROL = "control"
"""The group of an actor's methods that need neither device nor turn, and so a thread of their own."""

ASK_S = 0.1
"""How often a call that waits asks whether it is still wanted."""

P = ParamSpec("P")
T = TypeVar("T")


def sendable(function: Callable[P, T]) -> Callable[P, T]:
    """Has a function raise errors of this package and of Ray only: others may not survive the way back."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Cancelled:
            raise
        except RayTaskError as error:  # of a task that read for this one
            raise (error.cause if isinstance(error.cause, Exception) else for_user(error)) from None
        except RayError:
            raise
        except Exception as error:
            raise for_user(error) from None

    return run


@dataclass(frozen=True)
class _Image:
    number: int
    task: ImageTask
    guide: Guide


class RayReplica(Replica):
    """A replica as an actor.

    Parameters
    ----------
    name
        What Ray's dashboard is to call it.
    """

    _name = "replica"  # Ray asks for it even where making the replica failed

    def __init__(self, spec: ReplicaSpec, name: str) -> None:
        super().__init__(spec)
        self._name = name
        self._image: _Image | None = None
        self._image_came = threading.Condition()

    def __repr__(self) -> str:
        return self._name

    def node(self) -> str:
        """Id of the node that it lives on; that it answers says that its process runs."""
        return str(ray.get_runtime_context().get_node_id())

    @sendable
    def load_here(self) -> tuple[str, Timings]:
        """Load, and name the device."""
        keep_heap()
        timings = self.load()
        return self.device, timings

    @sendable
    def prepare_here(self, task: ImageTask) -> tuple[Guide, Timings]:
        return self.prepare(task, asked_to_stop)

    def begin(self, number: int, task: ImageTask, guide: Guide) -> None:
        """Take what the tiles of an image have in common; with every call, it would cost as much as a small tile."""
        with self._image_came:
            self._image = _Image(number, task, guide)
            self._image_came.notify_all()

    @sendable
    def refine_here(self, number: int, call: TileCall) -> tuple[Any, ...]:
        """Refine tiles of the image of that number, which ``begin`` brings, maybe a little later.

        Returns
        -------
        tuple
            The pixels of each tile, and the timings: a return of its own each, so that pixels stay in the store.
        """
        image = self._await_image(number)
        pixels, timings = self.refine(image.task, image.guide, call, asked_to_stop)
        return (*pixels, timings)

    @sendable
    def dino_effect_here(self, task: ImageTask, guide: Guide, tile: int) -> DinoEffect:
        return self.dino_effect(task, guide, tile)

    def _await_image(self, number: int) -> _Image:
        while True:
            with self._image_came:
                self._image_came.wait_for(
                    lambda: self._image is not None and self._image.number >= number, ASK_S
                )
                image = self._image
            heed(asked_to_stop)
            if image is not None and image.number == number:
                return image
            if image is not None and image.number > number:
                raise Cancelled("its image is over")


def asked_to_stop() -> bool:
    """Whether the driver has cancelled the call that this worker works on; Ray can't interrupt it by itself."""
    return bool(ray.get_runtime_context().is_canceled())


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
    return _light(function).options(scheduling_strategy=where, name=name)


@lru_cache(maxsize=16)
def _light(function: Callable[..., Any]) -> Any:
    """Made once for each function: Ray sends a function's code around again for every new one."""
    return ray.remote(num_cpus=0, max_retries=0)(function)


def read_task(source: Readable, rect: Rect) -> np.ndarray:
    return source.read(rect)


def copy_task(value: T) -> T:
    """A copy of a value in the store of the node that this runs on."""
    return value


@sendable
def merge_task(task: ImageTask, cells: Sequence[int], numbers: Sequence[int], *pixels: Any) -> list[Timings]:
    keep_heap()
    return merge(task, cells, dict(zip(numbers, pixels, strict=True)))


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
