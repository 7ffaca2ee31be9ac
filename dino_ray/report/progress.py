"""Progress as it is seen: bars for a person, JSON lines for a program. Both are listeners of job events."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import IO, Any

from dino_ray.engine.protocol import (
    CellDone,
    ImageDone,
    ImageStarted,
    JobEvent,
    Listener,
    ReplicaLost,
    ReplicaReady,
    StageStarted,
    TileCall,
    TilePoisoned,
    TilesDone,
    TilesLost,
    TilesStarted,
)

STAGES = {
    "ingest": "reading the source",
    "workers": "starting the workers",
    "features": "loading the models",
    "tiles": "refining",
    "export": "writing the output",
}
"""Stage to what a person reads."""


@contextmanager
def bars(stream: IO[str]) -> Iterator[Listener]:
    """Tiles, cells, busy replicas and the time left, redrawn in place on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Count(MofNCompleteColumn):
        """Done and total, where there is a total."""

        def render(self, task: Task) -> Text:
            return Text("") if task.total is None else super().render(task)

    console = Console(file=stream)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        Count(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        transient=True,
    )
    with progress:
        yield _Bars(progress)


class _Bars:
    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._tiles: Any = None
        self._cells: Any = None
        self._stage: Any = None
        self._flying: dict[int, int] = {}
        self._ready: set[int] = set()

    def __call__(self, event: JobEvent) -> None:
        match event:
            case StageStarted(stage):
                if stage == "ingest":  # of the next image; the one before may have failed half-way
                    self._clear()
                self._show_stage(STAGES[stage])
            case ImageStarted(name=name, grid=grid, cells_done=before):
                # What tiles are left after an earlier run, the cells tell.
                tiles = grid.n_tiles if before == 0 else None
                self._tiles = self._progress.add_task(f"{name}  tiles", total=tiles, note="")
                self._cells = self._progress.add_task(
                    f"{name}  cells", total=grid.n_cells, completed=before, note=""
                )
            case ReplicaReady(replica):
                self._ready.add(replica)
                self._show_busy()
            case ReplicaLost(replica, reason):
                self._ready.discard(replica)
                self._say(f"replica {replica} lost, its work goes elsewhere: {reason}")
            case TilesStarted(replica=replica):
                self._flying[replica] = self._flying.get(replica, 0) + 1
                self._show_busy()
            case TilesDone(call, replica):
                self._flying[replica] -= 1
                self._progress.advance(self._tiles, len(call.tiles))
                self._show_busy()
            case TilesLost(call, replica, reason):
                self._flying[replica] -= 1
                self._show_busy()
                self._say(f"{_tiles(call)} failed on replica {replica}, trying again: {reason}")
            case TilePoisoned(tile, reason):
                self._say(f"tile {tile} given up, the base takes its place: {reason}")
            case CellDone():
                self._progress.advance(self._cells)
            case ImageDone():
                self._clear()
            case _:
                pass

    def _say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def _show_busy(self) -> None:
        if self._tiles is None:
            return
        busy = sum(count > 0 for count in self._flying.values())
        total = max(len(self._ready), busy)
        self._progress.update(self._tiles, note=f"{busy} of {total} replicas busy")

    def _show_stage(self, text: str) -> None:
        if self._stage is None:
            self._stage = self._progress.add_task(text, total=None, note="")
        self._progress.update(self._stage, description=text)

    def _clear(self) -> None:
        for task in (self._tiles, self._cells, self._stage):
            if task is not None:
                self._progress.remove_task(task)
        self._tiles = self._cells = self._stage = None
        self._flying.clear()


def plain_lines(stream: IO[str]) -> Listener:
    """One line per stage and per tenth of the cells, for logs and pipes."""
    count, total, tenth = 0, 1, 0

    def hear(event: JobEvent) -> None:
        nonlocal count, total, tenth
        match event:
            case StageStarted(stage):
                print(STAGES[stage], file=stream, flush=True)
            case ImageStarted(grid=grid, cells_done=before):
                count, total = before, grid.n_cells
                tenth = count * 10 // total
                if before:
                    print(f"going on from {before:,} of {total:,} cells", file=stream, flush=True)
            case CellDone():
                count += 1
                if count * 10 // total > tenth:
                    tenth = count * 10 // total
                    print(f"{10 * tenth} % of {total} cells", file=stream, flush=True)
            case ReplicaLost(replica, reason):
                print(f"replica {replica} lost, its work goes elsewhere: {reason}", file=stream, flush=True)
            case TilesLost(call, replica, reason):
                print(
                    f"{_tiles(call)} failed on replica {replica}, trying again: {reason}",
                    file=stream,
                    flush=True,
                )
            case TilePoisoned(tile, reason):
                print(f"tile {tile} given up, the base takes its place: {reason}", file=stream, flush=True)
            case _:
                pass

    return hear


def json_lines(stream: IO[str], clock: Callable[[], float] = time.time) -> Listener:
    """Every event as one line of JSON: ``event`` (its kind), ``time`` (Unix seconds), and its fields."""

    def hear(event: JobEvent) -> None:
        line = {"event": type(event).__name__, "time": round(clock(), 3), **_plain_fields(event)}
        print(json.dumps(line), file=stream, flush=True)

    return hear


def _tiles(call: TileCall) -> str:
    return f"tile{'s' if len(call.tiles) > 1 else ''} {', '.join(map(str, call.tiles))}"


def _plain_fields(event: JobEvent) -> dict[str, Any]:
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
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
