"""The engine of a cluster, one machine or many: replicas are actors, merges are tasks, tiles stay in the store."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from dino_ray.engine.protocol import (
    DinoEffect,
    EngineEvent,
    Handle,
    ImageTask,
    ReplicaSpec,
    TileCall,
    Timings,
)
from dino_ray.engine.ray.autoscaler import brings_machines
from dino_ray.engine.ray.cluster import connect, leave
from dino_ray.engine.ray.faults import Failure, cause_of, understand
from dino_ray.engine.ray.inflight import (
    Entry,
    Pixels,
    Ref,
    Store,
    merge_name,
    tiles_name,
)
from dino_ray.engine.ray.member import Member, Standing
from dino_ray.engine.ray.nodes import Lookout, look
from dino_ray.engine.ray.placement import replica_count, share_of
from dino_ray.engine.ray.pool import Pool
from dino_ray.engine.ray.traffic import RID_S, Traffic
from dino_ray.engine.ray.workers import CONTROL, FarSource, light, merge_task, nothing
from dino_ray.errors import JobError, describe_error, for_user

log = logging.getLogger(__name__)

PREPARATIONS = 4
"""Replicas that may be lost, or fail, over the preparation of one image."""

PLACEMENT_S = 300.0
"""Longer than any machine takes to start a process: the cluster's resources are held by somebody else."""

TOLD_S = 20.0
"""A start takes less on most machines; whoever waits longer is told so."""

ARRIVAL_S = 1800.0
"""Longer than clouds take to bring a machine that they have."""

FEATURES_S = 7200.0
"""Longer than an image's features and its prompt take, whose number has a bound, even on a few slow cores."""

SLOWEST_READ = 2e6
"""Pixels per second: features need all of the source, and even a far disk gives more. Who takes longer hangs."""

EFFECT_S = 3600.0
"""Longer than any tile takes to be refined twice, with DINO and without: a replica that takes it hangs."""

ABLE = (Standing.STARTING, Standing.HELD, Standing.LOADING, Standing.READY, Standing.SETTLING)
"""How a replica stands that can prepare an image, now or soon."""

MOST_MERGES = 8
"""In flight on one node, each in a process of its own: more would wait for its memory and its disk."""

MERGES = max(2, min(os.cpu_count() or 1, MOST_MERGES))
"""On one node; others are taken to be like the driver's."""


@dataclass(frozen=True)
class _Shared:
    """A task in the object store."""

    number: int
    """Later ones have higher numbers."""
    near: Any
    """For workers of the driver's node."""
    far: Any
    """For those elsewhere."""
    anywhere: bool
    """Whether merges may run elsewhere, too."""


