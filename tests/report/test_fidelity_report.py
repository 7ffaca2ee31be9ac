"""Promises of the report of fidelity, from a replica's word to what the user sees, over crashes and images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import judging
import numpy as np
import pytest
from click.testing import CliRunner, Result
from fakes import Shade
from judging import judged
from PIL import Image

from dino_ray import job, places, upscale
from dino_ray.batch import check_replaced
from dino_ray.cli import main
from dino_ray.engine.protocol import TileCall, TilesDone, Timings
from dino_ray.errors import UsageError
from dino_ray.raster.canvas import Canvas
from dino_ray.report import pictures
from dino_ray.report.narration import in_one_line, plain_fields
from dino_ray.report.pictures import picture_places
from dino_ray.report.run import UpscaleReport

HERE = Path(__file__).parent
TOLD = ("cosine_mean", "cosine_min", "actions", "tiles", "unrecorded")


def photo(path: Path, side: int = 120) -> Path:
    y, x = np.mgrid[:side, :side]
    Image.fromarray(np.stack([x * 2, y * 2, x + y], axis=-1).astype(np.uint8)).save(path)
    return path


def dino_ray(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in (*args, *judging.OPTIONS)])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    judging.install(monkeypatch.setattr)
    photo(tmp_path / "in.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_report_has_every_tile_and_the_pictures_lie_beside_it(work: Path) -> None:
    result = dino_ray("upscale", "in.png", "-o", "out.png", "--report", "r.json")
    assert result.exit_code == 0, result.output
    report = read(work / "r.json")
    found = report["fidelity"]
    assert [row["tile"] for row in found["tiles"]] == list(range(report["tiles"]))
    for row in found["tiles"]:
        assert row["rect"][2:] == [64, 64]
        expected = judged(row["tile"])
        assert (row["action"], bytes.fromhex(row["heat"])) == (expected.action, bytes(expected.heat))
        assert row["cosine_min"] == pytest.approx(expected.cosine_min, abs=1e-5)
    assert found["unrecorded"] == found["tiles_left_out"] == 0
    assert found["files"] == {"heat_map": "r-heat.png", "worst_tiles": "r-worst.png"}
    for name in found["files"].values():
        with Image.open(work / name) as picture:
            assert picture.format == "PNG"
    assert "fidelity: mean cosine 0.9" in result.stderr
    assert "flat ones left to the base; see r-heat.png" in result.stderr


def test_without_a_report_there_are_no_pictures(work: Path) -> None:
    before = sorted(os.listdir(work))
    assert dino_ray("upscale", "in.png", "-o", "out.png").exit_code == 0
    assert sorted(os.listdir(work)) == sorted([*before, "out.png"])


def test_where_no_model_refined_there_is_nothing_to_tell(work: Path) -> None:
    options = ("--model", "none", "--address", "none", "--report", "r.json")
    result = CliRunner().invoke(main, ["upscale", "in.png", "-o", "out.png", *options])
    assert result.exit_code == 0, result.output
    assert read(work / "r.json")["fidelity"] is None
    assert not list(work.glob("r-*"))
    assert "fidelity" not in result.stderr


def test_from_python_the_report_has_the_numbers(work: Path) -> None:
    options: dict[str, Any] = {"address": "none", "tile": 64, "dino_strength": 0, "batch": 1}
    _, report = upscale(work / "in.png", **options)
    assert report.fidelity is not None
    assert len(report.fidelity["tiles"]) == report.tiles
    again = UpscaleReport.from_dict(json.loads(report.to_json()))
    assert again == UpscaleReport.from_dict(json.loads(json.dumps(asdict(again))))
    assert again.fidelity == json.loads(json.dumps(report.fidelity))
    assert not list(work.glob("*.png.*"))


def test_a_poisoned_tile_has_no_record_and_is_marked(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(self: Shade, x: Any, sigma: float, conditioning: Any) -> Any:
        if float(x[0, 0].mean()) > 0.7:
            raise RuntimeError("too bright")
        return 0.9 * x

    monkeypatch.setattr(Shade, "predict", predict)
    result = dino_ray("upscale", "in.png", "-o", "out.png", "--report", "r.json")
    assert result.exit_code == 0, result.output
    report = read(work / "r.json")
    poisoned = set(map(int, report["poisoned"]))
    assert poisoned
    recorded = {row["tile"] for row in report["fidelity"]["tiles"]}
    assert recorded == set(range(report["tiles"])) - poisoned
    assert report["fidelity"]["unrecorded"] == 0


def test_a_killed_job_reports_the_same_as_one_that_was_not(work: Path) -> None:
    args = ("upscale", "in.png", "-o", "out.png", "--scale", "3", "--report")
    assert dino_ray(*args, "whole.json").exit_code == 0
    (work / "out.png").unlink()
    command = [sys.executable, str(HERE / "judging.py"), *args, "r.json", *judging.OPTIONS]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [*command, "--progress", "json"], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    seen = 0
    for line in process.stderr:
        seen += '"CellDone"' in line
        if seen == 200:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (work / "out.png").exists()
    result = dino_ray(*args, "r.json")
    assert result.exit_code == 0, result.output
    whole, resumed = read(work / "whole.json"), read(work / "r.json")
    assert resumed["cells_resumed"] >= 200
    assert resumed["tile_calls"] < whole["tile_calls"]
    for name in TOLD:
        assert resumed["fidelity"][name] == whole["fidelity"][name]
    assert (work / "r-heat.png").read_bytes() == (work / "whole-heat.png").read_bytes()
    assert not (work / "out.png.dino-ray").exists()


def test_behind_an_address_a_job_that_ended_early_goes_on_with_all_records(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "memory://fidelity/job"
    args = ("upscale", "in.png", "-o", "out.png", "--scale", "3", "--job-dir", place)
    write, room = Canvas.write, [12]

    def write_until_gone(self: Canvas, *rest: Any) -> None:
        if room[0] == 0:
            with places.explained(self.folder, "written"):
                raise ConnectionError("gone")
        room[0] -= 1
        write(self, *rest)

    monkeypatch.setattr(Canvas, "write", write_until_gone)
    assert dino_ray(*args).exit_code == 1
    monkeypatch.setattr(Canvas, "write", write)
    report = "memory://fidelity/reports/r.json"
    result = dino_ray(*args, "--report", report)
    assert result.exit_code == 0, result.output
    said = json.loads(places.read_bytes(report))
    assert said["cells_resumed"] == 12
    assert said["fidelity"]["unrecorded"] == 0
    assert said["fidelity"]["files"]["heat_map"] == "memory://fidelity/reports/r-heat.png"
    assert places.read_bytes("memory://fidelity/reports/r-worst.png").startswith(b"\x89PNG")
    assert not places.list_names(place)


def test_several_images_have_pictures_of_their_own_and_finished_ones_keep_them(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "more").mkdir()
    photo(work / "more" / "in.png", 60)
    args = ("upscale", "in.png", "more/in.png", "-o", "out/{index}/{stem}.png", "--report", "r.json")
    write, calls = job.export, []

    def interrupted(*rest: Any) -> None:
        calls.append(rest)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*rest)

    monkeypatch.setattr(job, "export", interrupted)
    assert dino_ray(*args).exit_code == 130
    (first,) = read(work / "r.json")
    assert first["fidelity"]["files"]["heat_map"] == "r-1-in-heat.png"
    written = (work / "r-1-in-heat.png").stat().st_mtime_ns
    result = dino_ray(*args)
    assert result.exit_code == 0, result.output
    again, second = read(work / "r.json")
    assert again["fidelity"] == first["fidelity"]
    assert (work / "r-1-in-heat.png").stat().st_mtime_ns == written
    assert second["fidelity"]["files"]["heat_map"] == "r-2-in-heat.png"
    assert len(second["fidelity"]["tiles"]) == second["tiles"]
    assert len(list(work.glob("r-*.png"))) == 4


@pytest.mark.parametrize("output", ["r-heat.png", "r-worst.png"])
def test_a_picture_takes_the_place_of_no_input_and_no_output(work: Path, output: str) -> None:
    refused = dino_ray("upscale", "in.png", "-o", output, "--report", "r.json")
    assert refused.exit_code == 2
    assert f"--report r.json: {output}, which goes with it, is an input or an output" in refused.stderr
    os.rename("in.png", output)
    assert dino_ray("upscale", output, "-o", "out.png", "--report", "r.json").exit_code == 2
    (work / "kept").mkdir()
    os.rename(output, "in.png")
    os.mkdir(output)
    assert "is a folder" in dino_ray("upscale", "in.png", "-o", "out.png", "--report", "r.json").stderr


def test_a_job_from_a_file_writes_its_pictures_over_no_file_that_is_none(work: Path) -> None:
    (work / "r-heat.png").write_text("dear reader")
    with pytest.raises(UsageError, match=r"r-heat.png: the job would write over it, and it is no image"):
        check_replaced("out.png", "r.json")
    os.replace(photo(work / "old.png"), work / "r-heat.png")
    check_replaced("out.png", "r.json")


def test_pictures_that_can_not_be_made_cost_no_job(
    work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(pictures, "write_whole", fail)
    result = dino_ray("upscale", "in.png", "-o", "out.png", "--report", "r.json")
    assert result.exit_code == 0, result.output
    assert read(work / "r.json")["fidelity"]["files"] == {}
    assert "r-heat.png: could not be made" in caplog.text


def test_names_of_pictures_begin_as_their_reports_and_never_collide() -> None:
    assert picture_places("a/r.json") == {"heat_map": "a/r-heat.png", "worst_tiles": "a/r-worst.png"}
    assert picture_places("s3://b/r")["heat_map"] == "s3://b/r-heat.png"
    outputs = ["x/photo.png", "y/photo.png", "z/1-photo.png", "s3://b/photo.png?versionId=3"]
    several = [
        place for n, output in enumerate(outputs, 1) for place in picture_places("r", output, n).values()
    ]
    assert len(set(several)) == 2 * len(outputs)
    assert several[0] == "r-1-photo-heat.png"
    assert len(picture_places("r", "n" * 300 + ".png", 1)["heat_map"]) < 100


def test_one_line_says_what_there_is_to_say(work: Path) -> None:
    options: dict[str, Any] = {"address": "none", "tile": 64, "dino_strength": 0, "batch": 1}
    _, report = upscale(work / "in.png", **options)
    nothing = {"actions": dict.fromkeys(judging.ACTIONS, 0), "files": {}, "unrecorded": report.tiles}
    silent = replace(report, fidelity={**nothing, "cosine_mean": None, "cosine_min": None})
    assert in_one_line(silent) == in_one_line(replace(report, fidelity=None)) == ""
    counts = {"accepted": 5, "blended": 2, "retried": 1, "kept": 1, "skipped": 12}
    some = replace(report, tiles=25, fidelity={
        "actions": counts, "cosine_mean": 0.9934, "cosine_min": 0.91, "unrecorded": 4,
        "files": {"heat_map": "r-heat.png"},
    })  # fmt: skip
    assert in_one_line(some) == (
        "mean cosine 0.9934, worst patch 0.910; 3 of 25 tiles mended, 1 replaced by the base, "
        "12 flat ones left to the base, 4 unrecorded; see r-heat.png"
    )


def test_events_tell_of_records_without_their_maps() -> None:
    event = TilesDone(TileCall(0, (3, 4)), 0, (), Timings(fidelity=(judged(3), judged(4))))
    kept, skipped = plain_fields(event)["fidelity"]
    assert (kept["tile"], kept["action"], kept["alarm"]) == (3, "kept", 0.15)
    assert skipped == {"tile": 4, "action": "skipped", "retries": 0}
    assert "heat" not in kept
