"""Who has worked: every replica with its machine, its device, what it did and how it ended, from the events."""

from __future__ import annotations

from dataclasses import dataclass, field

from dino_ray.engine.protocol import (
    JobEvent,
    ReplicaLost,
    ReplicaPlaced,
    ReplicaReady,
    TilesDone,
    Timings,
)


@dataclass
class Member:
    """One replica, from its first event on."""

    replica: int
    node: str = ""
    """Name of its machine; empty where nobody said."""
    device: str = ""
    ready: bool = False
    tiles: int = 0
    """Refined so far."""
    busy_s: float = 0.0
    """Seconds in the stages of finished calls."""
    losses: int = 0
    """How often its process was lost."""
    gone: str | None = None
    """Why it was lost, if it is not back."""
    measures: list[str] = field(default_factory=list)
    """What it had to do to fit its device's memory, oldest first."""


class Roster:
    """All replicas that were heard of, over all images of a command; they are numbered for good."""

    def __init__(self) -> None:
        self.members: dict[int, Member] = {}

    def hear(self, event: JobEvent) -> None:
        """Take an event in."""
        match event:
            case ReplicaPlaced(replica, node):
                self.of(replica).node = node
            case ReplicaReady(replica, timings, device):
                member = self.of(replica)
                member.ready, member.device, member.gone = True, device, None
                self._note(member, timings)
            case ReplicaLost(replica, reason):
                member = self.of(replica)
                member.ready, member.gone = False, reason
                member.losses += 1
            case TilesDone(call, replica, _, timings):
                member = self.of(replica)
                member.tiles += len(call.tiles)
                member.busy_s += sum(timings.stages.values())
                self._note(member, timings)
            case _:
                pass

    def of(self, replica: int) -> Member:
        """A replica by its number."""
        return self.members.setdefault(replica, Member(replica))

    def called(self, replica: int) -> str:
        """A replica for people: ``replica 3 on node-b``, if its machine is known."""
        node = self.of(replica).node
        return f"replica {replica} on {node}" if node else f"replica {replica}"

    @property
    def ready(self) -> int:
        """Replicas that take calls."""
        return sum(member.ready for member in self.members.values())

    @staticmethod
    def _note(member: Member, timings: Timings) -> None:
        member.measures += [measure for measure in timings.measures if measure not in member.measures]
