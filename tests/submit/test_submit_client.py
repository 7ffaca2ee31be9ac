"""What the user's machine makes of a command: the order it sends, and what it says of jobs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
from PIL import Image

from dino_ray.config import UpscaleConfig
from dino_ray.inputs import Input
from dino_ray.submit import client, commands, record, routes
from dino_ray.submit.dashboard import Dashboard, JobState, State
from dino_ray.submit.follow import Told
from dino_ray.submit.order import Order
from dino_ray.submit.results import write_report
from dino_ray.submit.status import jobs


@pytest.mark.parametrize("workers", [4, "2:16", "auto"])
def test_options_arrive_as_they_were_given(tmp_path: Path, workers: int | str) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    given = UpscaleConfig.model_validate(
        {
            "model": "none",
            "scale": 3,
            "workers": workers,
            "wrap": "on",
            "format": "tiff",
        }
    )
    request = client.Request(
        [Input(str(tmp_path / "photo.png"))],
        [str(tmp_path / "out.tif")],
        given,
        routes.means(False, (), None),
    )
    prepared = client.prepare(request, "http://head:8265")
    there = Order.from_json(prepared.order.to_json())
    arrived = UpscaleConfig.model_validate(dict(there.config))
    assert arrived.model_copy(update={"shared": given.shared}) == given
    assert arrived.model_fields_set == given.model_fields_set | {"shared"}  # what was left open stays open


@pytest.mark.parametrize("named", ["s3://bucket/report.json", "https://host/report.json"])
def test_a_report_behind_an_address_is_no_path(named: str) -> None:
    assert record.report_place(named) == named


def test_a_report_goes_to_the_folder_of_the_command_that_named_it() -> None:
    assert record.report_place("report.json") == os.path.abspath("report.json")
    assert record.report_place("file:///data/a%20report.json") == "/data/a report.json"
    assert record.report_place(None) is None


def test_images_that_were_not_sent_are_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    absent = str(tmp_path / "absent.png")
    request = client.Request(
        [Input(str(tmp_path / "photo.png")), Input(absent)],
        [str(tmp_path / "1.tif"), str(tmp_path / "2.tif")],
        UpscaleConfig(model="none"),
        routes.means(False, (), None),
        report=str(tmp_path / "report.json"),
    )
    prepared = client.prepare(request, "http://head:8265")
    prepared.record.save()
    remembered = record.find(prepared.record.job)  # by another command, which comes back to the job
    assert remembered == prepared.record
    told = Told(images=[("photo.png", "1.tif")], reports={0: {"source": "photo.png"}})
    write_report(remembered, told)
    done, failed = json.loads((tmp_path / "report.json").read_text())
    assert done == {"source": "photo.png"}
    assert failed["source"] == absent
    assert "no such file" in failed["error"]


def test_with_progress_as_json_the_name_is_json_too() -> None:
    assert json.loads(commands._submitted("upscale-a-1", "json"))["job"] == "upscale-a-1"
    assert commands._submitted("upscale-a-1", "auto") == "submitted as upscale-a-1"


class _Jobs:
    """A dashboard that knows one job, whose log is empty."""

    def __init__(self, state: State, metadata: Mapping[str, str]) -> None:
        self._job = JobState("upscale-a-1", state, metadata={"dino_ray": "0.1.0", **metadata})

    def jobs(self) -> list[JobState]:
        return [self._job]

    def last_lines(self, job: JobState, count: int) -> list[str]:
        return []


@pytest.mark.parametrize(
    ("state", "metadata", "done", "images"),
    [
        ("SUCCEEDED", {"images": "3"}, 3, 3),
        ("STOPPED", {"images": "3"}, 0, 3),
        ("PENDING", {"images": "3"}, 0, 3),
        ("SUCCEEDED", {}, 1, 1),
        ("SUCCEEDED", {"images": "many"}, 1, 1),
    ],
)
def test_a_job_that_is_done_has_done_all_of_its_images(
    state: State, metadata: dict[str, str], done: int, images: int
) -> None:
    (status,) = jobs(cast(Dashboard, _Jobs(state, metadata)))
    assert (status.images_done, status.images) == (done, images)
