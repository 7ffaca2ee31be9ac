"""The engine of a cluster, one machine or many: replicas are actors, merges are tasks, tiles stay in the store."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import ray
from ray.exceptions import RayError, RayTaskError

from dino_ray.engine.protocol import (
    CellDone,
    CellLost,
    DinoEffect,
    EngineEvent,
    Fault,
    Handle,
    ImageTask,
    ReplicaReady,
    ReplicaSpec,
    TileCall,
    TilesDone,
    TilesLost,
    Timings,
)
from dino_ray.engine.ray.autoscaler import brings_machines
from dino_ray.engine.ray.cluster import connect, leave
from dino_ray.engine.ray.faults import Failure, cause_of, understand
from dino_ray.engine.ray.inflight import (
    Copy,
    Entry,
    Load,
    Merge,
    Pixels,
    Preparation,
    Ref,
    Start,
    Store,
    Tiles,
    fetch,
    merge_name,
    tiles_name,
)
from dino_ray.engine.ray.nodes import Lookout, look
from dino_ray.engine.ray.placement import replica_count, share_of
from dino_ray.engine.ray.pool import Member, Pool, Standing
from dino_ray.engine.ray.workers import FarSource, light, merge_task, nothing
from dino_ray.errors import JobError, for_user

PREPARATIONS = 4
"""Replicas that may be lost over the preparation of one image."""

PLACEMENT_S = 300.0
"""Longer than any machine takes to start a process: the cluster's resources are held by somebody else."""

ARRIVAL_S = 1800.0
"""Longer than clouds take to bring a machine that they have."""

RID_S = 60.0
"""A cancelled call ends within a step of the model, which is shorter; a replica still at it is replaced."""

