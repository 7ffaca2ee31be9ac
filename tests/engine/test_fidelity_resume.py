"""Promises of a command whose model paints what is not there, and that is killed on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import painters
import pytest
from click.testing import CliRunner
from PIL import Image

from dino_ray import job
from dino_ray.cli import main

QUICK = ("--address", "none", "--tile", "64", "--overlap", "16", "--batch", "2", "--dino-strength", "0")


def command(folder: Path, name: str) -> list[str]:
    files = (folder / "in.png", "-o", folder / f"{name}.png", "--report", folder / f"{name}.json")
    return ["upscale", *map(str, files), *QUICK]


def upscaled(folder: Path, name: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, command(folder, name))
    assert result.exit_code == 0, result.output
    loaded: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return loaded


def kill_after(cells: int, folder: Path, name: str) -> None:
    """Run the command in a process of its own, and kill it once it has committed so many cells."""
    called = [sys.executable, painters.__file__, *command(folder, name), "--progress", "json"]
    process = subprocess.Popen(called, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        cells -= '"CellDone"' in line
        if not cells:
            process.kill()
            break
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL


def test_a_killed_job_that_mends_goes_on_to_the_same_bytes_and_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(painters.picture(96, 120)).save(tmp_path / "in.png")
    monkeypatch.setattr(job, "replica_spec", lambda *_: painters.painting(side=painters.COMMANDS_SIDE))
    whole = upscaled(tmp_path, "whole")
    kill_after(9, tmp_path, "out")
    resumed = upscaled(tmp_path, "out")
    assert 9 <= resumed["cells_resumed"] < resumed["cells"]
    assert resumed["canvas_sha256"] == whole["canvas_sha256"]
    actions = whole["fidelity"]["actions"]
    assert actions["blended"] + actions["retried"] + actions["kept"] > 0
    for told in ("actions", "caught", "tiles", "unrecorded", "cosine_min"):
        assert resumed["fidelity"][told] == whole["fidelity"][told]
    assert whole["fidelity"]["unrecorded"] == 0
