"""The engine of a cluster, one machine or many: replicas are actors, merges are tasks, tiles stay in the object store.

The only module that imports ray. Ray restarts actors; work is retried by the scheduler, since Ray's own retries
are pinned to one actor and would wait for it while others idle.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dino_ray.engine.local import describe_error
from dino_ray.engine.protocol import (
    CellDone,
    CellLost,
    DinoEffect,
    Event,
    Handle,
    ImageTask,
    ReplicaLost,
    ReplicaReady,
    ReplicaSpec,
    TileCall,
    TileDone,
    TileLost,
    Timings,
)
from dino_ray.engine.replica import Replica, merge
from dino_ray.errors import DinoRayError, JobError, UsageError

log = logging.getLogger(__name__)

PROCESS_FAULTS = (
    RayActorError,
    NodeDiedError,
    WorkerCrashedError,
    OutOfMemoryError,
    ObjectLostError,
)
"""A worker, its node or its output is gone: the work itself is not to blame. They share no useful base class."""

RECREATIONS = 3
"""How often a replica whose actor Ray has given up is made anew before it counts as lost for good."""

MERGES_PER_CPU = 2
"""In flight: one runs, one has its worker and its tiles ready."""

MOST_WARM = 4
"""Merge workers to warm up: enough to keep up with any pool, at 150 MB each."""


@dataclass(frozen=True)
class Cluster:
    """What there is to place replicas on."""

    cpus: float
    gpus: float


class RayEngine:
    """Model replicas and merge tasks on a Ray cluster.

    Parameters
    ----------
    spec
        What a replica loads.
    address
        ``local`` starts a Ray of its own, on loopback, and stops it at the end; anything else is handed to
        ``ray.init``.
    workers
        Number of replicas; None for as many as the cluster's GPUs (or, without any, CPUs) carry.
    most
        More replicas than this would idle: the number of tiles of the largest image.
    gpus_per_worker
        GPUs each replica holds; None for one where the cluster has GPUs, else 0.

    Raises
    ------
    UsageError
        From ``__enter__``, if the cluster can't be reached or can't ever place the replicas.
    """

    def __init__(
        self,
        spec: ReplicaSpec,
        *,
        address: str = "local",
        workers: int | None = None,
        most: int = 4096,
        gpus_per_worker: float | None = None,
    ) -> None:
        self._spec, self._address = spec, address
        self._workers, self._most, self._gpus = workers, most, gpus_per_worker
        self._owns_ray = False
        self._actors: list[Any] = []
        self._recreated: list[int] = []
        self._loads: dict[Any, int] = {}
        self._tiles: dict[Any, tuple[int, int, Any]] = {}  # timings' ref → tile, replica, pixels' ref
        self._cells: dict[Any, int] = {}
        self._ready: set[int] = set()
        self._warm: list[Any] = []
        self._unheard: list[Event] = []

    # ---- life

    def __enter__(self) -> RayEngine:
        self._owns_ray = _connect(self._address)
        node = ray.get_runtime_context().get_node_id()
        cluster = _resources(next(n["Resources"] for n in ray.nodes() if n["NodeID"] == node))
        if self._gpus is None:
            self._gpus = 1.0 if cluster.gpus >= 1 else 0.0
        self._workers = _replica_count(self._workers, self._most, cluster, self._gpus, self._spec.threads)
        self.merges_at_once = max(2, int(cluster.cpus) * MERGES_PER_CPU)
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        # Merges write to the job's folder, which is this machine's; they ask for no CPU, because the replicas
        # may hold them all, and a merge that waits for a replica to end would wait for ever.
        self._merge = ray.remote(_merge).options(
            num_cpus=0, max_retries=0, scheduling_strategy=here, name="merge"
        )
        self._here = here
        # Merge workers import their libraries while the replicas load, not when the first cell waits for them.
        warm_up = ray.remote(_nothing).options(num_cpus=0, scheduling_strategy=here, name="warm up")
        self._warm = [warm_up.remote() for _ in range(min(self._workers, MOST_WARM))]
        for replica in range(self._workers):
            self._actors.append(self._new_actor(replica))
            self._recreated.append(0)
            if replica > 0:  # the first one prepares the image before it loads
                self._load(replica)
        return self

    def __exit__(self, *exc: object) -> None:
        self.settle()
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()
        self._ready.clear()
        if self._owns_ray:
            ray.shutdown()

    @property
    def replicas(self) -> int:
        return len(self._actors)

    @property
    def ready(self) -> Collection[int]:
        return frozenset(self._ready)

    # ---- work

    def prepare(self, task: ImageTask) -> tuple[Handle, Timings]:
        reason = ""
        for attempt in range(RECREATIONS):
            replica = attempt % len(self._actors)
            guide, timings = self._actors[replica].prepare.options(num_returns=2).remote(task)
            if 0 not in self._ready and 0 not in self._loads.values():
                self._load(0)
            try:
                return guide, cast(Timings, ray.get(timings))
            except RayTaskError as error:
                raise _cause(error) from error
            except PROCESS_FAULTS as error:
                reason = describe_fault(error)
                self._unheard.append(self._revive(replica, error))
        raise JobError(f"the image can't be prepared: {reason}")

    def share(self, task: ImageTask) -> Handle:
        return ray.put(task)

    def submit_tile(self, task: Handle, guide: Handle, call: TileCall, replica: int) -> None:
        method = self._actors[replica].refine.options(num_returns=2, name=f"tile {call.tile}")
        pixels, timings = method.remote(task, guide, call)
        self._tiles[timings] = (call.tile, replica, pixels)

    def submit_cell(self, task: Handle, cell: int, tiles: Sequence[tuple[int, Handle]]) -> None:
        numbers = [tile for tile, _ in tiles]
        self._cells[self._merge.remote(task, cell, numbers, *[handle for _, handle in tiles])] = cell

    def dino_effect(self, task: Handle, guide: Handle, tile: int) -> DinoEffect:
        replica = min(self._ready, default=0)
        effect = self._actors[replica].dino_effect.remote(task, guide, tile)
        try:
            return cast(DinoEffect, ray.get(effect))
        except (RayTaskError, *PROCESS_FAULTS) as error:  # a measurement is not worth the image
            log.warning("the effect of DINO could not be measured: %s", describe_fault(error))
            return DinoEffect(tile, None, 0.0)

    def wait(self, timeout: float) -> list[Event]:
        if self._unheard:
            events, self._unheard = self._unheard, []
            return events
        pending = [*self._loads, *self._tiles, *self._cells]
        if not pending:
            time.sleep(timeout)
            return []
        if not ray.wait(pending, timeout=timeout)[0]:
            return []
        ready = set(ray.wait(pending, num_returns=len(pending), timeout=0)[0])
        # In the order of submission: of two calls of a dead replica, the older one was at work.
        return [event for ref in pending if ref in ready for event in self._end(ref)]

    def settle(self) -> None:
        for ref in [*self._tiles, *self._cells]:
            ray.cancel(ref)
        self._tiles.clear()
        self._cells.clear()

    # ---- inside

    def _new_actor(self, replica: int) -> Any:
        gpus = self._gpus or 0.0
        return (
            ray.remote(Replica)
            .options(
                num_gpus=gpus,
                num_cpus=0 if gpus else self._spec.threads,
                max_restarts=-1,
                max_task_retries=0,
                scheduling_strategy=self._here,
            )
            .remote(self._spec)
        )

    def _load(self, replica: int) -> None:
        self._loads[self._actors[replica].load.remote()] = replica

    def _end(self, ref: Any) -> list[Event]:
        if ref in self._loads:
            return [self._end_load(ref)]
        if ref in self._tiles:
            return self._end_tile(ref)
        return [self._end_cell(ref)] if ref in self._cells else []

    def _end_load(self, ref: Any) -> Event:
        replica = self._loads.pop(ref)
        try:
            timings = cast(Timings, ray.get(ref))
        except RayTaskError as error:
            cause = _cause(error)
            return ReplicaLost(replica, str(cause), for_good=True)
        except PROCESS_FAULTS as error:
            return self._revive(replica, error)
        self._ready.add(replica)
        self._recreated[replica] = 0
        return ReplicaReady(replica, timings)

    def _end_tile(self, ref: Any) -> list[Event]:
        tile, replica, pixels = self._tiles.pop(ref)
        try:
            return [TileDone(tile, replica, pixels, cast(Timings, ray.get(ref)))]
        except RayTaskError as error:
            return [TileLost(tile, replica, describe_error(_cause(error)), replica_died=False)]
        except PROCESS_FAULTS as error:
            lost = TileLost(tile, replica, describe_fault(error), replica_died=True)
            return [lost, self._revive(replica, error)] if replica in self._ready else [lost]

    def _end_cell(self, ref: Any) -> Event:
        cell = self._cells.pop(ref)
        try:
            return CellDone(cell, cast(Timings, ray.get(ref)))
        except RayTaskError as error:
            cause = _cause(error)
            if isinstance(cause, DinoRayError):
                raise cause from error
            raise JobError(f"cell {cell} can't be merged: {describe_error(cause)}") from error
        except PROCESS_FAULTS as error:
            return CellLost(cell, describe_fault(error))

    def _revive(self, replica: int, error: Exception) -> Event:
        """Have a lost replica load again: by Ray's restart if that is under way, as a new actor if not."""
        self._ready.discard(replica)
        self._loads = {ref: of for ref, of in self._loads.items() if of != replica}
        reason = describe_fault(error)
        if isinstance(error, ActorDiedError):
            self._recreated[replica] += 1
            if self._recreated[replica] > RECREATIONS:
                return ReplicaLost(replica, reason, for_good=True)
            self._actors[replica] = self._new_actor(replica)
        self._load(replica)
        return ReplicaLost(replica, reason)


