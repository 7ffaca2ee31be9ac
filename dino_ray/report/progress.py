"""Progress as it is seen: bars for a person, JSON lines for a program. Both are listeners of job events."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from dino_ray.engine.protocol import (
    CellDone,
    ImageDone,
    ImageStarted,
    JobEvent,
    Listener,
    StageStarted,
    TilesDone,
    TilesLost,
    TilesSpare,
    TilesStarted,
)
from dino_ray.report.narration import STAGES, Narrator, plain_fields

__all__ = ["STAGES", "bars", "json_lines", "plain_lines"]


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
        self._note = ""
        self._flying: Counter[int] = Counter()
        self._narrate = Narrator()

    def __call__(self, event: JobEvent) -> None:
        said = self._narrate(event)
        if said is not None:
            self._progress.console.print(said.text, markup=False, highlight=False)
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
            case TilesStarted(replica=replica):
                self._flying[replica] += 1
            case TilesDone(call, replica):
                self._flying[replica] -= 1
                self._progress.advance(self._tiles, len(call.tiles))
            case TilesLost(replica=replica) | TilesSpare(replica=replica):
                self._flying[replica] -= 1
            case CellDone():
                self._progress.advance(self._cells)
            case ImageDone():
                self._clear()
            case _:
                pass
        self._show_busy()

    def _show_busy(self) -> None:
        if self._tiles is None:
            return
        busy = sum(count > 0 for count in self._flying.values())
        total = max(self._narrate.roster.ready, busy)
        note = f"{busy} of {total} replicas busy"
        if note != self._note:
            self._note = note
            self._progress.update(self._tiles, note=note)

    def _show_stage(self, text: str) -> None:
        if self._stage is None:
            self._stage = self._progress.add_task(text, total=None, note="")
        self._progress.update(self._stage, description=text)

    def _clear(self) -> None:
        for task in (self._tiles, self._cells, self._stage):
            if task is not None:
                self._progress.remove_task(task)
        self._tiles = self._cells = self._stage = None
        self._note = ""
        self._flying.clear()


def plain_lines(stream: IO[str]) -> Listener:
    """One line per stage and per tenth of the cells, for logs and pipes."""
    count, total, tenth = 0, 1, 0
    narrate = Narrator()

    def hear(event: JobEvent) -> None:
        nonlocal count, total, tenth
        said = narrate(event)
        if said is not None:
            print(said.text, file=stream, flush=True)
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
            case _:
                pass

    return hear


def json_lines(stream: IO[str], clock: Callable[[], float] = time.time) -> Listener:
    """Every event as one line of JSON: ``event`` (its kind), ``time`` (Unix seconds), and its fields."""

    def hear(event: JobEvent) -> None:
        line = {"event": type(event).__name__, "time": round(clock(), 3), **plain_fields(event)}
        print(json.dumps(line), file=stream, flush=True)

    return hear
