"""Promises of the progress that a person or a program reads."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator

from dino_ray.engine.protocol import (
    CellDone,
    DriveDone,
    ImageDone,
    ImageStarted,
    JobEvent,
    ReplicaLost,
    ReplicaReady,
    StageStarted,
    TileCall,
    TilePoisoned,
    TilesDone,
    TilesLost,
    TilesStarted,
    Timings,
)
from dino_ray.plan.geometry import make_grid
from dino_ray.report.progress import bars, json_lines, plain_lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def a_job() -> Iterator[JobEvent]:
    """Two images; on the way a replica dies, a tile is tried again and another given up."""
    grid = make_grid(256, 128, tile=64, overlap=16, multiple=16)
    for _ in range(2):
        yield StageStarted("ingest")
        yield StageStarted("features")
        yield ImageStarted("photo[1].jpg", grid, 2, Timings())
        yield StageStarted("tiles")
        yield ReplicaReady(0)
        yield TilesStarted(TileCall(0, (0,)), 0)
        yield TilesLost(TileCall(0, (0,)), 0, "the power went", "died")
        yield ReplicaLost(0, "the power went")
        yield ReplicaReady(0)
        yield TilePoisoned(0, "too bright")
        for tile in range(grid.n_tiles):
            yield TilesStarted(TileCall(tile, (tile,)), 0)
            yield TilesDone(
                TileCall(tile, (tile,)), 0, pixels=(object(),), timings=Timings({"base": 0.123456}, 100.0)
            )
        for cell in range(grid.n_cells):
            yield CellDone(cell, Timings({"blend": 0.1}))
        yield DriveDone(grid.n_tiles, 1, {0: "too bright"})
        yield StageStarted("export")
        yield ImageDone("out.png")


def test_bars_show_tiles_cells_replicas_and_every_fault() -> None:
    terminal = Terminal()
    with bars(terminal) as listen:
        for event in a_job():
            listen(event)
            if isinstance(event, TilePoisoned):
                time.sleep(0.3)  # the display is redrawn ten times a second
    shown = terminal.getvalue()
    told = [
        "photo[1].jpg  tiles",
        "photo[1].jpg  cells",
        "0 of 1 replicas busy",
        "replica 0 lost",
        "tile 0 given up",
    ]
    for text in (*told, "the power went"):
        assert text in shown


def test_lines_name_stages_tenths_and_every_fault() -> None:
    stream = io.StringIO()
    listen = plain_lines(stream)
    for event in a_job():
        listen(event)
    lines = stream.getvalue().splitlines()
    assert lines.count("reading the source") == 2
    assert sum(line.startswith("100 % of") for line in lines) == 2
    assert sum("trying again: the power went" in line for line in lines) == 2
    assert len(lines) < 50


def test_json_lines_carry_every_event_and_no_pixels() -> None:
    stream = io.StringIO()
    listen = json_lines(stream, clock=lambda: 1.23456)
    events = list(a_job())
    for event in events:
        listen(event)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [type(event).__name__ for event in events]
    assert all(line["time"] == 1.235 for line in lines)
    done = next(line for line in lines if line["event"] == "TilesDone")
    assert done == {
        "event": "TilesDone",
        "time": 1.235,
        "call": 0,
        "tiles": [0],
        "replica": 0,
        "stages": {"base": 0.1235},
    }
