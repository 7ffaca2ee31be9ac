"""Promises of a job that is cut short: killed, stopped, out of room, changed, or one of many."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dino_ray import places, upscale
from dino_ray.cli import main
from dino_ray.raster.canvas import Canvas

QUICK = ("--model", "none", "--address", "none", "--tile", "64")
DINO_RAY = (sys.executable, "-m", "dino_ray.cli")


def dino_ray(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def photo(path: Path, side: int = 160) -> Path:
    y, x = np.mgrid[:side, :side]
    Image.fromarray(np.stack([x * y, x * 3, y * 5], axis=-1).astype(np.uint8)).save(path)
    return path


def upscale_until(
    count: int, how: signal.Signals, *args: object, event: str = "CellDone", after: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command until it has committed so many cells (or whatever is counted), then send a signal."""
    command = [*DINO_RAY, "upscale", *map(str, args), *QUICK, "--progress", "json"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen: list[str] = []
    for line in process.stderr:
        seen.append(line)
        if after and f'"{after}"' in line:
            after, seen = "", []
        if not after and sum(f'"{event}"' in each for each in seen) == count:
            process.send_signal(how)
            break
    _, rest = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, "", "".join(seen) + rest)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    photo(tmp_path / "in.png")
    result = dino_ray("upscale", tmp_path / "in.png", "-o", tmp_path / "whole.png", "--scale", 4,
                      "--report", tmp_path / "whole.json", *QUICK)  # fmt: skip
    assert result.exit_code == 0, result.output
    return tmp_path


