"""Nodes, replicas and drivers killed at random, for minutes: the same bytes, and nothing left behind.

A test cluster, its machines played by this one, does one job after another by the real command, the first undisturbed.
Then, at random moments, a node is killed with all that lies in its store, or one joins, or a replica or the driver gets
SIGKILL, and ``dino-ray resume`` goes on with what a driver left. Of each event the table tells how long it took until
the next tile or cell was done, and which work was done again. At the end no actor, process, object or file may be left.

The same ``--seed`` draws the same events after the same pauses; what they hit depends on the machine's mood.

    python scripts/bench/chaos.py --minutes 5
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import psutil
import tifffile
from machines import Machines
from PIL import Image
from rich.console import Console
from rich.table import Table
from runs import Event, Job, Run, elapsed_s
from skimage import data

DINO_RAY = (sys.executable, "-m", "dino_ray.cli")

MOST_NODES = 3
"""Beside the head, which is the driver's machine and carries no replica."""

UPSCALE = ("--model", "bundled", "--scale", "4", "--tile", "256", "--overlap", "32", "--seed", "7")
"""Tiles that take a while, and are too large to travel with their answer, so that they lie, and are lost, on nodes."""

KINDS = ("node", "node", "join", "join", "replica", "replica", "driver")
"""What is drawn from: joins as often as deaths of nodes, or soon there would be none."""

PAUSE_S = (2.0, 8.0)
"""Between work that goes on and the next event: anything from amid the last one's repairs to long after them."""

STUCK_S = 180.0
"""No tile, no cell and no end of a run for so long is a failure."""

GONE_S = 60.0
"""Actors and processes of an ended job are gone after this long."""

POLL_S = 0.05
MOST_FAILURES = 3
"""After so many it is of no use to go on."""


class Chaos:
    """Jobs, undisturbed once and then disturbed for as long as is asked for."""

    def __init__(self, folder: Path, machines: Machines, seed: int, options: Sequence[str]) -> None:
        self._machines, self._draw = machines, random.Random(seed)
        self._output, self._report = folder / "out.tif", folder / "report.json"
        self._place = Path(f"{self._output}.dino-ray")
        source, self._temporary = folder / "in.png", folder / "tmp"
        self._temporary.mkdir()
        Image.fromarray(data.astronaut()).save(source)
        self._environment = {**os.environ, "TMPDIR": str(self._temporary)}
        self._where = ["--address", machines.address, "--workers", f"1:{MOST_NODES}"]
        self._upscale = [*DINO_RAY, "upscale", str(source), "-o", str(self._output), *self._where, *options]
        self._upscale += ["--report", str(self._report)]
        self.events: list[Event] = []
        self.failures: list[str] = []
        self.jobs = self.committed_twice = 0

    def undisturbed(self) -> None:
        self._machines.fill(MOST_NODES)
        start = time.monotonic()
        job = Job()
        if (code := self._watch(Run(self._upscale, self._environment, job), job)) != 0:
            raise SystemExit(f"the undisturbed run ended with {code}")
        report = json.loads(self._report.read_text())
        self.sha256, self.tiles, self.cells = (report[key] for key in ("canvas_sha256", "tiles", "cells"))
        print(f"undisturbed: {self.tiles} tiles, {self.cells} cells, {time.monotonic() - start:.0f} s, "
              f"{self.sha256[:16]}", flush=True)  # fmt: skip
        self._check_output()

    def one_job(self, until: float) -> None:
        """From its start to its output, with events on the way until the time is up."""
        self._output.unlink(missing_ok=True)
        self._machines.fill(MOST_NODES)
        job, command = Job(), self._upscale
        while True:
            code = self._watch(Run(command, self._environment, job), job, until)
            if code != -signal.SIGKILL or (self._output.exists() and not self._place.exists()):
                break
            again = (self._place / "job.json").exists()
            command = [*DINO_RAY, "resume", str(self._place), *self._where] if again else self._upscale
        if code not in (0, -signal.SIGKILL):
            self.failures.append(f"a job ended with exit code {code}")
        self.jobs += 1
        self.events += job.events
        self.committed_twice += job.committed_twice
        self._check_output()

    def _watch(self, run: Run, job: Job, until: float = 0.0) -> int:
        """Let a run go on to its end, disturbing it until the time is up; returns its exit code."""
        kind, pause = self._next()
        last_event = time.monotonic()
        while not run.over:
            time.sleep(POLL_S)
            now = time.monotonic()
            if now - max(job.last_progress, last_event) > STUCK_S:
                self.failures.append(f"nothing happened for {STUCK_S:.0f} s after {last(job.events)}")
                run.kill()
                shutil.rmtree(self._place, ignore_errors=True)
                run.wait()
                return signal.SIGTERM
            begun = bool(job.started) and job.last_progress > last_event
            if now < until and begun and now - last_event > pause:
                self._strike(kind, run, job)
                kind, pause = self._next()
                last_event = time.monotonic()
        code = run.wait()
        if code not in (0, -signal.SIGKILL):
            print(f"a run ended with {code}: {run.said()}", flush=True)
        return code

    def _next(self) -> tuple[str, float]:
        return self._draw.choice(KINDS), self._draw.uniform(*PAUSE_S)

    def _strike(self, kind: str, run: Run, job: Job) -> None:
        """Do it, or the next best that can be done; a job is never without any machine for long."""
        nodes, replicas = self._machines.nodes, self._machines.replicas()
        if kind == "node" and len(nodes) < 2:
            kind = "join"
        if kind == "join" and len(nodes) >= MOST_NODES:
            kind = "replica"
        if kind == "replica" and not replicas:
            kind = "driver"
        which = self._draw.random()
        actions: dict[str, Callable[[], str]] = {
            "node": lambda: self._machines.kill(nodes[int(which * len(nodes))]),
            "join": self._machines.add,
            "replica": lambda: kill(replicas[int(which * len(replicas))]),
            "driver": lambda: kill(psutil.Process(run.process.pid)),
        }
        at_s, done = elapsed_s(), len(job.tiles_done)
        event = Event(kind, "", at_s, done)
        if kind != "join":  # which only counts once it is there
            job.note(event)
        event.whom = actions[kind]()
        if kind == "join":
            event.at_s = elapsed_s()
            job.note(event)
        print(f"{at_s:6.1f} s  {kind} {event.whom}", flush=True)

    def _check_output(self) -> None:
        if not self._output.exists() or pixels_sha256(self._output) != self.sha256:
            self.failures.append(f"job {self.jobs}: other bytes than the undisturbed run's")
        if self._place.exists():
            self.failures.append(f"job {self.jobs}: {self._place.name} was left behind")
            shutil.rmtree(self._place)

    def leftovers(self) -> list[str]:
        """What the jobs have left: actors, processes, objects, files; waits for what needs a moment to go."""
        deadline = time.monotonic() + GONE_S
        with self._machines.joined():
            while (found := list(self._left())) and time.monotonic() < deadline:
                time.sleep(1.0)
        return found

    def _left(self) -> Iterator[str]:
        machines = self._machines
        counts = {
            "actors": machines.actors(),
            "processes of replicas": len(machines.replicas()),
            "bytes in stores": int(machines.stored_bytes()),
        }
        yield from (f"{count} {what}" for what, count in counts.items() if count)
        expected = {self._output.name, self._report.name, "in.png", self._temporary.name}
        for path in [*self._output.parent.iterdir(), *self._temporary.rglob("*")]:
            if path.parent != self._output.parent or path.name not in expected:
                yield f"file {path.relative_to(self._output.parent)}"