class RayEngine:
    """Model replicas and merge tasks on a Ray cluster.

    Machines that join the cluster get replicas, those that are about to go are drained, and what is lost is replaced.

    Parameters
    ----------
    spec
        What a replica loads.
    address
        ``local`` starts a Ray of its own, on loopback, and stops it at the end; anything else is handed to
        ``ray.init``.
    least, most
        Bounds on the number of replicas. The cluster must have room for ``least``, or an autoscaler; up to ``most``
        are started where there is room, now or later. More than the largest image has tiles would idle.
    gpus_per_worker
        GPUs each replica holds, a fraction or a whole number; None for one where the cluster has GPUs, else 0: then
        it holds the CPUs of its threads.

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
        least: int = 1,
        most: int = 4096,
        gpus_per_worker: float | None = None,
    ) -> None:
        self._spec, self._address = spec, address
        self._least, self._most, self._gpus = least, most, gpus_per_worker
        self._closing = ExitStack()
        self._warm: list[Ref] = []
        self._merge_nodes = 1
        self._shared = 0
        self._here = ""

    # ---- life

    def __enter__(self) -> RayEngine:
        with ExitStack() as opening:
            if connect(self._address):
                opening.callback(leave)
            opening.callback(self._warm.clear)
            self._open(opening)
            self._closing = opening.pop_all()
        return self

    def _open(self, opening: ExitStack) -> None:
        nodes, grows = look(), self._address != "local" and brings_machines()
        machines = [node.total for node in nodes if not node.draining]
        share = share_of(self._gpus, self._spec.threads, machines)
        if not grows:
            replica_count(self._least, self._most, machines, share)
        context = ray.get_runtime_context()
        self._here = context.get_node_id()
        # Merge workers import their libraries while the replicas load, not when the first cell waits for them.
        warm_up = light(nothing, "warm up", self._here)
        self._warm += [warm_up.remote() for _ in range(self.merges_at_once)]
        pending: dict[Ref, Entry] = {}
        bounds = self._least, max(self._least, self._most)
        self._pool = Pool(self._spec, share, *bounds, context.get_job_id(), pending, grows)
        opening.callback(self._pool.close)
        lookout = Lookout()
        opening.callback(lookout.close)
        self._traffic = Traffic(self._pool, pending, Store(self._here), lookout)
        self._pool.see(nodes)
        self._traffic.fill()

    def __exit__(self, *exc: object) -> None:
        self._closing.close()

    @property
    def replicas(self) -> int:
        return self._pool.replicas

    @property
    def ready(self) -> Collection[int]:
        return self._pool.ready

    @property
    def hopeless(self) -> str | None:
        return self._pool.hopeless

    @property
    def merges_at_once(self) -> int:
        return MERGES * self._merge_nodes

    @property
    def members(self) -> dict[int, Member]:
        """The replicas that live, by number: for tests that do them harm."""
        return self._pool.members

    def describe(self) -> str:
        return f"{self._pool.describe()}; merges in flight: {self._traffic.merges}"

    # ---- an image

    def prepare(self, task: ImageTask) -> tuple[Handle, Timings]:
        failure = Failure("died", "no replica took it")
        patience = FEATURES_S + task.source.info.width * task.source.info.height / SLOWEST_READ
        raised: dict[str, Exception] = {}  # node to error: what is missing on one may be there on the next
        for _ in range(PREPARATIONS):
            member = self._preparer(raised)
            if member is None:
                break
            for reason in raised.values():
                log.warning("%s prepares the image, for elsewhere: %s", member.place, describe_error(reason))
            # Where that replica reads its source does not matter for one call, and the far way works from anywhere.
            method = member.actor.prepare_here.options(num_returns=2, name="prepare an image")
            guide, timings = method.remote(self._far(task))
            node = member.node
            entry = self._traffic.add_preparation(member, guide, timings)
            if not self._traffic.gather_until(entry.is_over, patience):
                self._traffic.replace(member.number, f"it did not prepare an image within {patience:.0f} s")
            match entry.outcome:
                case Timings() as cost:
                    try:
                        guide = self._safe(guide, node)
                    except RayError as error:
                        failure = understand(error)
                        continue
                    self._traffic.release()
                    return guide, cost
                case Failure() as failure:
                    continue
                case Exception() as reason:
                    raised[node] = reason
        for first in raised.values():
            raise for_user(first) from first
        raise JobError(f"the image can't be prepared: {failure.reason}")

    def _preparer(self, avoid: Collection[str]) -> Member | None:
        """The replica that was kept free for it, or one that is ready.

        Parameters
        ----------
        avoid
            Ids of nodes where it failed. With any, None if no replica comes to be ready elsewhere.
        """
        found: list[Member] = []

        def on_others(*standings: Standing) -> list[Member]:
            return [member for member in self._pool.at(*standings) if member.node not in avoid]

        def is_found() -> bool:
            if avoid and not on_others(*ABLE):
                return True
            if self.hopeless is not None:
                raise JobError(f"no replica is left: {self.hopeless}")
            found[:] = on_others(Standing.HELD) or on_others(Standing.READY)
            return bool(found)

        grows = bool(self._pool.at(Standing.SCOUT))
        patience = ARRIVAL_S if grows and not avoid else PLACEMENT_S
        told_s = min(TOLD_S, patience)
        if self._traffic.gather_until(is_found, told_s):
            return next(iter(found), None)
        log.info(
            "waiting for a %s replica, up to %.0f s (%s); "
            "where others hold this Ray's resources, it starts after them",
            "further" if avoid else "first",
            patience,
            self.describe(),
        )
        if self._traffic.gather_until(is_found, patience - told_s) or avoid:
            return next(iter(found), None)
        raise JobError(
            f"no replica could be placed within {patience:.0f} s: "
            + ("the cluster's autoscaler brought no machine" if grows else "others hold this Ray's resources")
            + f"; {self.describe()}"
        )

    def _safe(self, guide: Ref, node: str) -> Ref:
        """A guide that outlives the node that made it: every tile needs it."""
        return guide if node == self._here else ray.put(ray.get(guide))

    def share(self, task: ImageTask) -> Handle:
        near = ray.put(task)
        self._merge_nodes = len({member.node for member in self.members.values()}) if task.shared else 1
        self._shared += 1
        return _Shared(self._shared, near, near if task.shared else ray.put(self._far(task)), task.shared)

    def dino_effect(self, task: Handle, guide: Handle, tile: int) -> DinoEffect:
        # All of them may still be rid of calls of the image that has just ended, whose tiles others had first.
        if not self._traffic.gather_until(lambda: bool(self.ready), RID_S):
            raise JobError("no replica is ready")
        member = self.members[min(self.ready)]
        effect = member.actor.dino_effect_here.remote(self._seen_from(member, task), guide, tile)
        try:
            return cast(DinoEffect, ray.get(effect, timeout=EFFECT_S))
        except GetTimeoutError as error:
            reason = f"it did not measure the effect of DINO within {EFFECT_S:.0f} s"
            self._traffic.replace(member.number, reason)
            raise JobError(f"replica {member.number} is lost: {reason}") from error
        except RayTaskError as error:
            raise for_user(cause_of(error)) from error
        except RayError as error:
            raise JobError(understand(error).reason) from error

    def settle(self) -> None:
        self._traffic.settle()

    # ---- work

    def submit_tiles(self, task: Handle, guide: Handle, call: TileCall, replica: int) -> None:
        member = self.members.get(replica)
        if member is None or member.standing is not Standing.READY:  # the caller is about to hear of it
            self._traffic.refuse(call, replica)
            return
        number = cast(_Shared, task).number
        if member.image != number:
            member.image = number
            begin = member.actor.begin.options(concurrency_group=CONTROL)
            beginning = begin.remote(number, self._seen_from(member, task), guide)
            self._traffic.add_beginning(member, beginning)
        method = member.actor.refine_here.options(num_returns=1 + len(call.tiles), name=tiles_name(call))
        *pixels, timings = method.remote(number, call)
        self._traffic.add_tiles(member, call, pixels, timings)

    def cancel(self, call: TileCall, replica: int) -> None:
        self._traffic.cancel(call, replica)

    def replace(self, replica: int, reason: str) -> None:
        self._traffic.replace(replica, reason)

    def submit_merge(self, task: Handle, cells: Sequence[int], tiles: Sequence[tuple[int, Handle]]) -> None:
        shared = cast(_Shared, task)
        # A job's folder on this machine's disk is written here. Merges ask for no CPU: the replicas may hold them all,
        # and a merge that waits for a replica to end would wait for ever.
        merge = light(merge_task, merge_name(cells), None if shared.anywhere else self._here)
        numbers = tuple(number for number, _ in tiles)
        pixels = (cast(Pixels, handle).ref for _, handle in tiles)
        ref = merge.remote(shared.near, tuple(cells), numbers, *pixels)
        self._traffic.add_merge(cells, ref)

    def wait(self, timeout: float) -> list[EngineEvent]:
        return self._traffic.wait(timeout)

    # ---- inside: where things are

    def _far(self, task: ImageTask) -> ImageTask:
        return task if task.shared else replace(task, source=FarSource(task.source, self._here))

    def _seen_from(self, member: Member, task: Handle) -> Any:
        shared = cast(_Shared, task)
        return shared.near if member.node == self._here else shared.far
