"""Promises of what is said of a run with faults, on the terminal and in the report."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np

from dino_ray import upscale
from dino_ray.engine.protocol import (
    CellLost,
    ImageStarted,
    JobEvent,
    ReplicaLeaving,
    ReplicaLost,
    ReplicaPlaced,
    ReplicaReady,
    SourceCondition,
    TileCall,
    TilePoisoned,
    TilesDone,
    TilesLost,
    TilesSpare,
    TilesStarted,
    Timings,
)
from dino_ray.plan.geometry import make_grid
from dino_ray.report.narration import Narrator
from dino_ray.report.progress import bars, json_lines, plain_lines
from dino_ray.report.roster import Roster
from dino_ray.report.run import Bookkeeper, UpscaleReport


def eventful() -> Iterator[JobEvent]:
    """All that can befall replicas: one joins, helps out, runs short of memory, is drained and lost."""
    yield ReplicaPlaced(0, "node-a")
    yield ReplicaReady(0, device="GPU A")
    first, second = TileCall(0, (0, 1)), TileCall(1, (2, 3))
    yield TilesStarted(first, 0)
    yield TilesDone(first, 0, (None, None), Timings({"base": 1.0, "steps": 2.0}))
    yield ReplicaPlaced(1, "node-b")
    yield ReplicaReady(1, device="GPU B")
    yield TilesStarted(second, 0)
    yield TilesStarted(second, 1, copy=True)
    yield TilesDone(second, 1, (None, None), Timings({"steps": 4.0}, measures=("batches of 2",)))
    yield TilesSpare(second, 0)
    yield TilesDone(TileCall(2, (6,)), 1, (None,), Timings({"steps": 1.0}, measures=("batches of 2",)))
    yield ReplicaLeaving(1, "spot notice")
    yield TilesStarted(TileCall(3, (4, 5)), 1)
    yield TilesLost(TileCall(3, (4, 5)), 1, "the machine went", "node")
    yield ReplicaLost(1, "spot notice", for_good=True, fault="node")
    yield TilesLost(TileCall(4, (8,)), 0, "not needed", "cancelled")
    yield TilePoisoned(7, "too bright")
    yield CellLost(3, "its tiles are gone", tiles_lost=True)


def said() -> list[str]:
    narrate = Narrator()
    return [sentence.text for event in eventful() if (sentence := narrate(event)) is not None]


def test_what_befalls_replicas_is_said_with_their_machines_and_only_once() -> None:
    assert said() == [
        "replica 1 on node-b joins",
        "tiles 2, 3 overdue, replica 1 on node-b tries too",
        "replica 1 on node-b is short of memory and goes on with batches of 2",
        "replica 1 on node-b is about to go and gets no more work: spot notice",
        "tiles 4, 5 failed on replica 1 on node-b, trying again: the machine went",
        "replica 1 on node-b lost for good, its work goes elsewhere: spot notice",
        "tile 7 given up, the base takes its place: too bright",
        "cell 3 could not be merged, trying again: its tiles are gone",
    ]


def test_a_replica_that_was_lost_is_said_to_be_back() -> None:
    narrate = Narrator()
    events: list[JobEvent] = [
        ReplicaReady(0),
        ReplicaLost(0, "killed"),
        ReplicaPlaced(0, "node-a"),
        ReplicaReady(0),
    ]
    sentences = [sentence for event in events if (sentence := narrate(event))]
    assert [sentence.text for sentence in sentences] == [
        "replica 0 lost, its work goes elsewhere: killed",
        "replica 0 on node-a is back",
    ]
    assert [sentence.fault for sentence in sentences] == [True, False]


def test_replicas_that_start_together_are_no_news() -> None:
    narrate = Narrator()
    starts: list[JobEvent] = [ReplicaPlaced(0, "a"), ReplicaPlaced(1, "b"), ReplicaReady(1), ReplicaReady(0)]
    assert [narrate(event) for event in starts] == [None] * 4


def test_a_worn_source_is_said_to_be_taken_for_one() -> None:
    grid = make_grid(256, 128, tile=64, overlap=16, multiple=16)
    found = [SourceCondition(0.61, 3.85, worn=True), SourceCondition(0.6, 0.0, worn=False), None]
    told = [Narrator()(ImageStarted("photo", grid, 1, Timings(source=each))) for each in found]
    assert told[0] is not None
    assert "worn (noise 0.6, JPEG blocks 3.9 levels of 255)" in told[0].text
    assert not told[0].fault
    assert told[1:] == [None, None]


def test_lines_and_bars_say_the_same() -> None:
    plain, terminal = io.StringIO(), io.StringIO()
    tell = plain_lines(plain)
    for event in eventful():
        tell(event)
    assert plain.getvalue().splitlines() == said()
    grid = make_grid(256, 128, tile=64, overlap=16, multiple=16)
    with bars(terminal) as listen:
        listen(ImageStarted("photo", grid, 1, Timings()))
        for event in eventful():
            listen(event)
    shown = " ".join(terminal.getvalue().split())
    assert all(sentence in shown for sentence in said())


def test_json_lines_tell_of_measures() -> None:
    stream = io.StringIO()
    tell = json_lines(stream)
    for event in eventful():
        tell(event)
    assert '"measures": ["batches of 2"]' in stream.getvalue()


def test_a_report_lists_replicas_with_their_machines_work_and_end() -> None:
    roster = Roster()
    books = Bookkeeper(0.0, roster)
    for event in eventful():
        books.hear(event)
    first, second = books.replicas()
    assert (first.replica, first.node, first.device, first.tiles, first.busy_s) == (
        0,
        "node-a",
        "GPU A",
        2,
        3.0,
    )
    assert (first.losses, first.ended, first.measures) == (0, None, ())
    assert (second.tiles, second.busy_s, second.losses, second.ended) == (3, 5.0, 1, "spot notice")
    assert second.measures == ("batches of 2",)


def test_the_next_images_report_counts_its_own_work_and_leaves_out_who_was_gone() -> None:
    roster = Roster()
    before = Bookkeeper(0.0, roster)
    for event in eventful():
        before.hear(event)
    books = Bookkeeper(0.0, roster)
    books.hear(TilesDone(TileCall(0, (0,)), 0, (None,), Timings({"steps": 0.5})))
    (only,) = books.replicas()
    assert (only.replica, only.node, only.tiles, only.busy_s) == (0, "node-a", 1, 0.5)


def test_a_report_with_replicas_survives_json() -> None:
    import json

    _, report = upscale(np.zeros((40, 60, 3), np.uint8), model="none", address="none", tile=64)
    assert [(r.replica, r.tiles, r.ended) for r in report.replicas] == [(0, report.tiles, None)]
    assert UpscaleReport.from_dict(json.loads(report.to_json())) == report
    older = {
        name: value
        for name, value in json.loads(report.to_json()).items()
        if name not in ("replicas", "copies")
    }
    assert UpscaleReport.from_dict(older).replicas == ()
