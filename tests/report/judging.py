"""A command whose replicas judge their tiles, by a rule that tests know: for this process, or run as one of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fakes import Shade

from dino_ray import job
from dino_ray.engine.local import Replica
from dino_ray.engine.protocol import ReplicaSpec, TileCall, Timings
from dino_ray.fidelity.record import ACTIONS, TileFidelity
from dino_ray.upsample import Lanczos

OPTIONS = ("--address", "none", "--tile", "64", "--overlap", "16", "--dino-strength", "0", "--batch", "1")
"""Of the command; the bundled model is asked for, and a cheap one stands in for it."""


def judged(tile: int) -> TileFidelity:
    """What is found of a tile: every fifth was flat, and the higher its number, the worse it is."""
    action = ACTIONS[tile % len(ACTIONS)]
    if action == "skipped":
        return TileFidelity(tile, action)
    heat = tuple((tile + square) % 256 for square in range(64))
    return TileFidelity(tile, action, 1 - tile / 500, 0.9, 0.8 - tile / 500, 40.0, 1.0, tile / 20, 0, heat)


class Judging(Replica):
    """Says of each refined tile what is found of it."""

    def refine(self, task: Any, guide: Any, call: TileCall, *rest: Any) -> tuple[list[Any], Timings]:
        pixels, timings = super().refine(task, guide, call, *rest)
        records = tuple(map(judged, call.tiles)) if call.refine else ()
        return pixels, replace(timings, fidelity=records)


def install(replace_attribute: Any = setattr) -> None:
    """Have the local engine's replicas judge."""
    import dino_ray.engine.local

    replace_attribute(dino_ray.engine.local, "Replica", Judging)
    replace_attribute(job, "replica_spec", lambda config, settings: ReplicaSpec(Lanczos, Shade))


if __name__ == "__main__":
    from dino_ray.cli import main

    install()
    main()
