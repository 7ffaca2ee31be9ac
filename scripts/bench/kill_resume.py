"""Killed and resumed: the same bytes, and nothing done twice but what was in flight.

First the job runs undisturbed. Then it is started again and again; at a random moment either the driver or one of the
replicas gets SIGKILL, which no program can catch, and ``dino-ray resume`` goes on (a job goes on without a replica by
itself). Whenever a job ends, the pixels of its output are held against the undisturbed one's ``canvas_sha256``, and a
new job begins, until enough has been killed.

    python scripts/bench/kill_resume.py --kills 20
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import click
import psutil
import tifffile
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage import data

DINO_RAY = (sys.executable, "-m", "dino_ray.cli")

REPLICA_TITLES = ("ray::RayReplica", "ray::tile")
"""What Ray's workers call themselves while they are one."""

GONE_S = 120.0
"""Ray's own processes end by themselves within this long once their driver is dead."""

MOST_FAILURES = 3
"""After so many it is of no use to go on."""

EARLY = 0.25
"""Share of the kills that may fall before the first cell; the others fall while cells are made."""


@dataclass
class Job:
    """What one job's runs have done so far."""

    commits: Counter[int] = field(default_factory=Counter)
    """Cell to how often it was seen to be committed."""
    runs: int = 0


@dataclass(frozen=True)
class Kill:
    """One SIGKILL and what came after it."""

    whom: str
    after_s: float
    seen_done: int
    """Cells that the run had reported as committed, all runs of the job together."""
    found: int | None = None
    """Cells that the next run found; None where no run had to follow."""


