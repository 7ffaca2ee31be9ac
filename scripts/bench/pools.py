"""Three ways for one job: our engine, ``ray.util.ActorPool`` and Ray Data, all with the same replicas.

The model is simulated: a stage that lasts as long as a GPU would take, asleep. Everything around it is real.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import ray
from ray.util import ActorPool

from dino_ray.engine.drive import drive
from dino_ray.engine.protocol import ImageTask, ReplicaSpec, TileCall
from dino_ray.engine.ray import RayEngine
from dino_ray.engine.ray.workers import keep_heap
from dino_ray.engine.replica import Replica, merge
from dino_ray.plan.geometry import Rect, Scaling

SCALE = 4
"""The stage repeats pixels this often."""

SLOWER = 4
"""How much longer the slow replica takes, if one is slow."""

CALLS = 2
"""At once on a replica, as in our own engine: one has the device, the other reads its source or sends its pixels."""

BLENDERS = 2
"""Threads of a driver that blends: one per core here. numpy lets go of the interpreter while it computes."""

START_S = 180.0
"""Any number of replicas that a machine can carry has started within this long."""

PATIENCE_S = 1.0
"""How long one look at the engine lasts while replicas load."""

Run = Callable[[ImageTask], float]
"""Does a job, and says how many seconds it took."""


class Stage:
    """The simulated model: an enlargement that is there when its time, spent asleep, is up.

    Parameters
    ----------
    seconds
        How long it lasts.
    slow
        Of all that are made with the same file here, the first to ask takes ``SLOWER`` times as long.
    """

    linear = True

    def __init__(self, seconds: float, slow: Path | None = None) -> None:
        self._seconds = seconds * (SLOWER if slow is not None and _is_first(slow) else 1)

    def suited(self, worn: bool) -> Self:
        return self

    def halo(self, scaling: Scaling) -> int:
        return 0

    def __call__(self, window: np.ndarray, window_rect: Rect, rect: Rect, scaling: Scaling) -> np.ndarray:
        end = time.perf_counter() + self._seconds
        y, x = rect.y // SCALE - window_rect.y, rect.x // SCALE - window_rect.x
        part = window[y : y + rect.h // SCALE, x : x + rect.w // SCALE]
        made = part.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        if self._seconds:
            time.sleep(max(0.0, end - time.perf_counter()))
        return made


def _is_first(place: Path) -> bool:
    try:
        place.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


# ---- ours


@contextmanager
def ours(spec: ReplicaSpec, replicas: int) -> Iterator[Run]:
    """Dispatch by the scheduler, merges by tasks that take tiles from the store."""

    def run(task: ImageTask) -> float:
        guide, _ = engine.prepare(task)
        while len(engine.ready) < replicas:
            engine.wait(PATIENCE_S)
        start = time.perf_counter()
        drive(engine, task, guide, lambda event: None)
        return time.perf_counter() - start

    with RayEngine(spec, least=replicas, most=replicas, gpus_per_worker=0) as engine:
        yield run


# ---- the others, whose drivers blend


class Numbered(Replica):
    """A replica for pools that hand over results without saying of which call they are."""

    def refine_numbered(self, task: ImageTask, guide: Any, tile: int) -> tuple[int, np.ndarray, float]:
        """The tile, its pixels, and when it began, by the system's clock."""
        keep_heap()
        began = time.time()
        (pixels,), _ = self.refine(task, guide, TileCall(tile, (tile,)))
        return tile, pixels, began


