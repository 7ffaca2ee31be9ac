"""Promises of structured logs: every event and message a line of JSON, faults as warnings; the terminal has none."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_narration import eventful

from dino_ray import upscale
from dino_ray.config import UpscaleConfig
from dino_ray.errors import UsageError
from dino_ray.report import logs
from dino_ray.report.logs import EventLog, log_file
from dino_ray.request import Image, check_array
from dino_ray.resolve import resolve


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def image() -> Image:
    settings = resolve(UpscaleConfig(model="none"))
    return check_array(np.zeros((32, 32, 3), np.uint8), settings, "photo.png")


def test_a_jobs_events_are_lines_with_time_level_and_fields(tmp_path: Path) -> None:
    with log_file(tmp_path / "job.log"):
        upscale(np.zeros((40, 60, 3), np.uint8), model="none", address="none", tile=64)
    written = lines(tmp_path / "job.log")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in written)
    assert {"StageStarted", "ImageStarted", "TilesStarted", "TilesDone", "CellDone", "ImageDone"} <= {
        line["event"] for line in written
    }
    done = next(line for line in written if line["event"] == "TilesDone")
    assert (done["level"], done["image"], done["replica"], done["tiles"]) == ("info", "array", 0, [0])
    assert done["node"]
    assert done["seconds"] == pytest.approx(sum(done["stages"].values()), abs=1e-3)
    cell = next(line for line in written if line["event"] == "CellDone")
    assert cell["cell"] == 0
    assert cell["seconds"] >= 0


def test_faults_are_warnings_with_replica_node_and_reason(tmp_path: Path, image: Image) -> None:
    with log_file(tmp_path / "job.log"):
        hear = EventLog().listener(image)
        for event in eventful():
            hear(event)
    warned = {line["event"]: line for line in lines(tmp_path / "job.log") if line["level"] == "warning"}
    assert set(warned) == {
        "ReplicaLeaving", "ReplicaLost", "TilesStarted", "TilesDone", "TilesLost", "TilePoisoned", "CellLost"
    }  # fmt: skip
    lost = warned["ReplicaLost"]
    assert (lost["replica"], lost["node"], lost["reason"], lost["fault"]) == (
        1,
        "node-b",
        "spot notice",
        "node",
    )
    assert warned["TilesLost"]["tiles"] == [4, 5]
    assert warned["TilesStarted"]["copy"] is True
    assert warned["TilesDone"]["measures"] == ["batches of 2"]
    assert (warned["TilePoisoned"]["tile"], warned["CellLost"]["cell"]) == (7, 3)


def test_messages_and_their_tracebacks_go_into_the_file_too(tmp_path: Path) -> None:
    with log_file(tmp_path / "job.log"):
        try:
            raise ValueError("no good")
        except ValueError:
            logging.getLogger("dino_ray.job").warning("the effect of %s", "DINO", exc_info=True)
    (line,) = lines(tmp_path / "job.log")
    assert (line["event"], line["message"], line["logger"]) == (
        "Message",
        "the effect of DINO",
        "dino_ray.job",
    )
    assert "ValueError: no good" in line["traceback"]


def test_a_log_is_appended_to_and_let_go_of(tmp_path: Path, image: Image) -> None:
    events, handlers = list(eventful()), list(logs.EVENTS.handlers)
    for _ in range(2):
        with log_file(tmp_path / "job.log"):
            EventLog().listener(image)(events[0])
            assert lines(tmp_path / "job.log")  # written at once
    EventLog().listener(image)(events[0])
    assert len(lines(tmp_path / "job.log")) == 2
    assert logs.EVENTS.handlers == handlers


def test_events_are_no_messages_on_the_terminal(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    hear = EventLog().listener(image)
    for event in eventful():
        hear(event)
    assert capsys.readouterr() == ("", "")


def test_a_log_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "job.log", tmp_path, "s3://bucket/job.log"):
        with pytest.raises(UsageError, match="--log "), log_file(path):
            pass


def test_a_disk_that_fills_up_costs_the_log_and_not_the_job(
    image: Image, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs a file that is always full")
    handler = logs._Appending("/dev/full")
    logs.EVENTS.addHandler(handler)
    try:
        hear = EventLog().listener(image)
        for event in eventful():
            hear(event)
    finally:
        logs.EVENTS.removeHandler(handler)
    said = [
        record.getMessage() for record in caplog.records if "can't be written any more" in record.getMessage()
    ]
    assert len(said) == 1
    assert "Traceback" not in capsys.readouterr().err