def report(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_a_killed_job_goes_on_by_the_same_command_to_the_same_bytes(work: Path) -> None:
    args = (work / "in.png", "-o", work / "out.png", "--scale", 4, "--report", work / "r.json")
    killed = upscale_until(20, signal.SIGKILL, *args)
    assert killed.returncode == -signal.SIGKILL
    assert not (work / "out.png").exists()
    result = dino_ray("upscale", *args, *QUICK)
    assert result.exit_code == 0, result.output
    whole, resumed = report(work / "whole.json"), report(work / "r.json")
    assert resumed["canvas_sha256"] == whole["canvas_sha256"]
    assert 20 <= resumed["cells_resumed"] < resumed["cells"]
    assert resumed["tile_calls"] < whole["tile_calls"]
    assert not (work / "out.png.dino-ray").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_job_prints_the_command_that_goes_on_from_anywhere(work: Path, how: signal.Signals) -> None:
    stopped = upscale_until(20, how, work / "in.png", "-o", work / "out it's.png", "--scale", 4,
                            "--report", work / "r.json")  # fmt: skip
    assert stopped.returncode == 130
    said = stopped.stderr.strip().splitlines()[-1]
    assert "cells of in.png are kept; go on with: dino-ray resume " in said
    command = shlex.split(said.partition("go on with: ")[2])
    subprocess.run([*DINO_RAY, *command[1:], "--progress", "none"], cwd="/", check=True)
    assert report(work / "r.json")["canvas_sha256"] == report(work / "whole.json")["canvas_sha256"]
    assert not list(work.glob("*.dino-ray"))


def test_a_job_stopped_before_its_first_cell_leaves_nothing(work: Path) -> None:
    before = sorted(os.listdir(work))
    code = (
        "import dino_ray.job, dino_ray.cli, sys\n"
        "def stop(*a, **k): raise KeyboardInterrupt\n"
        "dino_ray.job.drive = stop\n"
        "dino_ray.cli.main(sys.argv[1:])"
    )
    args = ["upscale", str(work / "in.png"), "-o", str(work / "out.png"), *QUICK]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "interrupted; nothing was done yet" in done.stderr
    assert sorted(os.listdir(work)) == before


def test_a_job_stopped_before_it_could_go_on_says_what_is_kept(work: Path) -> None:
    args = (work / "in.png", "-o", work / "out.png", "--scale", 4)
    upscale_until(20, signal.SIGKILL, *args)
    code = (
        "import dino_ray.identity, dino_ray.cli, os, signal, sys, time\n"
        "def stop(*a, **k): os.kill(os.getpid(), signal.SIGINT); time.sleep(1)\n"
        "dino_ray.identity.of_source = stop\n"
        "dino_ray.cli.main(sys.argv[1:])"
    )
    again = ["upscale", *map(str, args), *QUICK]
    done = subprocess.run([sys.executable, "-c", code, *again], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert re.search(
        r"interrupted; \d+ of \d+ cells of in.png are kept; go on with: dino-ray resume", done.stderr
    )
    assert (work / "out.png.dino-ray").exists()


def test_several_images_stopped_between_two_count_what_is_done(work: Path) -> None:
    inputs = [photo(work / name, 100) for name in ("a.png", "b.png")]
    stopped = upscale_until(1, signal.SIGINT, *inputs, "-o", f"{work}/out/", "--scale", 4,
                            event="TilesStarted", after="ImageDone")  # fmt: skip
    assert stopped.returncode == 130
    said = stopped.stderr.strip().splitlines()[-1]
    assert "interrupted; 1 of 2 images are done" in said
    assert said.endswith("; go on with the same command")


def test_a_stop_does_not_wait_for_a_step_that_python_cannot_interrupt(work: Path) -> None:
    code = (
        "import ctypes, dino_ray.job, dino_ray.cli, dino_ray.stopping, os, signal, sys, threading\n"
        "libc = ctypes.CDLL(None)\n"
        "def stuck(*a, **k):\n"
        "    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # so that the call below is not cut short\n"
        "    libc.usleep(50_000_000)\n"
        "dino_ray.stopping.STOP_S = 0.2\n"
        "dino_ray.job.drive = stuck\n"
        "dino_ray.cli.main(sys.argv[1:])"
    )
    args = ["upscale", str(work / "in.png"), "-o", str(work / "out.png"), *QUICK]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    place = work / "out.png.dino-ray"
    assert f"nothing was done yet; {place} is left, for the same command to use" in done.stderr
    assert dino_ray(*args).exit_code == 0
    assert not place.exists()


@pytest.mark.parametrize("field", ["output", "report"])
def test_an_edited_job_writes_over_no_file_that_is_no_result(work: Path, field: str) -> None:
    upscale_until(5, signal.SIGKILL, work / "in.png", "-o", work / "out.png", "--scale", 4, "--format", "png")
    place, letter = work / "out.png.dino-ray", work / "letter"
    letter.write_text("dear reader")
    stored = json.loads((place / "job.json").read_text())
    (place / "job.json").write_text(json.dumps(stored | {field: str(letter)}))
    refused = dino_ray("resume", place)
    assert refused.exit_code == 2
    assert f"{letter}: the job would write over it" in refused.stderr
    assert letter.read_text() == "dear reader"


def test_what_changes_pixels_is_refused_by_name_and_what_does_not_is_not(work: Path) -> None:
    args = (work / "in.png", "-o", work / "out.png")
    upscale_until(5, signal.SIGKILL, *args, "--scale", 4)
    place = work / "out.png.dino-ray"
    refused = dino_ray("upscale", *args, "--scale", 3, *QUICK)
    assert refused.exit_code == 2
    assert f"the job in {place} was made with --scale 4, now 3; " in refused.stderr
    assert dino_ray("upscale", *args, "--scale", 4, "--quality", 90, *QUICK).exit_code == 2  # of a PNG
    assert place.exists()
    assert dino_ray("upscale", *args, "--scale", 4, "--progress", "none", *QUICK).exit_code == 0


def test_a_source_that_has_changed_is_refused_and_fresh_starts_over(work: Path) -> None:
    args = (work / "in.png", "-o", work / "out.png", "--scale", 4)
    upscale_until(5, signal.SIGKILL, *args)
    photo(work / "in.png", 161)
    refused = dino_ray("upscale", *args, *QUICK)
    assert refused.exit_code == 2
    assert "was made with a source of" in refused.stderr
    assert dino_ray("upscale", *args, "--fresh", *QUICK).exit_code == 0
    with Image.open(work / "out.png") as image:
        assert image.size == (644, 644)


def test_a_source_that_was_only_touched_goes_on(work: Path) -> None:
    args = (work / "in.png", "-o", work / "out.png", "--scale", 4, "--report", work / "r.json")
    upscale_until(5, signal.SIGKILL, *args)
    os.utime(work / "in.png")
    assert dino_ray("upscale", *args, *QUICK).exit_code == 0
    assert report(work / "r.json")["cells_resumed"] >= 5


def test_resume_without_a_job_is_refused(work: Path) -> None:
    for result in (
        dino_ray("upscale", work / "in.png", "-o", work / "out.png", "--resume", *QUICK),
        dino_ray("resume", work),
        dino_ray("resume", work / "nowhere"),
    ):
        assert result.exit_code == 2
        assert "job" in result.stderr.splitlines()[-1]
    assert not list(work.glob("*.dino-ray"))


def test_a_full_disk_ends_the_job_and_room_lets_it_go_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = (work / "in.png", "-o", work / "out.png", "--scale", 4, "--report", work / "r.json")
    write, room = Canvas.write, [30]

    def write_until_full(self: Canvas, *rest: Any) -> None:
        if room[0] == 0:
            with places.explained(self.folder, "written"):
                raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= 1
        write(self, *rest)

    monkeypatch.setattr(Canvas, "write", write_until_full)
    full = dino_ray("upscale", *args, *QUICK)
    assert full.exit_code == 1
    said = full.stderr.strip().splitlines()[-1]
    assert "the disk is full; free some room, then resume" in said
    assert re.search(r"; 30 of \d+ cells of in.png are kept; go on with: dino-ray resume", said)
    monkeypatch.undo()
    assert dino_ray("resume", work / "out.png.dino-ray").exit_code == 0
    assert report(work / "r.json")["canvas_sha256"] == report(work / "whole.json")["canvas_sha256"]


def test_a_job_that_its_disk_cannot_hold_is_refused_before_work(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "free_bytes", lambda place: 1_000_000)
    result = dino_ray("upscale", work / "in.png", "-o", work / "out.png", "--scale", 8, *QUICK)
    assert result.exit_code == 2
    assert "are free; make room, or name a folder on another disk with --job-dir" in result.stderr
    assert not (work / "out.png.dino-ray").exists()


def test_a_job_folder_that_cannot_be_made_is_one_line(work: Path) -> None:
    result = dino_ray(
        "upscale", work / "in.png", "-o", work / "o.png", "--job-dir", work / "in.png" / "x", *QUICK
    )
    assert result.exit_code in (1, 2)
    assert str(work / "in.png" / "x") in result.stderr.splitlines()[-1]


def test_a_named_job_folder_is_used_and_removed(work: Path) -> None:
    upscale_until(
        5, signal.SIGKILL, work / "in.png", "-o", work / "out.png", "--scale", 4, "--job-dir", work / "job"
    )
    assert (work / "job" / "canvas.zarr").exists()
    assert dino_ray("resume", work / "job").exit_code == 0
    assert not (work / "job").exists()
    assert (work / "out.png").exists()


def test_an_image_that_a_batch_has_finished_is_not_done_again(work: Path) -> None:
    names = ["a.png", "b.png", "c.png"]
    inputs = [photo(work / name, 100 + 20 * i) for i, name in enumerate(names)]
    args = (*inputs, "-o", f"{work}/out/{{stem}}@{{scale}}x.png", "--scale", 4, "--report", work / "r.json")
    upscale_until(2, signal.SIGKILL, *args, event="TilesStarted", after="ImageDone")
    first = work / "out" / "a@4x.png"
    written = first.stat().st_mtime_ns
    result = dino_ray("upscale", *args, *QUICK)
    assert result.exit_code == 0, result.output
    assert f"{first}: was finished by an earlier run" in result.stderr
    assert first.stat().st_mtime_ns == written
    assert sorted(os.listdir(work / "out")) == ["a@4x.png", "b@4x.png", "c@4x.png"]
    reports = report(work / "r.json")
    assert [each["width"] for each in reports] == [400, 480, 560]


def test_an_image_of_a_batch_that_fails_is_listed_in_the_report(work: Path) -> None:
    (work / "bad.png").write_text("no picture")
    args = (work / "bad.png", work / "in.png", "-o", f"{work}/out/", "--report", work / "r.json")
    result = dino_ray("upscale", *args, *QUICK)
    assert result.exit_code == 2
    done, failed = report(work / "r.json")
    assert done["source"] == str(work / "in.png")
    assert failed["source"] == str(work / "bad.png")
    assert "bad.png" in failed["error"]
    strict = dino_ray("upscale", *args, "--strict", *QUICK)
    assert strict.exit_code == 2
    assert len(strict.stderr.strip().splitlines()) == 1


def test_a_job_in_an_object_store_goes_on_too(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "memory://jobs/one"
    args = (
        work / "in.png",
        "-o",
        work / "out.png",
        "--scale",
        4,
        "--job-dir",
        place,
        "--report",
        work / "r.json",
    )
    write, room = Canvas.write, [30]

    def write_until_gone(self: Canvas, *rest: Any) -> None:
        if room[0] == 0:
            with places.explained(self.folder, "written"):
                raise ConnectionError("gone")
        room[0] -= 1
        write(self, *rest)

    monkeypatch.setattr(Canvas, "write", write_until_gone)
    assert dino_ray("upscale", *args, *QUICK).exit_code == 1
    monkeypatch.undo()
    result = dino_ray("resume", place)
    assert result.exit_code == 0, result.output
    assert report(work / "r.json")["canvas_sha256"] == report(work / "whole.json")["canvas_sha256"]
    assert report(work / "r.json")["cells_resumed"] == 30
    assert not places.list_files(place)


def test_a_job_from_python_goes_on_by_the_same_call(work: Path) -> None:
    def stop(event: object) -> None:
        if type(event).__name__ == "CellDone":
            raise KeyboardInterrupt

    options: dict[str, Any] = {"model": "none", "address": "none", "tile": 64, "job_dir": str(work / "job")}
    with pytest.raises(
        KeyboardInterrupt, match=r"1 of .* cells of in.png are kept; go on with the same call"
    ):
        upscale(work / "in.png", listen=stop, **options)
    refused = dino_ray("resume", work / "job")
    assert refused.exit_code == 2
    assert "the same call of upscale goes on" in refused.stderr
    assert upscale(work / "in.png", **options).report.cells_resumed == 1
    assert not (work / "job").exists()
