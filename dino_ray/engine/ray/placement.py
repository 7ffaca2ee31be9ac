"""Which machines get how many replicas: arithmetic over what nodes have and hold, without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dino_ray.errors import UsageError

SLIVER = 1e-9
"""A third of a GPU goes into one three times, whatever floats say."""


@dataclass(frozen=True)
class Resources:
    """What a node, or a cluster, has to place replicas on."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.gpus:g} GPUs and {self.cpus:g} CPUs"


@dataclass(frozen=True)
class Node:
    """A machine of a cluster, as one look at it shows it."""

    id: str
    name: str
    """For people."""
    total: Resources
    free: Resources | None = None
    """What nobody holds, this job included; None: not known."""
    draining: bool = False
    """It is about to go, and takes nothing new."""


@dataclass(frozen=True)
class Share:
    """What one replica holds of its node: GPUs where it has any, else the CPUs of its threads."""

    gpus: float
    cpus: float

    def __post_init__(self) -> None:
        assert self.gpus > 0 or self.cpus > 0, "a replica that holds nothing would fit anywhere without end"

    def goes_into(self, resources: Resources) -> int:
        """How many replicas such resources carry."""
        if not self.gpus:
            return int(resources.cpus / self.cpus + SLIVER)
        if self.gpus < 1:  # a share lies on one GPU: what two of them have left over is no third place
            return int(resources.gpus + SLIVER) * int(1 / self.gpus + SLIVER)
        return int(resources.gpus / self.gpus + SLIVER)

    def __str__(self) -> str:
        return f"--gpus-per-worker {self.gpus:g}" if self.gpus else f"--threads {self.cpus:g}"


def share_of(gpus: float | None, threads: int, machines: Iterable[Resources]) -> Share:
    """What a replica is to hold.

    Parameters
    ----------
    gpus
        As asked for; None: one where any machine has GPUs, else none.
    threads
        CPU threads of a replica; on GPUs they are not counted, since such a replica hardly uses them.
    """
    if gpus is None:
        gpus = 1.0 if any(machine.gpus >= 1 for machine in machines) else 0.0
    return Share(gpus, 0.0 if gpus else float(threads))


def replica_count(least: int, most: int, machines: Sequence[Resources], share: Share) -> int:
    """Replicas that machines carry, between bounds.

    Raises
    ------
    UsageError
        If they don't carry ``least``: Ray would wait in silence.
    """
    room = sum(share.goes_into(machine) for machine in machines)
    have = Resources(sum(machine.cpus for machine in machines), sum(machine.gpus for machine in machines))
    if room == 0:
        raise UsageError(f"{share}: no machine of this Ray has room for one replica; in all it has {have}")
    if least > room:
        raise UsageError(
            f"--workers {least}: this Ray has {have}, room for {room} with {share}; ask for {room} or fewer"
        )
    return min(max(least, most), room)


def places(
    nodes: Sequence[Node],
    share: Share,
    living: Mapping[str, int],
    running: Mapping[str, int],
    fewer: Mapping[str, int],
    wanted: int,
    least: int,
) -> list[Node]:
    """Where new replicas go: one entry for each.

    The machine with the fewest replicas comes first, so that a few replicas on many machines share no network link;
    of equals the first in ``nodes``.

    Parameters
    ----------
    nodes
        All that are alive.
    living
        Replicas of this job by node, those whose process has not started yet included.
    running
        Those of them whose process runs: what they hold is missing from ``Node.free``.
    fewer
        Places by node that have proved unfit.
    wanted
        How many new replicas to place.
    least
        So many of them are placed even where others hold the resources now, and wait for them there.
    """
    open_nodes = [node for node in nodes if not node.draining]
    placed = {node.id: living.get(node.id, 0) for node in open_nodes}
    chosen: list[Node] = []

    def fill(room: Mapping[str, int], up_to: int) -> None:
        while len(chosen) < up_to:
            fits = [node for node in open_nodes if room[node.id] > placed[node.id]]
            if not fits:
                return
            node = min(fits, key=lambda node: placed[node.id])
            placed[node.id] += 1
            chosen.append(node)

    ever = {node.id: share.goes_into(node.total) - fewer.get(node.id, 0) for node in open_nodes}
    now = {node.id: min(ever[node.id], _reach(node, share, running.get(node.id, 0))) for node in open_nodes}
    fill(now, wanted)
    fill(ever, min(least, wanted))
    return chosen


def _reach(node: Node, share: Share, running: int) -> int:
    """Replicas of this job that a node carries beside what others hold there."""
    if node.free is None:
        return share.goes_into(node.total)
    return running + share.goes_into(node.free)
