"""The engine of a cluster, one machine or many: replicas are actors, merges are tasks, tiles stay in the store."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from dino_ray.engine.protocol import (
    CellDone,
    CellLost,
    DinoEffect,
    EngineEvent,
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
from dino_ray.engine.ray.cluster import connect, replica_count, resources_of
from dino_ray.engine.ray.faults import PROCESS_FAULTS, cause_of, describe_fault
from dino_ray.engine.ray.workers import FarSource, RayReplica, light, merge_task, nothing
from dino_ray.errors import JobError, describe_error, for_user

log = logging.getLogger(__name__)

RECREATIONS = 3
"""How often in a row a replica may die before it is ready; then it counts as lost for good."""

PLACEMENT_S = 300.0
"""Longer than any machine takes to start a process: the cluster's resources are held by somebody else."""

MOST_MERGES = 8
"""In flight on one node, each in a process of its own: more would wait for its memory and its disk."""


@dataclass(frozen=True)
class _Shared:
    """A task in the object store."""

    near: Any
    """For workers of the driver's node."""
    far: Any
    """For those elsewhere."""
    anywhere: bool
    """Whether merges may run elsewhere, too."""


@dataclass(frozen=True)
class _Call:
    """A tile call in flight."""

    call: TileCall
    replica: int
    actor: Any
    """Which of the replica's lives it went to."""
    pixels: tuple[Any, ...]


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
        self.merges_at_once = max(2, min(os.cpu_count() or 1, MOST_MERGES))
        self._owns_ray = False
        self._actors: list[Any] = []
        self._deaths: list[int] = []  # of each replica, since it was last ready
        self._loads: dict[Any, int] = {}
        self._tiles: dict[Any, _Call] = {}  # by the ref of their timings
        self._merges: dict[Any, tuple[int, ...]] = {}  # cells, by the ref of their timings
        self._ready: set[int] = set()
        self._lost: dict[int, str] = {}
        self._nodes: list[str] = []  # where each replica lives; empty until it has loaded
        self._here = ""
        self._warm: list[Any] = []
        self._unheard: list[EngineEvent] = []

    # ---- life

    def __enter__(self) -> RayEngine:
        self._owns_ray = connect(self._address)
        try:
            self._place_replicas()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _place_replicas(self) -> None:
        nodes = [resources_of(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        if self._gpus is None:
            self._gpus = 1.0 if any(node.gpus >= 1 for node in nodes) else 0.0
        self._workers = replica_count(self._workers, self._most, nodes, self._gpus, self._spec.threads)
        self._here = ray.get_runtime_context().get_node_id()
        # The job's folder is this machine's, so merges, which write there, and reads run here. They ask for no
        # CPU: the replicas may hold them all, and a merge that waits for a replica to end would wait for ever.
        self._merge_here = light(merge_task, "merge", self._here)
        self._merge_anywhere = light(merge_task, "merge")
        # Merge workers import their libraries while the replicas load, not when the first cell waits for them.
        warm_up = light(nothing, "warm up", self._here)
        self._warm = [warm_up.remote() for _ in range(self.merges_at_once)]
        for replica in range(self._workers):
            self._actors.append(self._new_actor())
            self._nodes.append("")
            self._deaths.append(0)
            if replica > 0:  # the first one prepares the image before it loads
                self._load(replica)

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

    @property
    def hopeless(self) -> str | None:
        return next(iter(self._lost.values())) if len(self._lost) == len(self._actors) else None

    # ---- work

    def prepare(self, task: ImageTask) -> tuple[Handle, Timings]:
        reason = ""
        for attempt in range(RECREATIONS):
            replica = attempt % len(self._actors)
            actor = self._actors[replica]
            if not (replica in self._ready or ray.wait([actor.pid.remote()], timeout=PLACEMENT_S)[0]):
                raise JobError(
                    f"no replica could be placed within {PLACEMENT_S:.0f} s: others hold this Ray's resources, of "
                    f"which it now has {resources_of(ray.available_resources())} free"
                )
            # Where that replica lives is not known yet, and the far way works from anywhere.
            guide, timings = actor.prepare.options(num_returns=2).remote(self._far(task))
            try:
                cost = cast(Timings, ray.get(timings))
            except RayTaskError as error:
                raise for_user(cause_of(error)) from error
            except PROCESS_FAULTS as error:
                reason = describe_fault(error)
                self._unheard.append(self._revive(replica, error))
                continue
            if not (0 in self._ready or 0 in self._lost or 0 in self._loads.values()):
                self._load(0)
            return guide, cost
        raise JobError(f"the image can't be prepared: {reason}")

    def share(self, task: ImageTask) -> Handle:
        near = ray.put(task)
        return _Shared(near, near if task.shared else ray.put(self._far(task)), task.shared)

    def submit_tiles(self, task: Handle, guide: Handle, call: TileCall, replica: int) -> None:
        actor = self._actors[replica]
        method = actor.refine.options(num_returns=1 + len(call.tiles), name=f"tiles {call.tiles}")
        *pixels, timings = method.remote(self._seen_from(replica, task), guide, call)
        self._tiles[timings] = _Call(call, replica, actor, tuple(pixels))

    def cancel(self, call: TileCall, replica: int) -> None:
        pass

    def replace(self, replica: int, reason: str) -> None:
        pass

    def describe(self) -> str:
        return f"{len(self._ready)} of {len(self._actors)} replicas ready"

    def submit_merge(self, task: Handle, cells: Sequence[int], tiles: Sequence[tuple[int, Handle]]) -> None:
        shared = cast(_Shared, task)
        merge = self._merge_anywhere if shared.anywhere else self._merge_here
        numbers, pixels = zip(*tiles, strict=True)
        self._merges[merge.remote(shared.near, cells, numbers, *pixels)] = tuple(cells)

    def dino_effect(self, task: Handle, guide: Handle, tile: int) -> DinoEffect:
        replica = min(self._ready, default=0)
        effect = self._actors[replica].dino_effect.remote(self._seen_from(replica, task), guide, tile)
        try:
            return cast(DinoEffect, ray.get(effect))
        except RayTaskError as error:
            raise for_user(cause_of(error)) from error
        except PROCESS_FAULTS as error:
            raise JobError(describe_fault(error)) from error

    def wait(self, timeout: float) -> list[EngineEvent]:
        if self._unheard:
            events, self._unheard = self._unheard, []
            return events
        pending = [*self._loads, *self._tiles, *self._merges]
        if not pending:
            time.sleep(timeout)
            return []
        if not ray.wait(pending, timeout=timeout)[0]:
            return []
        ready = set(ray.wait(pending, num_returns=len(pending), timeout=0)[0])
        # In the order of submission: of two calls of a dead replica, the older one was at work.
        return [event for ref in pending if ref in ready for event in self._end(ref)]

    def settle(self) -> None:
        for ref in [*self._tiles, *self._merges]:
            ray.cancel(ref)
        self._tiles.clear()
        self._merges.clear()

    # ---- inside

    def _far(self, task: ImageTask) -> ImageTask:
        return task if task.shared else replace(task, source=FarSource(task.source, self._here))

    def _seen_from(self, replica: int, task: Handle) -> Any:
        shared = cast(_Shared, task)
        return shared.near if self._nodes[replica] == self._here else shared.far

    def _new_actor(self) -> Any:
        gpus = self._gpus or 0.0
        options = {"num_gpus": gpus, "num_cpus": 0 if gpus else self._spec.threads}
        return (
            ray.remote(RayReplica).options(**options, max_restarts=0, max_task_retries=0).remote(self._spec)
        )

    def _load(self, replica: int) -> None:
        self._loads[self._actors[replica].load_here.remote()] = replica

    def _end(self, ref: Any) -> list[EngineEvent]:
        if ref in self._loads:
            return [self._end_load(ref)]
        if ref in self._tiles:
            return self._end_tile(ref)
        return self._end_merge(ref) if ref in self._merges else []

    def _end_load(self, ref: Any) -> EngineEvent:
        replica = self._loads.pop(ref)
        try:
            node, device, timings = cast(tuple[str, str, Timings], ray.get(ref))
        except RayTaskError as error:
            return self._give_up(replica, describe_error(cause_of(error)))
        except PROCESS_FAULTS as error:
            return self._revive(replica, error)
        self._ready.add(replica)
        self._nodes[replica] = node
        self._deaths[replica] = 0
        return ReplicaReady(replica, timings, device)

    def _end_tile(self, ref: Any) -> list[EngineEvent]:
        call = self._tiles.pop(ref)
        replica = call.replica
        try:
            return [TilesDone(call.call, replica, call.pixels, cast(Timings, ray.get(ref)))]
        except RayTaskError as error:
            return [TilesLost(call.call, replica, describe_error(cause_of(error)), "raised")]
        except PROCESS_FAULTS as error:
            lost = TilesLost(call.call, replica, describe_fault(error), "died")
            # The calls that waited behind it are lost with it; the replica died but once.
            return [lost, self._revive(replica, error)] if call.actor is self._actors[replica] else [lost]

    def _end_merge(self, ref: Any) -> list[EngineEvent]:
        cells = self._merges.pop(ref)
        try:
            timings = cast(list[Timings], ray.get(ref))
            return [CellDone(cell, timing) for cell, timing in zip(cells, timings, strict=True)]
        except RayTaskError as error:
            cause = cause_of(error)
            if not isinstance(cause, PROCESS_FAULTS):
                raise for_user(cause) from error
            reason, tiles_lost = describe_fault(cause), True  # with the node that held them
        except PROCESS_FAULTS as error:
            reason, tiles_lost = describe_fault(error), isinstance(error, ObjectLostError)
        return [CellLost(cell, reason, tiles_lost) for cell in cells]

    def _give_up(self, replica: int, reason: str) -> EngineEvent:
        self._lost[replica] = reason
        return ReplicaLost(replica, reason, for_good=True)

    def _revive(self, replica: int, error: Exception) -> EngineEvent:
        """Have a dead replica start anew, unless it died too often before it was ready."""
        self._ready.discard(replica)
        self._loads = {ref: of for ref, of in self._loads.items() if of != replica}
        self._deaths[replica] += 1
        if self._deaths[replica] > RECREATIONS:
            return self._give_up(replica, describe_fault(error))
        self._actors[replica] = self._new_actor()
        self._load(replica)
        return ReplicaLost(replica, describe_fault(error))