def last(events: Sequence[Event]) -> str:
    return f"{events[-1].kind} {events[-1].whom}" if events else "the start"


def kill(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        process.kill()
    return f"pid {process.pid}"


def pixels_sha256(path: Path) -> str:
    """The ``canvas_sha256`` that a lossless TIFF's pixels have, decoded by another library than wrote it."""
    with tifffile.TiffFile(path) as tiff:
        return hashlib.sha256(np.ascontiguousarray(tiff.pages[0].asarray()).tobytes()).hexdigest()


def show(events: Sequence[Event], console: Console) -> None:
    """The table of events, and what the kinds cost."""
    table = Table(title="What was done to the jobs")
    for column in ("at s", "kind", "which", "tiles done", "stalled s", "tiles started again"):
        table.add_column(column, justify="left" if column in ("kind", "which") else "right")
    for event in events:
        table.add_row(f"{event.at_s:.1f}", event.kind, event.whom, str(event.tiles_done),
                      _seconds(event.stalled_s), str(len(event.started_again)))  # fmt: skip
    sums = Table(title="By kind")
    for column in ("kind", "events", "median stall s", "longest", "tiles started again, mean", "most"):
        sums.add_column(column, justify="left" if column == "kind" else "right")
    for kind in sorted({event.kind for event in events}):
        of = [event for event in events if event.kind == kind]
        stalls = sorted(event.stalled_s for event in of if event.stalled_s is not None)
        again = [len(event.started_again) for event in of]
        sums.add_row(kind, str(len(of)), _seconds(stalls[len(stalls) // 2] if stalls else None),
                     _seconds(stalls[-1] if stalls else None),
                     f"{sum(again) / len(again):.1f}", str(max(again)))  # fmt: skip
    console.print(table, sums)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


@click.command(help=__doc__)
@click.option(
    "--minutes", default=5.0, show_default=True, help="How long events are drawn; the last job then ends."
)
@click.option("--seed", type=int, help="Of the events. Default: another one each time, which is printed.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(minutes: float, seed: int | None, options: tuple[str, ...]) -> None:
    """Print the table; exit code 1 if a promise is broken. OPTIONS (after ``--``) replace those of the upscale."""
    seed = random.randrange(2**32) if seed is None else seed
    print(f"--seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        machines = Machines()
        try:
            chaos = Chaos(Path(folder), machines, seed, options or UPSCALE)
            chaos.undisturbed()
            until = time.monotonic() + 60 * minutes
            while time.monotonic() < until and len(chaos.failures) < MOST_FAILURES:
                chaos.one_job(until)
            left = chaos.leftovers()
        finally:
            machines.close()
    show(chaos.events, Console(width=120))
    print(f"jobs: {chaos.jobs}; cells committed twice: {chaos.committed_twice}")
    print(f"left behind: {', '.join(left) or 'nothing'}")
    for failure in chaos.failures:
        print(f"failed: {failure}")
    sys.exit(1 if chaos.failures or left else 0)


if __name__ == "__main__":
    main()
