"""Promises of what travels between the two ends: orders and notes come back as they were, and lead nowhere else."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_ray.engine.protocol import (
    CellDone,
    ImageStarted,
    JobEvent,
    ReplicaLost,
    SourceCondition,
    StageStarted,
    TilePoisoned,
    Timings,
)
from dino_ray.errors import UsageError
from dino_ray.plan.geometry import make_grid
from dino_ray.report.progress import json_lines
from dino_ray.submit import connection, notes, record
from dino_ray.submit.order import Order, Source, Target
from dino_ray.submit.standing import SAY_LINES, SAY_S, Tracker
from dino_ray.submit.status import summary

names = st.text(st.characters(exclude_characters="/\\\0", codec="utf-8"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..")
)


@given(names, names, st.integers(0, 2**50), st.booleans())
def test_an_order_arrives_as_it_was_given(name: str, result: str, size: int, strict: bool) -> None:
    image = (Source(name, "x/" + name, size), Target(result, "y/" + result, sent=True))
    order = Order("00ff00ff", (image,), {"scale": 3.0}, strict=strict)
    assert Order.from_json(order.to_json()) == order
    ((source, target),) = order.pairs("/job")
    assert source.startswith("/job/in/0/")
    assert target.startswith("/job/out/0/")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b"])
def test_no_name_in_an_order_leads_out_of_its_folder(name: str) -> None:
    raw = json.loads(Order("00ff00ff", ((Source("a", "a", 1), Target("b", "b", sent=True)),)).to_json())
    for end, key in ((0, "size"), (1, "sent")):
        image = json.loads(json.dumps(raw["images"][0]))
        image[end]["place"] = name
        assert image[end][key]
        with pytest.raises(UsageError):
            Order.from_json(json.dumps({**raw, "images": [image]}))
    with pytest.raises(UsageError):
        Order.from_json(json.dumps({**raw, "folder": name}))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "images": 3}', "null"])
def test_what_is_no_order_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Order.from_json(text)


def test_an_order_of_another_format_names_both_versions() -> None:
    raw = json.loads(Order("00ff00ff", ((Source("a", "a", 1), Target("b", "b", sent=True)),)).to_json())
    with pytest.raises(UsageError, match=r"9\.9.*--ship"):
        Order.from_json(json.dumps({**raw, "format": 99, "version": "9.9"}))


def heard(*events: JobEvent) -> list[Any]:
    stream = io.StringIO()
    say = json_lines(stream)
    for event in events:
        say(event)
    return [notes.parse(line) for line in stream.getvalue().splitlines()]


def test_events_come_back_from_their_lines() -> None:
    events = (StageStarted("tiles"), ReplicaLost(3, "gone", True), TilePoisoned(7, "why"), CellDone(5))
    assert heard(*events) == [*events]


def test_a_grid_comes_back_as_its_sizes() -> None:
    grid = make_grid(300, 200, tile=64, overlap=16, multiple=8)
    found = SourceCondition(0.5, 3.9, worn=True)
    (event,) = heard(ImageStarted("a.png", grid, 2, Timings(source=found), 3))
    assert event.preparation.source == found
    assert (event.name, event.replicas, event.cells_done) == ("a.png", 2, 3)
    assert event.grid == notes.Sizes(300, 200, grid.n_tiles, grid.n_cells)


@pytest.mark.parametrize(
    "note",
    [
        notes.Accepted("1", (("a", "b"), ("c", "d"))),
        notes.Ready((notes.Parcel(0, "dino-ray/x/0", 5, "ff", False),), 1.5),
        notes.ImageFailed(None, "no", 2),
        notes.Ended(130),
        notes.Standing("tiles", 1, 2, 3, 4, 5),
        notes.ReportPiece(0, '"{', False),
    ],
)
def test_notes_come_back_from_their_lines(note: notes.Note) -> None:
    assert notes.parse(notes.to_line(note)) == note


@given(st.text(max_size=200))
def test_other_lines_of_a_log_are_no_events(line: str) -> None:
    assert notes.parse(line) is None


@pytest.mark.parametrize(
    "line", ['{"event": "Ended"}', '{"event": "Nothing"}', '{"event": 3}', "{", '{"event": "Ready"}']
)
def test_a_broken_note_is_passed_over(line: str) -> None:
    assert notes.parse(line) is None


@given(st.text(min_size=1, max_size=5 * notes.PIECE))
def test_a_report_is_whole_after_its_pieces(text: str) -> None:
    cut = [notes.parse(notes.to_line(piece)) for piece in notes.pieces(0, text, before=False)]
    assert "".join(piece.text for piece in cut) == text  # type: ignore[union-attr]
    assert [piece.last for piece in cut] == [False] * (len(cut) - 1) + [True]  # type: ignore[union-attr]


def test_the_end_of_a_log_always_says_where_the_job_is() -> None:
    """Of thousands of lines a second, too."""
    track, log = Tracker(1), []
    lines = [json.dumps({"event": "StageStarted", "stage": "tiles"})]
    lines += [json.dumps({"event": "CellDone", "cell": n}) for n in range(1000)]
    for n, line in enumerate(lines):
        log.append(line)
        if standing := track(line, now=n * SAY_S / 1e6):
            log.append(notes.to_line(standing))
    tail = summary(log[-2 * SAY_LINES :])
    assert tail.standing is not None
    assert 1000 - tail.standing.cells_done <= SAY_LINES


def test_slow_jobs_say_at_once_what_they_have_begun() -> None:
    track = Tracker(1)
    for now, stage in enumerate(["ingest", "workers", "features"]):
        standing = track(json.dumps({"event": "StageStarted", "stage": stage}), now=now / 100)
        assert standing is not None
        assert standing.stage == stage


def test_an_order_holds_no_object_of_python() -> None:
    order = Order("00ff00ff", ((Source("a", "a", 1), Target("b", "b", sent=True)),))
    assert json.loads(order.to_json()) == json.loads(json.dumps(asdict(order)))


@pytest.mark.parametrize(
    ("given", "variables", "address"),
    [
        ("http://head:8265", {}, "http://head:8265"),
        ("head:8265/", {}, "http://head:8265"),
        ("https://head", {"RAY_API_SERVER_ADDRESS": "http://other:1"}, "https://head"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://other:1"}, "http://other:1"),
        (None, {"RAY_ADDRESS": "http://other:1"}, "http://other:1"),
        (None, {"RAY_ADDRESS": "other:6379"}, "http://127.0.0.1:8265"),
        (None, {}, "http://127.0.0.1:8265"),
    ],
)
def test_the_dashboard_is_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch, given: str | None, variables: dict[str, str], address: str
) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert connection.named(given) == address


@pytest.mark.parametrize(
    "given", ["auto", "local", "ray://head:10001", "http://", "http://u:secret@head:1", "http://head:x"]
)
def test_what_names_no_dashboard_is_refused_without_secrets(given: str) -> None:
    with pytest.raises(UsageError, match="http://HEAD:8265") as refused:
        connection.named(given)
    assert "secret" not in str(refused.value)


def test_what_this_machine_remembers_of_a_job_is_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert record.find("job") is None
    remembered = record.Record(
        "job", "http://head:1", ("/home/me/out.png", None), "s3://b/jobs/job", several=True
    )
    remembered.save()
    assert record.find("job") == remembered
    assert (tmp_path / "dino-ray" / "jobs").stat().st_mode & 0o077 == 0
    remembered.forget()
    assert record.find("job") is None
    for name in ("../job", "", "a/b", ".."):
        with pytest.raises(UsageError):
            record.find(name)