def look_at(address: str) -> str:
    """Connect, say what is there, and leave.

    Raises
    ------
    UsageError
        If no cluster answers.
    """
    _connect(address)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        resources = ray.cluster_resources()
        total = _resources(resources)
        return f"{ray.__version__}; {len(nodes)} node(s), {total.cpus:g} CPUs, {total.gpus:g} GPUs"
    finally:
        ray.shutdown()


def _merge(task: ImageTask, cell: int, numbers: list[int], *pixels: Any) -> Timings:
    return merge(task, cell, dict(zip(numbers, pixels, strict=True)))


def describe_fault(error: Exception) -> str:
    """What Ray says of a lost worker or object, as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # A failed constructor's message ends with its cause; the others begin with the gist.
    gist = lines[-1] if "creation task" in lines[0] else lines[0]
    return f"{type(error).__name__}: {gist.split(' Worker exit')[0]}"


def _nothing() -> None:
    """Runs where merges will run; importing this module was the point."""


def _cause(error: RayTaskError) -> Exception:
    """What the worker raised; errors meant for the user come out as they were."""
    cause = error.cause
    if isinstance(cause, DinoRayError):
        return cause
    return cause if isinstance(cause, Exception) else JobError(describe_error(error))


def _connect(address: str) -> bool:
    """Returns whether Ray was started or joined here, and so has to be left here."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        options["include_dashboard"] = False  # nobody looks at it, and it would listen
    sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UsageError(
            f"--address {address}: no Ray cluster answers there ({describe_error(error)}); "
            "start one with 'ray start --head', or use --address local"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, sigterm)  # ray.init puts its own there
    return True


def _resources(resources: Mapping[str, float]) -> Cluster:
    return Cluster(resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def _replica_count(wanted: int | None, most: int, cluster: Cluster, gpus: float, threads: int) -> int:
    """Replicas to start; a request that the cluster can never place is refused, since Ray would wait in silence."""
    room = int(cluster.gpus / gpus) if gpus else int(cluster.cpus / threads)
    if room == 0:
        need = f"{gpus:g} GPUs" if gpus else f"{threads} CPUs (--threads)"
        have = f"{cluster.gpus:g} GPUs and {cluster.cpus:g} CPUs"
        raise UsageError(f"a replica needs {need}, and Ray here has {have}")
    if wanted is None:
        return max(1, min(room, most))
    if wanted > room:
        kind = f"{cluster.gpus:g} GPUs at --gpus-per-worker {gpus:g}" if gpus else f"{cluster.cpus:g} CPUs"
        raise UsageError(f"--workers {wanted}: Ray here has {kind}, room for {room}; ask for {room} or fewer")
    return wanted
