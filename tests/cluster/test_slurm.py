"""Promises of the SLURM script, run as SLURM would run it, by commands of that name that start processes here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm" / "dino-ray.sbatch"
BIN = Path(sys.executable).parent
QUICK = ["--model", "none", "--tile", "256", "--overlap", "32", "--progress", "none"]
LONGEST_S = 150.0

SRUN = """#!/usr/bin/env python3
'''srun: starts as many copies as --ntasks says, passes SIGTERM on, ends with the worst of their statuses.'''
import os, signal, subprocess, sys
tasks, rest = 1, sys.argv[1:]
while rest and rest[0].startswith("--"):
    name, _, value = rest.pop(0).partition("=")
    if name == "--ntasks":
        tasks = int(value)
with open(os.environ["FAKE_SLURM"] + "/srun.log", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
running = [
    subprocess.Popen(rest, env={**os.environ, "SLURM_STEP_ID": str(os.getpid()), "SLURM_NODEID": str(i)})
    for i in range(tasks)
]
signal.signal(signal.SIGTERM, lambda *_: [p.terminate() for p in running])
sys.exit(max(p.wait() for p in running) and 1)
"""

SCONTROL = """#!/bin/sh
echo "$@" >>"$FAKE_SLURM/scontrol.log"
case "$1" in
show) printf 'node1\\nnode2\\n' ;;
getaddrs) echo "$2: 127.0.0.2:6818" ;;
esac
"""


@dataclass(frozen=True)
class Slurm:
    folder: Path

    def submit(self, *arguments: str, job: int, **more: str) -> subprocess.Popen[str]:
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "SLURM_"))}
        environment |= {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "FAKE_SLURM": str(self.folder),
            "DINO_RAY_BIN": str(BIN),
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "1",
            "OMP_NUM_THREADS": "1",
            **more,
        }
        log = (self.folder / "job.log").open("a")
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            env=environment,
            cwd=self.folder,
            stdout=log,
            stderr=log,
            text=True,
        )

    def said(self, name: str = "job.log") -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def wait_for(self, path: Path) -> None:
        end = time.monotonic() + LONGEST_S
        while not path.exists():
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            path = Path(folder, "bin", name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        yield Slurm(Path(folder))


def left_behind(slurm: Slurm, job: int) -> list[str]:
    """Processes, folders and tokens of a job that is over."""
    lines = (" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    folders = [*Path("/tmp").glob(f"dr{job}.*"), *slurm.folder.glob(".dino-ray-slurm-*")]
    return [*(line for line in lines if f"/dr{job}." in line), *map(str, folders)]


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_upscales_on_all_its_nodes_and_leaves_nothing_behind(slurm: Slurm) -> None:
    job = os.getpid()
    Image.effect_noise((160, 120), 60).convert("RGB").save(slurm.folder / "photo.png")
    running = slurm.submit("photo.png", "-o", "out.png", *QUICK, job=job)
    assert running.wait(LONGEST_S) == 0, slurm.said()
    assert Image.open(slurm.folder / "out.png").size == (320, 240)
    starts = [line for line in slurm.said("srun.log").splitlines() if " start " in line]
    assert ["--head" in line for line in starts] == [True, False]
    assert "--exclude=node1" in starts[1]
    token_lines = [line for line in slurm.said("srun.log").splitlines() if "token" in line.lower()]
    assert token_lines == []  # it is no option of anything
    assert "requeue" not in slurm.said("scontrol.log")
    assert left_behind(slurm, job) == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_time_up_and_scancel_leave_a_job_that_the_same_command_finishes(
    slurm: Slurm, sent: signal.Signals, requeued: bool
) -> None:
    """SIGUSR1 is what --signal asks for ahead of the time limit, SIGTERM what scancel sends."""
    job = os.getpid()
    Image.effect_noise((600, 600), 60).convert("RGB").save(slurm.folder / "photo.png")
    command = ("photo.png", "-o", "out.png", *QUICK, "--scale", "4")
    running = slurm.submit(*command, job=job)
    chunks = slurm.folder / "out.png.dino-ray"
    slurm.wait_for(chunks)
    end = time.monotonic() + LONGEST_S
    while sum(1 for _ in chunks.rglob("c*")) < 6 and time.monotonic() < end and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(sent)
    assert running.wait(LONGEST_S) == 130, slurm.said()
    assert not (slurm.folder / "out.png").exists()
    assert chunks.exists()
    assert ("requeue" in slurm.said("scontrol.log")) is requeued
    assert left_behind(slurm, job) == []

    again = slurm.submit(*command, job=job, SLURM_RESTART_COUNT="1")
    assert again.wait(LONGEST_S) == 0, slurm.said()
    assert Image.open(slurm.folder / "out.png").size == (2400, 2400)
    assert left_behind(slurm, job) == []


def test_a_missing_installation_is_said_before_anything_starts(slurm: Slurm) -> None:
    running = slurm.submit("photo.png", "-o", "out.png", job=1, DINO_RAY_BIN="/nowhere")
    assert running.wait(LONGEST_S) == 2
    assert "/nowhere/python: not there; name its folder in DINO_RAY_BIN" in slurm.said()
    assert slurm.said("srun.log") == ""