GLANCE_S = 0.5
"""How long one look at the work lasts, so that what befalls the machines is taken in between."""

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
        self._owns_ray = False
        self._pending: dict[Ref, Entry] = {}  # in the order of submission
        self._calls: dict[int, Ref] = {}  # by the number of the call
        self._unheard: list[EngineEvent] = []
        self._warm: list[Ref] = []
        self._merge_nodes = 1
        self._here = ""

    # ---- life

    def __enter__(self) -> RayEngine:
        self._owns_ray = connect(self._address)
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _open(self) -> None:
        nodes, grows = look(), self._address != "local" and brings_machines()
        machines = [node.total for node in nodes if not node.draining]
        share = share_of(self._gpus, self._spec.threads, machines)
        if not grows:
            replica_count(self._least, self._most, machines, share)
        context = ray.get_runtime_context()
        self._here = context.get_node_id()
        self._store = Store(self._here)
        # Merge workers import their libraries while the replicas load, not when the first cell waits for them.
        warm_up = light(nothing, "warm up", self._here)
        self._warm = [warm_up.remote() for _ in range(self.merges_at_once)]
        most = max(self._least, self._most)
        self._pool = Pool(self._spec, share, self._least, most, context.get_job_id(), self._pending, grows)
        self._pool.see(nodes)
        self._unheard += self._pool.fill()
        self._lookout = Lookout()

    def __exit__(self, *exc: object) -> None:
        if hasattr(self, "_lookout"):
            self._lookout.close()
        if hasattr(self, "_pool"):
            self._pool.close()
        self._pending.clear()
        self._calls.clear()
        self._unheard.clear()
        self._warm.clear()
        if self._owns_ray:
            leave()

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
        return max(2, min(os.cpu_count() or 1, MOST_MERGES)) * self._merge_nodes

    @property
    def members(self) -> dict[int, Member]:
        """The replicas that live, by number: for tests that do them harm."""
        return self._pool.members

    def describe(self) -> str:
        merges = sum(isinstance(entry, Merge) for entry in self._pending.values())
        return f"{self._pool.describe()}; merges in flight: {merges}"

    # ---- an image

    def prepare(self, task: ImageTask) -> tuple[Handle, Timings]:
        failure = Failure("died", "no replica took it")
        for _ in range(PREPARATIONS):
            member = self._preparer()
            # Where that replica reads its source does not matter for one call, and the far way works from anywhere.
            method = member.actor.prepare_here.options(num_returns=2, name="prepare an image")
            guide, timings = method.remote(self._far(task))
            entry = Preparation(member.number, guide)
            self._pending[timings] = entry
            self._gather_until(lambda entry=entry: entry.outcome is not None)  # type: ignore[misc]
            match entry.outcome:
                case Timings() as cost:
                    try:
                        guide = self._safe(guide, member)
                    except RayError as error:
                        failure = understand(error)
                        continue
                    self._unheard += self._pool.release()
                    return guide, cost
                case Failure() as failure:
                    continue
                case Exception() as error:
                    raise for_user(error) from error
        raise JobError(f"the image can't be prepared: {failure.reason}")

    def _preparer(self) -> Member:
        """The replica that was kept free for it, or one that is ready."""
        found: list[Member] = []

        def is_found() -> bool:
            if self.hopeless is not None:
                raise JobError(f"no replica is left: {self.hopeless}")
            found[:] = self._pool.at(Standing.HELD) or self._pool.at(Standing.READY)
            return bool(found)

        grows = bool(self._pool.at(Standing.SCOUT))
        patience = ARRIVAL_S if grows else PLACEMENT_S
        if not self._gather_until(is_found, patience):
            raise JobError(
                f"no replica could be placed within {patience:.0f} s: "
                + (
                    "the cluster's autoscaler brought no machine"
                    if grows
                    else "others hold this Ray's resources"
                )
                + f"; {self.describe()}"
            )
        return found[0]

    def _safe(self, guide: Ref, member: Member) -> Ref:
        """A guide that outlives the node that made it: every tile needs it."""
        return guide if member.node == self._here else ray.put(ray.get(guide))

    def share(self, task: ImageTask) -> Handle:
        near = ray.put(task)
        self._merge_nodes = len({member.node for member in self.members.values()}) if task.shared else 1
        return _Shared(near, near if task.shared else ray.put(self._far(task)), task.shared)

    def dino_effect(self, task: Handle, guide: Handle, tile: int) -> DinoEffect:
        if not self.ready:
            raise JobError("no replica is ready")
        member = self.members[min(self.ready)]
        effect = member.actor.dino_effect_here.remote(self._seen_from(member, task), guide, tile)
        try:
            return cast(DinoEffect, ray.get(effect))
        except RayTaskError as error:
            raise for_user(cause_of(error)) from error
        except RayError as error:
            raise JobError(understand(error).reason) from error

    def settle(self) -> None:
        for ref, entry in list(self._pending.items()):
            match entry:
                case Tiles(replica) if not entry.forgotten:
                    ray.cancel(ref)
                    entry.forgotten = True
                    member = self.members[replica]
                    if member.standing is Standing.READY:
                        member.become(Standing.SETTLING)
                case Merge():
                    ray.cancel(ref)
                    del self._pending[ref]
                case _:
                    pass
        self._calls.clear()
        of_the_image = (TilesDone, TilesLost, CellDone, CellLost)
        self._unheard = [event for event in self._unheard if not isinstance(event, of_the_image)]

    # ---- work

    def submit_tiles(self, task: Handle, guide: Handle, call: TileCall, replica: int) -> None:
        member = self.members.get(replica)
        if member is None or member.standing is not Standing.READY:  # the caller is about to hear of it
            self._unheard.append(TilesLost(call, replica, "the replica takes no calls", "cancelled"))
            return
        method = member.actor.refine_here.options(num_returns=1 + len(call.tiles), name=tiles_name(call))
        *pixels, timings = method.remote(self._seen_from(member, task), guide, call)
        self._pending[timings] = Tiles(replica, call, pixels)
        self._calls[call.number] = timings
        member.calls[timings] = None

    def cancel(self, call: TileCall, replica: int) -> None:
        ref = self._calls.get(call.number)
        if ref is None:  # it has ended, and the caller is about to hear of it
            return
        ray.cancel(ref)
        if next(iter(self.members[replica].calls)) is not ref:
            # Ray would drop it only when its turn comes.
            self._forget(ref)
            self._unheard.append(TilesLost(call, replica, "cancelled", "cancelled"))

    def replace(self, replica: int, reason: str) -> None:
        if replica in self.members:
            self._fall(replica, Failure("died", reason, process_lost=True), behind="cancelled")
            self._unheard += self._pool.fill()

    def submit_merge(self, task: Handle, cells: Sequence[int], tiles: Sequence[tuple[int, Handle]]) -> None:
        shared = cast(_Shared, task)
        # A job's folder on this machine's disk is written here. Merges ask for no CPU: the replicas may hold them all,
        # and a merge that waits for a replica to end would wait for ever.
        merge = light(merge_task, merge_name(cells), None if shared.anywhere else self._here)
        numbers = tuple(number for number, _ in tiles)
        pixels = (cast(Pixels, handle).ref for _, handle in tiles)
        ref = merge.remote(shared.near, tuple(cells), numbers, *pixels)
        self._pending[ref] = Merge(tuple(cells))

    def wait(self, timeout: float) -> list[EngineEvent]:
        end = time.monotonic() + timeout
        while True:
            self._gather(0.0 if self._unheard else min(GLANCE_S, max(0.0, end - time.monotonic())))
            if self._unheard or time.monotonic() >= end:
                events, self._unheard = self._unheard, []
                return events

    # ---- inside: what has ended, and what that means

    def _gather_until(self, condition: Callable[[], bool], patience: float = float("inf")) -> bool:
        """Take in what happens until a condition holds; False if it does not within ``patience`` seconds."""
        end = time.monotonic() + patience
        while not condition():
            if time.monotonic() > end:
                return False
            self._gather(GLANCE_S)
        return True

    def _gather(self, timeout: float) -> None:
        """Turn what has ended into events, in order; wait for the first, if there is none, for ``timeout``."""
        before = len(self._unheard)
        self._look_around()
        if len(self._unheard) > before:
            timeout = 0.0
        refs = list(self._pending)
        if not refs:
            time.sleep(timeout)
            return
        ended = _ended(refs)
        if not ended and timeout > 0:
            ended, _ = ray.wait(refs, num_returns=1, timeout=timeout, fetch_local=False)
        # In the order of submission: of two calls of a dead replica, the older one was at work.
        for ref, value in zip(ended, fetch(ended), strict=True):
            entry = self._pending.pop(ref, None)
            if entry is not None:  # else it fell with its replica just now
                self._end(ref, entry, value)

    def _look_around(self) -> None:
        """What befell the machines, and replicas that have something to get rid of."""
        nodes = self._lookout.news()
        if nodes is not None:
            changes = self._pool.see(nodes)
            for number in changes.gone:
                self._fall(number, Failure("node", f"its machine, {self.members[number].place}, is gone"))
            for number in changes.leaving:
                self._unheard += self._pool.leave(number, f"{self.members[number].place} is about to go")
                self._evacuate(self.members[number].node)
            self._unheard += self._pool.fill()
        for member in self._pool.at(Standing.LEAVING):
            if not self._is_busy(member):
                self._fall(member.number, Failure("node", f"{member.place} is about to go"))
        for member in self._pool.at(Standing.SETTLING):
            if time.monotonic() - member.since > RID_S:
                self.replace(member.number, f"it did not end a cancelled call within {RID_S:.0f} s")

    def _is_busy(self, member: Member) -> bool:
        return bool(member.calls) or any(
            (isinstance(entry, Preparation) and entry.replica == member.number)
            or (isinstance(entry, Copy) and entry.node == member.node)
            for entry in self._pending.values()
        )

    def _evacuate(self, node: str) -> None:
        self._pending.update(dict.fromkeys(self._store.evacuate(node), Copy(node)))

    def _end(self, ref: Ref, entry: Entry, value: Any) -> None:
        failure = understand(value) if isinstance(value, Exception) else None
        if failure is not None and failure.process_lost and not isinstance(entry, Merge | Copy):
            self._pending[ref] = entry  # it ends with all else that its replica had
            self._fall(entry.replica, failure)
            self._unheard += self._pool.fill()
            return
        match entry:
            case Start(replica) if failure is None:
                self._unheard += self._pool.started(replica, value)
            case Load(replica):
                self._end_load(replica, value, failure)
            case Preparation():
                blameless = failure is not None and failure.fault != "raised"
                entry.outcome = failure if blameless else cause_of(value) if failure else value
            case Tiles():
                self._end_tiles(ref, entry, value, failure)
            case Merge(cells):
                self._end_merge(cells, value, failure)
            case _:
                pass

    def _end_load(self, replica: int, value: Any, failure: Failure | None) -> None:
        if failure is None:
            self._unheard += self._pool.loaded(replica, *value)
        else:
            self._fall(replica, failure)
            self._unheard += self._pool.fill()

    def _end_tiles(self, ref: Ref, entry: Tiles, value: Any, failure: Failure | None) -> None:
        member = self.members[entry.replica]
        member.calls.pop(ref, None)
        if not entry.forgotten:
            self._calls.pop(entry.call.number, None)
            if failure is None:
                pixels = self._store.keep(entry.pixels, member.node)
                self._unheard.append(TilesDone(entry.call, entry.replica, pixels, value))
                if member.standing is Standing.LEAVING:
                    self._evacuate(member.node)
            else:
                self._unheard.append(TilesLost(entry.call, entry.replica, failure.reason, failure.fault))
        if member.standing is Standing.SETTLING and not member.calls:
            member.become(Standing.READY)
            self._unheard.append(ReplicaReady(entry.replica, device=member.device))

    def _end_merge(self, cells: Sequence[int], value: Any, failure: Failure | None) -> None:
        if failure is None:
            self._unheard += [CellDone(cell, timings) for cell, timings in zip(cells, value, strict=True)]
        elif failure.fault == "raised":
            raise for_user(cause_of(value)) from value
        else:
            self._unheard += [
                CellLost(cell, failure.reason, failure.inputs_lost, failure.fault) for cell in cells
            ]

    def _forget(self, ref: Ref) -> None:
        entry = cast(Tiles, self._pending[ref])
        entry.forgotten = True
        self._calls.pop(entry.call.number, None)

    def _fall(self, replica: int, failure: Failure, behind: Fault | None = None) -> None:
        """A replica's process is gone, and all that was under way there with it.

        Parameters
        ----------
        behind
            The fault of the calls that waited behind the one at work, if it is another.
        """
        own = [
            (ref, entry) for ref, entry in self._pending.items() if getattr(entry, "replica", None) == replica
        ]
        ended = set(_ended([ref for ref, _ in own]))
        fault: Fault = failure.fault
        for ref, entry in own:
            del self._pending[ref]
            match entry:
                case Preparation():
                    entry.outcome = failure
                case Tiles(_, call) if not entry.forgotten:
                    (value,) = fetch([ref]) if ref in ended else (None,)
                    if isinstance(value, Timings):  # it had just ended
                        self._end_tiles(ref, entry, value, None)
                        continue
                    self._calls.pop(call.number, None)
                    self._unheard.append(TilesLost(call, replica, failure.reason, fault))
                    fault = behind or fault
                case Tiles():
                    fault = behind or fault  # what was at work was this
                case _:
                    pass
        self._unheard += self._pool.fall(replica, failure)

    # ---- inside: where things are

    def _far(self, task: ImageTask) -> ImageTask:
        return task if task.shared else replace(task, source=FarSource(task.source, self._here))

    def _seen_from(self, member: Member, task: Handle) -> Any:
        shared = cast(_Shared, task)
        return shared.near if member.node == self._here else shared.far


def _ended(refs: Sequence[Ref]) -> list[Ref]:
    """Those whose answer is there, in the same order."""
    return list(ray.wait(list(refs), num_returns=len(refs), timeout=0, fetch_local=False)[0]) if refs else []
