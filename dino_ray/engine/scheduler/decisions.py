"""What the scheduler decides. ``drive`` has the engine do it, in this order."""

from __future__ import annotations

from dataclasses import dataclass

from dino_ray.engine.protocol import Handle, TileCall


@dataclass(frozen=True)
class Start:
    """Send a call to a replica."""

    call: TileCall
    replica: int
    copy: bool = False
    """Another replica works on the same tiles, and is late."""


@dataclass(frozen=True)
class Cancel:
    """End a call that nobody waits for any more."""

    call: TileCall
    replica: int


@dataclass(frozen=True)
class Replace:
    """Give a replica up, and have it start anew."""

    replica: int
    reason: str


@dataclass(frozen=True)
class Merge:
    """Merge some cells."""

    cells: tuple[int, ...]
    tiles: tuple[tuple[int, Handle], ...]
    """Number and pixels of every tile that any of the cells is made of."""


@dataclass(frozen=True)
class Stop:
    """The job can't be done."""

    reason: str
    stuck: bool = False
    """Nothing failed, but nothing moves either: what the engine says of itself belongs to the diagnosis."""


Decision = Start | Cancel | Replace | Merge | Stop
