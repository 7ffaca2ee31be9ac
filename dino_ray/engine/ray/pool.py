"""The replicas of a cluster: where they live, and what becomes of them.

The pool starts, restarts and ends actors; of the work that they have it knows nothing.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dino_ray.engine.protocol import (
    EngineEvent,
    ReplicaLeaving,
    ReplicaLoading,
    ReplicaLost,
    ReplicaPlaced,
    ReplicaReady,
    ReplicaSpec,
    Timings,
)
from dino_ray.engine.ray.faults import Failure
from dino_ray.engine.ray.inflight import Entry, Load, Ref, Start
from dino_ray.engine.ray.member import Member, Standing
from dino_ray.engine.ray.placement import Node, Share, places
from dino_ray.engine.ray.workers import CONTROL, RayReplica

log = logging.getLogger(__name__)

RECREATIONS = 3
"""How often in a row a replica may die before it is ready; then it counts as lost for good."""

MEMORY_KILLS = 3
"""So many on one machine, and one replica fewer lives there: what it holds is more than the machine has."""

DOUBT_S = 20.0
"""A machine that was lost gets no replica for so long: Ray takes up to 15 s to see that it is dead."""

CALLS_AT_ONCE = 2
"""On one replica: while one has the device, the other reads its source, or sends its pixels."""

SCOUTS = 4
"""So many actors at least wait for an autoscaler's machines at a time; as many as there are replicas later on, so that
the cluster doubles rather than being asked for everything at once."""

NEVER_RAN = (
    "its replicas end before they run, as where dino-ray is missing or another version than here "
    "('dino-ray doctor --address' tells): "
)
"""Ray's workers end without a word where they can't read what they are sent."""

NAMESPACE = "dino-ray"


@dataclass(frozen=True)
class Changes:
    """What a look at the nodes shows of replicas."""

    gone: tuple[int, ...]
    """Their machine is dead."""
    leaving: tuple[int, ...]
    """Their machine is about to go."""


class Pool:
    """Replicas between two bounds, one for each share of a machine.

    Parameters
    ----------
    spec
        What a replica loads.
    share
        What it holds of its machine.
    least, most
        Bounds on the number of replicas.
    job
        Part of the actors' names.
    pending
        Where the pool puts what it waits for.
    grows
        Whether an autoscaler brings machines that are asked for.
    """

    def __init__(
        self,
        spec: ReplicaSpec,
        share: Share,
        least: int,
        most: int,
        job: str,
        pending: dict[Ref, Entry],
        grows: bool,
    ) -> None:
        self._spec, self._share, self._least, self._most = spec, share, least, most
        self._job, self._pending, self._grows = job, pending, grows
        self._class = ray.remote(concurrency_groups={CONTROL: 1})(RayReplica)
        self._numbers = 0
        self._nodes: tuple[Node, ...] = ()
        self._holding = True  # until the first image is prepared
        self._ever_ready = False
        self._unfit: dict[str, str] = {}  # node, where no replica is tried any more, to the reason
        self._doubted: dict[str, float] = {}  # node to the time from which it is trusted again
        self._fewer: Counter[str] = Counter()
        self._memory_kills: Counter[str] = Counter()
        self.members: dict[int, Member] = {}

    # ---- how they stand

    @property
    def replicas(self) -> int:
        return sum(member.standing is not Standing.SCOUT for member in self.members.values())

    @property
    def ready(self) -> Collection[int]:
        return frozenset(
            number for number, member in self.members.items() if member.standing is Standing.READY
        )

    def at(self, *standings: Standing) -> list[Member]:
        return [member for member in self.members.values() if member.standing in standings]

    @property
    def hopeless(self) -> str | None:
        """The reason why no replica is left, if that was the model; machines may come back, or be trusted again."""
        if self.replicas or not self._unfit or (self._grows and self._ever_ready):
            return None
        if any(node.id not in self._unfit and self._share.goes_into(node.total) for node in self._nodes):
            return None
        return "; ".join(dict.fromkeys(self._unfit.values()))

    def describe(self) -> str:
        """One line: machines, replicas, and what is waited for."""
        draining = sum(node.draining for node in self._nodes)
        going = f", {draining} of them about to go" if draining else ""
        stand = Counter(member.standing for member in self.members.values())
        crew = ", ".join(f"{count} {standing.value}" for standing, count in stand.items()) or "none"
        unfit = "".join(f"; {reason}" for reason in dict.fromkeys(self._unfit.values()))
        return f"machines: {len(self._nodes)}{going}; replicas: {crew}{unfit}"

    # ---- where they live

    def see(self, nodes: Sequence[Node]) -> Changes:
        """Take in a look at the nodes; ``fill`` acts on what is new."""
        self._nodes = tuple(nodes)
        known = {node.id: node for node in nodes}
        gone, leaving = [], []
        for member in self.members.values():
            if member.standing is Standing.SCOUT:
                continue
            if member.node not in known:
                gone.append(member.number)
            elif known[member.node].draining and member.standing is not Standing.LEAVING:
                leaving.append(member.number)
        return Changes(tuple(gone), tuple(leaving))

    def fill(self) -> list[EngineEvent]:
        """Place new replicas where there is room for them, up to the bound."""
        living = [member for member in self.members.values() if member.standing is not Standing.LEAVING]
        wanted = self._most - len(living)
        if wanted <= 0:
            return []
        now = time.monotonic()
        open_nodes = [
            node
            for node in self._nodes
            if node.id not in self._unfit and self._doubted.get(node.id, 0.0) <= now
        ]
        runs = {Standing.HELD, Standing.LOADING, Standing.READY, Standing.SETTLING, Standing.LEAVING}
        chosen = places(
            open_nodes,
            self._share,
            Counter(member.node for member in self.members.values()),
            Counter(member.node for member in self.members.values() if member.standing in runs),
            self._fewer,
            wanted,
            self._least - len(living),
        )
        events: list[EngineEvent] = [self._found(node) for node in chosen]
        if self._grows:
            self._send_scouts(wanted - len(chosen))
        return events

    def _found(self, node: Node) -> EngineEvent:
        member = self._new_member(Standing.STARTING, node.id, node.name)
        self._animate(member)
        return ReplicaPlaced(member.number, node.name)

    def _send_scouts(self, wanted: int) -> None:
        """Actors without a place: they are what an autoscaler sees of a job's wants, and end with the job."""
        waiting = len(self.at(Standing.SCOUT))
        if not waiting and wanted > 0:
            log.info("waiting for the cluster's autoscaler to bring machines")
        for _ in range(min(wanted, max(SCOUTS, self.replicas) - waiting)):
            self._animate(self._new_member(Standing.SCOUT, "", ""))

    def _new_member(self, standing: Standing, node: str, place: str) -> Member:
        held = self._holding and not any(member.held for member in self.members.values())
        member = Member(self._numbers, node, place, None, held, standing, since=time.monotonic())
        self.members[member.number] = member
        self._numbers += 1
        return member

    def _animate(self, member: Member) -> None:
        life = f", life {member.lives}" if member.lives > 1 else ""
        where = NodeAffinitySchedulingStrategy(member.node, soft=False) if member.node else "DEFAULT"
        member.actor = self._class.options(
            num_gpus=self._share.gpus,
            num_cpus=self._share.cpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=CALLS_AT_ONCE,
            name=f"{NAMESPACE}/{self._job}/replica {member.number}{life}",
            namespace=NAMESPACE,
            scheduling_strategy=where,
        ).remote(self._spec, f"replica {member.number}")
        self._pending[member.actor.node.options(concurrency_group=CONTROL).remote()] = Start(member.number)

    def _load(self, member: Member) -> None:
        member.become(Standing.LOADING)
        self._pending[member.actor.load_here.remote()] = Load(member.number)

    # ---- what becomes of them

    def started(self, number: int, node: str) -> list[EngineEvent]:
        member = self.members[number]
        events: list[EngineEvent] = []
        if member.standing is Standing.SCOUT:
            names = {each.id: each.name for each in self._nodes}
            member.node, member.place = node, names.get(node, "a new machine")
            events.append(ReplicaPlaced(number, member.place))
        if member.standing is Standing.LEAVING:
            return events
        if member.held:
            member.become(Standing.HELD)
            return events
        self._load(member)
        return [*events, ReplicaLoading(number)]

    def loaded(self, number: int, device: str, timings: Timings) -> list[EngineEvent]:
        member = self.members[number]
        member.deaths, member.device = 0, device
        self._ever_ready = True
        if member.standing is Standing.LEAVING:
            return []
        member.become(Standing.READY)
        return [ReplicaReady(number, timings, device)]

    def release(self) -> list[EngineEvent]:
        """Have the replica that was kept free for preparing the image load its models, too."""
        self._holding = False
        events: list[EngineEvent] = []
        for member in self.members.values():
            member.held = False
            if member.standing is Standing.HELD:
                self._load(member)
                events.append(ReplicaLoading(member.number))
        return events

    def leave(self, number: int, reason: str) -> list[EngineEvent]:
        """A replica's machine is about to go; ``fall`` ends the replica once it has no work."""
        self.members[number].become(Standing.LEAVING)
        return [ReplicaLeaving(number, reason)]

    def fall(self, number: int, failure: Failure) -> list[EngineEvent]:
        """A replica's process is gone, or given up: it starts anew, unless that is in vain."""
        member = self.members[number]
        with contextlib.suppress(Exception):  # its process may be gone, its node as well
            ray.kill(member.actor)
        member.deaths += 1
        reason = self._in_vain(member, failure)
        if reason is None:
            member.lives += 1
            member.calls.clear()
            member.image = None
            member.become(Standing.STARTING)
            self._animate(member)
            return [
                ReplicaLost(number, failure.reason, fault=failure.fault),
                ReplicaPlaced(number, member.place),
            ]
        del self.members[number]
        if member.standing is Standing.SCOUT:
            return []
        return [ReplicaLost(number, reason, for_good=True, fault=failure.fault)]

    def _in_vain(self, member: Member, failure: Failure) -> str | None:
        """Why a replica can't start anew where it was; None if it can."""
        node, loading = member.node, member.standing in (Standing.STARTING, Standing.HELD, Standing.LOADING)
        if member.standing in (Standing.LEAVING, Standing.SCOUT):
            return failure.reason
        if failure.fault == "node":
            self._doubted[node] = time.monotonic() + DOUBT_S
            return failure.reason
        if (failure.fault == "raised" and loading) or member.deaths > RECREATIONS:
            # Replicas that live there may be well, but no more are tried there.
            never_ran = NEVER_RAN if failure.fault == "died" and member.standing is Standing.STARTING else ""
            self._unfit[node] = f"{member.place}: {never_ran}{failure.reason}"
            log.warning("replica %d is lost; %s", member.number, self._unfit[node])
            return self._unfit[node]
        return self._crowded(member, failure) if failure.fault == "memory" else None

    def _crowded(self, member: Member, failure: Failure) -> str | None:
        node = member.node
        self._memory_kills[node] += 1
        others = [each for each in self.members.values() if each.node == node and each is not member]
        if self._memory_kills[node] < MEMORY_KILLS or not others:
            return None
        self._memory_kills[node] = 0
        self._fewer[node] += 1
        log.warning("%s is short of memory: it goes on with %d replicas", member.place, len(others))
        return failure.reason

    def close(self) -> None:
        for member in self.members.values():
            with contextlib.suppress(Exception):
                ray.kill(member.actor)
        self.members.clear()
