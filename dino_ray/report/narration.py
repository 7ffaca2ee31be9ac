"""Events in words: which of them a person should read, and as what; and as plain fields, for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from dino_ray.engine.protocol import (
    CellLost,
    ImageStarted,
    JobEvent,
    ReplicaLeaving,
    ReplicaLost,
    ReplicaPlaced,
    ReplicaReady,
    SourceCondition,
    StageStarted,
    TileCall,
    TilePoisoned,
    TilesDone,
    TilesLost,
    TilesStarted,
    Timings,
)
from dino_ray.fidelity.record import TileFidelity
from dino_ray.report.roster import Roster

if TYPE_CHECKING:
    from dino_ray.report.run import UpscaleReport

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
            case ImageStarted(preparation=Timings(source=SourceCondition(noise, blocks, worn=True))):
                return Said(
                    f"the source is worn (noise {noise:.1f}, JPEG blocks {blocks:.1f} levels of 255): its base is made "
                    "to take that out; --net clean would keep it",
                    fault=False,
                )
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


def in_one_line(report: UpscaleReport) -> str:
    """What was found of an image's fidelity, and where its map is; empty if nothing was."""
    fidelity = report.fidelity
    if fidelity is None:
        return ""
    actions, mean, lowest = fidelity["actions"], fidelity["cosine_mean"], fidelity["cosine_min"]
    mended = actions["blended"] + actions["retried"]
    cosines = [
        f"mean cosine {mean:.4f}" if mean is not None else "",
        f"worst patch {lowest:.3f}" if lowest is not None else "",
    ]
    counts = [
        f"{mended:,} of {report.tiles:,} tiles mended" if mended else "",
        f"{actions['kept']:,} replaced by the base" if actions["kept"] else "",
        f"{actions['skipped']:,} flat ones left to the base" if actions["skipped"] else "",
        f"{fidelity['unrecorded']:,} unrecorded" if 0 < fidelity["unrecorded"] < report.tiles else "",
    ]
    said = [
        ", ".join(filter(None, cosines)),
        ", ".join(filter(None, counts)),
        f"see {fidelity['files']['heat_map']}" if "heat_map" in fidelity["files"] else "",
    ]
    return "; ".join(filter(None, said))


def plain_fields(event: JobEvent) -> dict[str, Any]:
    """What of an event means something outside this process: a grid by its sizes, pixels not at all."""
    if isinstance(event, ImageStarted):
        grid = event.grid
        sizes = {"width": grid.width, "height": grid.height, "tiles": grid.n_tiles, "cells": grid.n_cells}
        found = event.preparation.source
        condition = {"condition": asdict(found)} if found is not None else {}
        return {
            "name": event.name,
            **sizes,
            "replicas": event.replicas,
            "cells_done": event.cells_done,
            **condition,
        }
    values: dict[str, Any] = {f.name: getattr(event, f.name) for f in fields(event) if f.name != "pixels"}
    if (call := values.pop("call", None)) is not None:
        values |= {"call": call.number, "tiles": call.tiles}
    timings = values.pop("timings", None)
    if timings is not None:
        values["stages"] = {name: round(seconds, 4) for name, seconds in timings.stages.items()}
        if timings.measures:
            values["measures"] = timings.measures
        if timings.fidelity:
            values["fidelity"] = [_without_heat(record) for record in timings.fidelity]
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def _without_heat(record: TileFidelity) -> dict[str, Any]:
    """What is known of a tile, but for its map."""
    known = {name: value for name, value in record.to_dict().items() if value is not None and name != "heat"}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in known.items()}


def message(event: JobEvent) -> str:
    """A short line for an event of which there is nothing to say."""
    if isinstance(event, StageStarted):
        return STAGES.get(event.stage, event.stage)
    name = type(event).__name__
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
