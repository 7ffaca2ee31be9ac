"""What is under way on Ray's workers, and what they have left in the store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import ray
from ray.exceptions import RayError

from dino_ray.engine.protocol import TileCall, Timings
from dino_ray.engine.ray.faults import Failure
from dino_ray.engine.ray.workers import copy_task, light

Ref = Any
"""``ray.ObjectRef``, which is not typed."""


@dataclass(eq=False)
class Pixels:
    """A tile's pixels in the store: the engine's ``Handle`` of them."""

    ref: Ref
    node: str
    """Id of the node that they lie on, as far as known."""


# ---- one entry for each answer that is waited for, by the ref that brings it


@dataclass
class Start:
    """A replica's process starts."""

    replica: int


@dataclass
class Load:
    """A replica loads its models."""

    replica: int


@dataclass
class Preparation:
    """A replica computes an image's guide."""

    replica: int
    guide: Ref
    outcome: Timings | Exception | Failure | None = None

    def is_over(self) -> bool:
        return self.outcome is not None


@dataclass
class Beginning:
    """A replica is sent what the tiles of an image have in common."""

    replica: int


@dataclass
class Tiles:
    """A replica refines tiles."""

    replica: int
    call: TileCall
    pixels: Sequence[Ref]
    forgotten: bool = False
    """Nobody waits for the answer any more, but the replica may still be at it."""


@dataclass
class Merge:
    """A worker merges cells."""

    cells: tuple[int, ...]


@dataclass
class Copy:
    """Pixels are copied from a node that is about to go; what waits for them waits for the copy."""

    node: str
    pixels: Pixels
    original: Ref

    def failed(self) -> None:
        """Without a copy, the original is what there is, or what is found to be lost."""
        self.pixels.ref, self.pixels.node = self.original, self.node


Entry = Start | Load | Preparation | Beginning | Tiles | Merge | Copy


def fetch(refs: Sequence[Ref]) -> list[Any]:
    """Small answers that are there: each its value, or the exception that it brings."""
    try:
        return list(ray.get(list(refs)))  # at one go, since that is as dear as one of them
    except RayError:
        return [_fetch_one(ref) for ref in refs]


def _fetch_one(ref: Ref) -> Any:
    try:
        return ray.get(ref)
    except RayError as error:
        return error


@dataclass
class Store:
    """Pixels that wait for their merges, by the node that they lie on.

    Parameters
    ----------
    refuge
        Id of the node that they are copied to when theirs is about to go: the driver's.
    """

    refuge: str
    _kept: dict[str, WeakSet[Pixels]] = field(default_factory=dict)

    def keep(self, refs: Iterable[Ref], node: str) -> tuple[Pixels, ...]:
        kept = tuple(Pixels(ref, node) for ref in refs)
        if node != self.refuge:
            self._kept.setdefault(node, WeakSet()).update(kept)
        return kept

    def evacuate(self, node: str) -> dict[Ref, Entry]:
        """Start to copy what lies on a node; returns what ends when that is done."""
        copies: dict[Ref, Entry] = {}
        for pixels in list(self._kept.pop(node, ())):
            copy = Copy(node, pixels, pixels.ref)
            pixels.ref = light(copy_task, "rescue", self.refuge).remote(pixels.ref)
            pixels.node = self.refuge
            copies[pixels.ref] = copy
        return copies


def tiles_name(call: TileCall) -> str:
    """A call, as Ray's dashboard shows it."""
    tiles = ", ".join(map(str, call.tiles))
    what = "tile" if len(call.tiles) == 1 else "tiles"
    return f"{what} {tiles}" if call.refine else f"base of {what} {tiles}"


def merge_name(cells: Sequence[int]) -> str:
    """A merge, as Ray's dashboard shows it."""
    return f"merge cell {cells[0]}" if len(cells) == 1 else f"merge {len(cells)} cells"