class Run:
    """One run of the command, watched through its JSON progress."""

    def __init__(self, command: list[str], job: Job) -> None:
        self.job, self.first_cell = job, threading.Event()
        self.found: int | None = None  # cells done before it began; None until it says so
        self.started = time.monotonic()
        self.process = subprocess.Popen([*command, "--progress", "json"], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self._said: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()
        job.runs += 1

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                self._said.append(line)
                continue
            if event["event"] == "ImageStarted":
                self.found = event["cells_done"]
            elif event["event"] == "CellDone":
                self.job.commits[event["cell"]] += 1
                self.first_cell.set()

    def wait_for_a_cell(self) -> None:
        while not self.first_cell.wait(0.05) and self.process.poll() is None:
            pass

    def wait(self) -> int:
        code = self.process.wait()
        self._reader.join()
        return code

    def said(self) -> str:
        return "".join(self._said)[-2000:]

    def replicas(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "".join(process.cmdline()[:1]).startswith(REPLICA_TITLES):
                    found.append(process)
        return found


def pixels_sha256(path: Path) -> str:
    """The ``canvas_sha256`` that a lossless TIFF's pixels have, decoded by another library than wrote it."""
    with tifffile.TiffFile(path) as tiff:
        return hashlib.sha256(tiff.pages[0].asarray().tobytes()).hexdigest()


@click.command()
@click.option("--kills", default=20, show_default=True, help="SIGKILLs in all.")
@click.option("--side", default=2048, show_default=True, help="Of the source, px.")
@click.option("--scale", default=4.0, show_default=True)
@click.option("--model", default="none", show_default=True)
@click.option("--address", default="local", show_default=True, help="As of dino-ray; none: without Ray.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
def main(kills: int, side: int, scale: float, model: str, address: str, seed: int) -> None:
    """Print the table; exit code 1 if a promise is broken."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), side, ["--scale", f"{scale:g}", "--model", model, "--address", address])
        print(f"undisturbed: {bench.cells} cells, {bench.wall_s:.1f} s, {bench.sha256[:16]}", flush=True)
        while len(bench.kills) < kills and bench.failed < MOST_FAILURES:
            bench.one_job(kills, moments, has_replicas=address != "none")
        broken = bench.tell()
    sys.exit(1 if broken else 0)


class Bench:
    """The job, undisturbed once and killed many times."""

    def __init__(self, folder: Path, side: int, options: list[str]) -> None:
        self._source, self._output, self._report = (
            folder / "in.png",
            folder / "out.tif",
            folder / "report.json",
        )
        photo = Image.fromarray(data.astronaut())
        wide = Image.new("RGB", (side, side))
        for y in range(0, side, photo.height):
            for x in range(0, side, photo.width):
                wide.paste(photo.rotate(90 * ((x + y) // photo.width)), (x, y))
        wide.save(self._source, compress_level=1)
        self._upscale = [*DINO_RAY, "upscale", str(self._source), "-o", str(self._output)]
        self._upscale += [*options, "--report", str(self._report)]
        self.kills: list[Kill] = []
        self.wrong_sha = self.redone = self.most_redone = self.finished = self.failed = 0
        subprocess.run([*self._upscale, "--progress", "none"], check=True)
        report = json.loads(self._report.read_text())
        self.sha256, self.cells, self.wall_s = report["canvas_sha256"], report["cells"], report["wall_s"]
        self.tiles_s = report["stages"]["tiles"]["seconds"]
        self._orphans: list[psutil.Process] = []

    def one_job(self, kills: int, moments: random.Random, *, has_replicas: bool) -> None:
        """From its start to its output, with kills on the way."""
        self._output.unlink(missing_ok=True)
        place = Path(f"{self._output}.dino-ray")
        job, command = Job(), self._upscale
        unanswered: list[Kill] = []  # kills of drivers, until a later run says what it found
        while True:
            run = Run(command, job)
            kill = None
            if len(self.kills) + len(unanswered) < kills:
                whom = (
                    "replica" if has_replicas and (len(self.kills) + len(unanswered)) % 3 == 2 else "driver"
                )
                if moments.random() > EARLY:
                    run.wait_for_a_cell()
                kill = self._kill(run, whom, moments.uniform(0.0, self.tiles_s))
            code = run.wait()
            if run.found is not None:
                self.kills += [replace(earlier, found=run.found) for earlier in unanswered]
                unanswered.clear()
            if kill is not None:
                (unanswered if kill.whom == "driver" else self.kills).append(kill)
            over = self._output.exists() and not place.exists()
            if code not in (0, -signal.SIGKILL):
                self.failed += 1
                print(f"a run ended with {code}: {run.said()}", flush=True)
            if code != -signal.SIGKILL or over:
                break
            command = [*DINO_RAY, "resume", str(place)] if (place / "job.json").exists() else self._upscale
        self.kills += unanswered  # of drivers that had nothing left to do
        again = sum(count - 1 for count in job.commits.values())
        self.redone += again
        self.most_redone = max(self.most_redone, again)
        self.finished += 1
        self.wrong_sha += not self._output.exists() or pixels_sha256(self._output) != self.sha256
        if place.exists():
            self.failed += 1
            print(f"{place} was left behind", flush=True)

    def _kill(self, run: Run, whom: str, after_s: float) -> Kill | None:
        """Kill after so long, if the run lasts."""
        deadline = time.monotonic() + after_s
        while time.monotonic() < deadline and run.process.poll() is None:
            time.sleep(0.01)
        if run.process.poll() is not None:
            return None
        kill = Kill(whom, time.monotonic() - run.started, len(run.job.commits))
        if whom == "driver":
            self._orphans += psutil.Process(run.process.pid).children(recursive=True)
            run.process.kill()
            return kill
        replicas = run.replicas()
        if not replicas:
            return None
        with contextlib.suppress(psutil.Error):
            replicas[0].kill()
        return kill

    def tell(self) -> bool:
        """Print the table; returns whether a promise is broken."""
        table = Table(title=f"{len(self.kills)} kills over {self.finished} jobs of {self.cells} cells")
        for column in ("kill", "of", "after s", "cells done", "found by the next run"):
            table.add_column(column, justify="right")
        for number, kill in enumerate(self.kills, 1):
            found = "" if kill.found is None else str(kill.found)
            table.add_row(str(number), kill.whom, f"{kill.after_s:.1f}", str(kill.seen_done), found)
        Console().print(table)
        _, alive = psutil.wait_procs(self._orphans, timeout=GONE_S)
        lost = sum(kill.found is not None and kill.found < kill.seen_done for kill in self.kills)
        print(
            f"wrong canvas_sha256: {self.wrong_sha} of {self.finished}\n"
            f"cells committed twice: {self.redone} in all, {self.most_redone} at most in one job\n"
            f"kills after which a committed cell was missing: {lost}\n"
            f"processes that outlived their driver by {GONE_S:.0f} s: {len(alive)}\n"
            f"other failures: {self.failed}"
        )
        return bool(self.wrong_sha or lost or alive or self.failed)


if __name__ == "__main__":
    main()
