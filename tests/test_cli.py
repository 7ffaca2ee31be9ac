"""Promises of the command line, run as a user runs it; resampling alone, so that they are quick."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dino_ray.cli import main

QUICK = ("--model", "none", "--address", "none")


def dino_ray(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    y, x = np.mgrid[:60, :90]
    path = tmp_path / "photo.png"
    Image.fromarray(np.stack([x * 2, y * 3, x + y], axis=-1).astype(np.uint8)).save(path)
    return path


def test_help_and_the_package_import_no_heavy_library() -> None:
    code = (
        "import sys, dino_ray, dino_ray.cli, dino_ray.config;"
        "print([m for m in ('torch', 'ray', 'diffusers', 'transformers', 'zarr', 'pyvips') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_this_process_alone_needs_no_ray(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import numpy as np, dino_ray, dino_ray.diffusion.loading, dino_ray.dino.extract, dino_ray.dino.loading\n"
        "print(dino_ray.upscale(np.zeros((8, 8), np.uint8), model='none', address='none').report.tiles)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_upscale_writes_the_output_and_its_report(photo: Path, tmp_path: Path) -> None:
    output, report = tmp_path / "out.png", tmp_path / "r.json"
    result = dino_ray("upscale", photo, "-o", output, "--report", report, "--scale", 3, *QUICK)
    assert result.exit_code == 0, result.output
    said = json.loads(report.read_text())
    with Image.open(output) as image:
        assert image.size == (said["width"], said["height"]) == (270, 180)
    promised = (
        "output width height tiles cells workers wall_s stages tile_calls retries poisoned canvas_sha256 "
    )
    promised += "peak_rss_mb config model_s model_s_per_worker overhead first_tile_s"
    assert set(promised.split()) <= set(said)
    assert said["tile_calls"] == said["tiles"]
    assert said["config"]["scale"] == 3
    assert set(said["peak_rss_mb"]) == {"driver", "replica", "merge"}


def test_the_hash_in_the_report_is_that_of_the_outputs_pixels(photo: Path, tmp_path: Path) -> None:
    import hashlib

    output, report = tmp_path / "out.png", tmp_path / "r.json"
    dino_ray("upscale", photo, "-o", output, "--report", report, *QUICK)
    with Image.open(output) as image:
        digest = hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
    assert json.loads(report.read_text())["canvas_sha256"] == digest


def test_nothing_is_left_beside_the_output(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    dino_ray("upscale", photo, "-o", tmp_path / "out" / "a.png", *QUICK)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"]


def test_several_inputs_go_to_a_folder_and_one_report(photo: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.png"
    second.write_bytes(photo.read_bytes())
    out, report = tmp_path / "out", tmp_path / "r.json"
    out.mkdir()
    result = dino_ray("upscale", photo, second, "-o", out, "--report", report, *QUICK)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir()) == ["photo@2x.png", "second@2x.png"]
    assert [r["source"] for r in json.loads(report.read_text())] == [str(photo), str(second)]


def test_an_image_that_fails_does_not_stop_the_others(photo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    y, x = np.mgrid[:300, :300]
    Image.fromarray(((x * y) % 251).astype(np.uint8)).save(broken)
    broken.write_bytes(broken.read_bytes()[:-2000])
    out = tmp_path / "out"
    out.mkdir()
    result = dino_ray("upscale", broken, photo, "-o", out, *QUICK)
    assert result.exit_code == 2
    assert "broken.png" in result.stderr
    assert [p.name for p in out.iterdir()] == ["photo@2x.png"]


def test_no_input_is_written_over_by_anothers_output(photo: Path, tmp_path: Path) -> None:
    victim = tmp_path / "photo@2x.png"
    victim.write_bytes(photo.read_bytes())
    result = dino_ray("upscale", photo, victim, "-o", tmp_path, *QUICK)
    assert result.exit_code == 2
    assert "would be written over the input" in result.stderr
    assert victim.read_bytes() == photo.read_bytes()


@pytest.mark.parametrize("target", ["photo.png", "out.png"])
def test_the_report_is_never_written_over_an_image(photo: Path, tmp_path: Path, target: str) -> None:
    before = photo.read_bytes()
    result = dino_ray("upscale", photo, "-o", tmp_path / "out.png", "--report", tmp_path / target, *QUICK)
    assert result.exit_code == 2
    assert "is an input or an output" in result.stderr
    assert photo.read_bytes() == before


def test_a_report_that_is_a_link_stays_one(photo: Path, tmp_path: Path) -> None:
    link = tmp_path / "r.json"
    link.symlink_to(tmp_path / "real.json")
    assert dino_ray("upscale", photo, "-o", tmp_path / "o.png", "--report", link, *QUICK).exit_code == 0
    assert link.is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["width"] == 180


def test_two_inputs_that_would_become_one_file_are_refused(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    twin = tmp_path / "a" / "photo.jpg"
    twin.write_bytes(photo.read_bytes())
    result = dino_ray("upscale", photo, twin, "-o", tmp_path, *QUICK)
    assert result.exit_code == 2
    assert "would both become" in result.stderr


def make_bad(folder: Path) -> dict[str, Path]:
    files = {name: folder / f"{name}.png" for name in ("missing", "empty", "text")}
    files["empty"].touch()
    files["text"].write_text("no picture")
    files["folder"] = folder / "pictures"
    files["folder"].mkdir()
    return files


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "folder"])
def test_a_bad_input_is_one_line_that_names_it(tmp_path: Path, kind: str) -> None:
    path = make_bad(tmp_path)[kind]
    result = dino_ray("upscale", path, "-o", tmp_path / "out.png", *QUICK)
    assert result.exit_code == 2
    assert str(path) in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("output", "options", "names"),
    [
        ("out.xyz", [], "out.xyz"),
        ("nowhere/out.png", [], "nowhere"),
        ("out.png", ["--scale", "99"], "--scale"),
        ("out.png", ["--tile", "33"], "--tile"),
        ("out.png", ["--report", "nowhere/r.json"], "nowhere"),
        ("out.png", ["--workers", "2"], "--workers"),
        ("out.webp", ["--scale", "16"], "out.webp"),
    ],
)
def test_a_bad_request_is_refused_before_work(
    tmp_path: Path, output: str, options: list[str], names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (1100, 8)).save("photo.png")
    result = dino_ray("upscale", "photo.png", "-o", output, *options, *QUICK)
    assert result.exit_code == 2
    assert names in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert os.listdir() == ["photo.png"]


def test_the_source_is_never_written_over(photo: Path) -> None:
    before = photo.read_bytes()
    result = dino_ray("upscale", photo, "-o", photo, *QUICK)
    assert result.exit_code == 2
    assert photo.read_bytes() == before


def test_an_existing_output_survives_an_export_that_fails(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.png"
    output.write_bytes(b"precious")

    replace = os.replace

    def full(source: object, target: object, **rest: object) -> None:
        if str(target) == str(output):
            raise OSError(28, "No space left on device")
        replace(source, target, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", full)
    result = dino_ray("upscale", photo, "-o", output, *QUICK)
    assert result.exit_code == 1
    assert str(output) in result.stderr
    assert "are kept; go on with: dino-ray resume" in result.stderr
    assert output.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.png", "out.png.dino-ray", "photo.png"]


def test_progress_as_json_is_one_event_a_line(photo: Path, tmp_path: Path) -> None:
    result = dino_ray("upscale", photo, "-o", tmp_path / "o.png", "--progress", "json", *QUICK)
    events = [json.loads(line) for line in result.stderr.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "StageStarted"
    assert kinds[-1] == "ImageDone"
    started = next(e for e in events if e["event"] == "ImageStarted")
    assert kinds.count("TilesDone") == started["tiles"]
    assert kinds.count("CellDone") == started["cells"]


def test_progress_none_prints_nothing(photo: Path, tmp_path: Path) -> None:
    result = dino_ray("upscale", photo, "-o", tmp_path / "o.png", "--progress", "none", *QUICK)
    assert (result.exit_code, result.output) == (0, "")


def test_plan_says_what_the_run_then_does(photo: Path, tmp_path: Path) -> None:
    options = ["--scale", 4, "--tile", 128, "--overlap", 32, "--model", "none"]
    planned = json.loads(dino_ray("plan", photo, "--json", *options).stdout)
    dino_ray(
        "upscale",
        photo,
        "-o",
        tmp_path / "o.png",
        "--report",
        tmp_path / "r.json",
        *options,
        "--address",
        "none",
    )
    done = json.loads((tmp_path / "r.json").read_text())
    for key in ("width", "height", "tiles", "cells"):
        assert planned[key] == done[key]
    assert planned["least_overlap"] >= 32


def test_plan_reads_as_text(photo: Path) -> None:
    result = dino_ray("plan", photo, "--model", "none")
    assert "90 × 60 → 180 × 120" in result.stdout


def test_models_lists_the_aliases() -> None:
    result = dino_ray("models")
    for alias in ("bundled", "none", "flux-schnell", "flux-dev"):
        assert alias in result.stdout


def test_a_traceback_is_shown_on_request_only(tmp_path: Path) -> None:
    args = ("upscale", tmp_path / "no.png", "-o", tmp_path / "o.png")
    assert dino_ray(*args).exception.__class__ is SystemExit
    assert dino_ray(*args, "--debug").exception.__class__.__name__ == "UsageError"


def test_interrupted_is_130_and_leaves_nothing(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dino_ray.job.drive", interrupt)
    before = sorted(p.name for p in tmp_path.iterdir())
    result = dino_ray("upscale", photo, "-o", tmp_path / "o.png", *QUICK)
    assert result.exit_code == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "spelled", [["--wrap", "PHOTO"], ["PHOTO", "--wrap"], ["--wrap", "on", "PHOTO"], ["--wrap=on", "PHOTO"],
                ["--wrap", "--tile", "64", "PHOTO"], ["--wrap", "--", "PHOTO"]], ids=" ".join)  # fmt: skip
def test_wrap_is_taken_bare_wherever_it_stands(photo: Path, tmp_path: Path, spelled: list[str]) -> None:
    arguments = [str(photo) if arg == "PHOTO" else arg for arg in spelled]
    result = dino_ray(
        "upscale", "-o", tmp_path / "o.png", *QUICK, "--report", tmp_path / "r.json", *arguments
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "r.json").read_text())["config"]["wrap"] == "on"


@pytest.mark.parametrize("named", ["upscale", "plan", "resume"])
def test_a_command_without_arguments_says_what_it_needs(named: str) -> None:
    result = dino_ray(named)
    assert result.exit_code == 2
    assert "Missing" in result.output
    assert isinstance(result.exception, SystemExit)


def test_a_terminal_keeps_a_line_per_finished_image_above_its_bars(photo: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dino_ray.cli", "upscale", photo, photo.with_name("two.png"), "-o",
               "{stem}.tif", *QUICK]  # fmt: skip
    photo.with_name("two.png").write_bytes(photo.read_bytes())
    read, write = os.openpty()
    done = subprocess.Popen(
        command, stderr=write, cwd=tmp_path
    )  # where names are short: long lines are folded
    os.close(write)
    shown = b""
    try:
        while piece := os.read(read, 65536):
            shown += piece
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(read)
    assert done.wait() == 0
    # Each starts on a line of its own: after a return, or what clears a line.
    assert len(re.findall(rb"(?:\n|\r|\x1b\[2K)[^\x1b\r\n]*(?:photo|two)\.tif: 180", shown)) == 2