class Blender:
    """Merges cells in the driver, in threads, by the code of our merge tasks; keeps tiles while they are needed."""

    def __init__(self, task: ImageTask) -> None:
        self._task, self._grid = task, task.grid
        self._pixels: dict[int, np.ndarray] = {}
        self._tiles_missing = [len(self._grid.cell_tiles(cell)) for cell in range(self._grid.n_cells)]
        self._cells_left = [len(self._grid.tile_cells(tile)) for tile in range(self._grid.n_tiles)]
        self._threads = ThreadPoolExecutor(BLENDERS)
        self._merging: dict[Future[Any], int] = {}

    def __enter__(self) -> Blender:
        return self

    def __exit__(self, *exc: object) -> None:
        self._settle(wait(self._merging).done)
        self._threads.shutdown()

    def take(self, tile: int, pixels: np.ndarray) -> None:
        """A finished tile; the cells that it completes are merged."""
        self._pixels[tile] = pixels
        for cell in self._grid.tile_cells(tile):
            self._tiles_missing[cell] -= 1
            if not self._tiles_missing[cell]:
                tiles = {t: self._pixels[t] for t in self._grid.cell_tiles(cell)}
                self._merging[self._threads.submit(merge, self._task, [cell], tiles)] = cell
        self._settle([future for future in self._merging if future.done()])

    def _settle(self, ended: Iterable[Future[Any]]) -> None:
        for future in ended:
            future.result()
            for tile in self._grid.cell_tiles(self._merging.pop(future)):
                self._cells_left[tile] -= 1
                if not self._cells_left[tile]:
                    del self._pixels[tile]


@contextmanager
def actor_pool(spec: ReplicaSpec, replicas: int) -> Iterator[Run]:
    """``ray.util.ActorPool``, every actor in it ``CALLS`` times: while one call runs, the next is there already."""
    options = {"num_cpus": 1, "max_concurrency": CALLS}
    actors = [ray.remote(Numbered).options(**options).remote(spec) for _ in range(replicas)]
    ray.get([actor.load.remote() for actor in actors])
    pool = ActorPool(actors * CALLS)

    def run(task: ImageTask) -> float:
        guide, _ = ray.get(actors[0].prepare.remote(task))
        shared, guide = ray.put(task), ray.put(guide)

        def refine(actor: Any, tile: int) -> Any:
            return actor.refine_numbered.remote(shared, guide, tile)

        start = time.perf_counter()
        with Blender(task) as blender:
            for tile, pixels, _ in pool.map_unordered(refine, task.grid.tile_order()):
                blender.take(tile, pixels)
        return time.perf_counter() - start

    yield run


class RefineRow:
    """What Ray Data has an actor do with a batch, here of one tile's number."""

    def __init__(self, spec: ReplicaSpec, task: ImageTask, guide: Any) -> None:
        self._replica, self._task, self._guide = Numbered(spec), task, guide
        self._replica.load()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tile, pixels, began = self._replica.refine_numbered(self._task, self._guide, int(batch["item"][0]))
        return {"tile": np.array([tile]), "pixels": pixels[None], "began": np.array([began])}


@contextmanager
def ray_data(spec: ReplicaSpec, replicas: int) -> Iterator[Run]:
    """Ray Data: a pool of actors over a stream of rows, merged as they arrive rather than after a shuffle.

    Its actors live as long as one job, so the clock starts with the first tile that any of them begins; their
    processor time has their start in it.
    """
    import ray.data  # here, since what it imports would count as the other ways' memory

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = START_S

    def run(task: ImageTask) -> float:
        guide, _ = Replica(spec).prepare(task)
        tiles = ray.data.from_items(list(task.grid.tile_order()), override_num_blocks=task.grid.n_tiles)
        refined = tiles.map_batches(
            RefineRow,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=replicas, max_concurrent_calls_per_actor=CALLS, enable_true_multi_threading=True
            ),
            num_cpus=1,
            fn_constructor_kwargs={"spec": spec, "task": task, "guide": guide},
        )
        first = math.inf
        with Blender(task) as blender:
            for row in refined.iter_batches(batch_size=1, prefetch_batches=replicas):
                blender.take(int(row["tile"][0]), row["pixels"][0])
                first = min(first, float(row["began"][0]))
        return time.time() - first

    yield run


WAYS: Mapping[str, Callable[[ReplicaSpec, int], AbstractContextManager[Run]]] = {
    "ours": ours,
    "ActorPool": actor_pool,
    "Ray Data": ray_data,
}
LIVES_FOR_ONE_JOB = ("Ray Data",)
"""Ways that nothing can warm up."""
