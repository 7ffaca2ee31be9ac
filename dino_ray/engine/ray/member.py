"""One replica of a pool: where it lives and how far it is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from dino_ray.engine.ray.inflight import Ref


class Standing(Enum):
    """How far a replica is."""

    SCOUT = "wait for a machine"
    STARTING = "starting"
    HELD = "preparing the image"
    LOADING = "loading"
    READY = "ready"
    SETTLING = "ending a former image's call"
    LEAVING = "leaving"


@dataclass
class Member:
    """A replica that lives, or is about to."""

    number: int
    node: str
    """Id; empty for a scout, whose place is not known before it is there."""
    place: str
    """The node's name."""
    actor: Any
    held: bool
    """It loads its models only when it is told to."""
    standing: Standing
    deaths: int = 0
    """Since it was last ready."""
    lives: int = 1
    device: str = "cpu"
    since: float = 0.0
    """When it got its standing, by ``time.monotonic``."""
    calls: dict[Ref, None] = field(default_factory=dict)
    """In flight on it, oldest first: it works on them in this order."""

    image: int | None = None
    """Number of the image whose task and guide it has been sent."""

    def become(self, standing: Standing) -> None:
        self.standing, self.since = standing, time.monotonic()
