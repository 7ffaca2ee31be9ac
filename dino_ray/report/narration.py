"""Events in words: which of them a person should read, and as what; and as plain fields, for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dino_ray.engine.protocol import (
    CellLost,
    ImageStarted,
    JobEvent,
    ReplicaLeaving,
    ReplicaLost,
    ReplicaPlaced,
    ReplicaReady,
    StageStarted,
    TileCall,
    TilePoisoned,
    TilesDone,
    TilesLost,
    TilesStarted,
)
from dino_ray.report.roster import Roster

STAGES = {
    "ingest": "reading the source",
    "workers": "starting the workers",
    "features": "loading the models",
    "tiles": "refining",
    "export": "writing the output",
}
"""Stage to what a person reads."""


@dataclass(frozen=True)
class Said:
    """A sentence about an event."""

    text: str
    fault: bool = True
    """Whether something went wrong, rather than changed."""


class Narrator:
    """Hears every event, and puts into words those that do not belong to a run in which all goes well.

    A replica that gets ready is worth a word if it was lost before, or joins while others are at work.
    """

    def __init__(self) -> None:
        self.roster = Roster()
        self._working = False
        self._expected: dict[int, str] = {}

    def __call__(self, event: JobEvent) -> Said | None:
        """What to say of an event, if anything."""
        measures = self._measures(event)
        self.roster.hear(event)
        who = self.roster.called
        match event:
            case ReplicaPlaced(replica) if self._working and replica not in self._expected:
                self._expected[replica] = "joins"
            case ReplicaReady(replica) if replica in self._expected:
                return Said(f"{who(replica)} {self._expected.pop(replica)}", fault=False)
            case ReplicaLeaving(replica, reason):
                return Said(f"{who(replica)} is about to go and gets no more work: {reason}")
            case ReplicaLost(replica, reason, for_good):
                self._expected[replica] = "is back"
                end = "lost for good" if for_good else "lost"
                return Said(f"{who(replica)} {end}, its work goes elsewhere: {reason}")
            case TilesStarted(call, replica, copy=True):
                return Said(f"{tiles(call)} overdue, {who(replica)} tries too")
            case TilesDone(replica=replica):
                self._working = True
                if measures:
                    listed = ", ".join(self.roster.of(replica).measures[-measures:])
                    return Said(f"{who(replica)} is short of memory and goes on with {listed}")
            case TilesLost(call, replica, reason, fault) if fault != "cancelled":
                return Said(f"{tiles(call)} failed on {who(replica)}, trying again: {reason}")
            case TilePoisoned(tile, reason):
                return Said(f"tile {tile} given up, the base takes its place: {reason}")
            case CellLost(cell, reason):
                return Said(f"cell {cell} could not be merged, trying again: {reason}")
            case _:
                pass
        return None

    def _measures(self, event: JobEvent) -> int:
        """How many measures against a lack of memory an event tells of for the first time."""
        if not isinstance(event, TilesDone):
            return 0
        known = self.roster.of(event.replica).measures
        return sum(measure not in known for measure in dict.fromkeys(event.timings.measures))


def tiles(call: TileCall) -> str:
    """The tiles of a call by their numbers."""
    return f"tile{'s' if len(call.tiles) > 1 else ''} {', '.join(map(str, call.tiles))}"


def plain_fields(event: JobEvent) -> dict[str, Any]:
    """What of an event means something outside this process: a grid by its sizes, pixels not at all."""
    if isinstance(event, ImageStarted):
        grid = event.grid
        sizes = {"width": grid.width, "height": grid.height, "tiles": grid.n_tiles, "cells": grid.n_cells}
        return {"name": event.name, **sizes, "replicas": event.replicas, "cells_done": event.cells_done}
    values: dict[str, Any] = {f.name: getattr(event, f.name) for f in fields(event) if f.name != "pixels"}
    if (call := values.pop("call", None)) is not None:
        values |= {"call": call.number, "tiles": call.tiles}
    timings = values.pop("timings", None)
    if timings is not None:
        values["stages"] = {name: round(seconds, 4) for name, seconds in timings.stages.items()}
        if timings.measures:
            values["measures"] = timings.measures
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def message(event: JobEvent) -> str:
    """A short line for an event of which there is nothing to say."""
    if isinstance(event, StageStarted):
        return STAGES.get(event.stage, event.stage)
    name = type(event).__name__
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
