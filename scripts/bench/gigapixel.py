"""Gigapixels: the whole command against libvips doing the same resize and save, and the memory that both take.

Each size runs ``dino-ray upscale --model none`` and a bare libvips pipeline (Lanczos-3, then the same pyramidal BigTIFF
of JPEG tiles), one after the other, on the same source. Memory is the largest resident size of a process of each role,
as the run report has it and as sampled from outside over every process that the command starts, Ray's own included.

    python scripts/bench/gigapixel.py --size 8192 --scale 4 --check
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import psutil
import pyvips
from rich.console import Console
from rich.table import Table
from skimage import data

MOST_RATIO = 3.0
"""Wall time over that of libvips, at the largest size."""
MOST_MIB = 1024
"""Of any process."""
MOST_DRIVER_MIB = 500
MOST_GROWTH = 1.10
"""Peak of a role at the largest size over that at the smallest."""

STEPS_DOWN = (4, 2, 1)
"""The sides measured are ``--size`` over these: a sixteenth of the pixels, a quarter, and all."""

SAMPLE_S = 0.2
SAMPLES_PER_SUM = 5
"""The sum over all processes costs the kernel a walk through their pages, so it is taken less often."""
MIB = 2**20
REPORT_MB = 1e6
"""The unit of memory in run reports, bytes."""

ROLES = ("driver", "replica", "merge")
ALL = "all together"
"""Not a role: the sum over all processes at one moment, shared pages counted once."""
OTHER_ROLES = ("raylet", "gcs_server", "idle worker", "other")

OUTPUT_OPTIONS = ("--compression", "jpeg", "--pyramid")

VIPS = """
import sys, pyvips
source, output, scale = sys.argv[1:]
image = pyvips.Image.new_from_file(source, access="sequential").resize(float(scale), kernel="lanczos3")
image.tiffsave(output, tile=True, pyramid=True, compression="jpeg", bigtiff=True)
"""


@dataclass(frozen=True)
class Point:
    """One size, measured; memory is MiB by role."""

    megapixels: float
    wall_s: float
    vips_s: float
    stages: Mapping[str, float]
    reported: Mapping[str, float]
    sampled: Mapping[str, float]
    vips_mib: float

    @property
    def ratio(self) -> float:
        return self.wall_s / self.vips_s

    def peak(self, role: str) -> float:
        """The larger of what the report says and what was seen."""
        return max(self.reported.get(role, 0.0), self.sampled.get(role, 0.0))


class Sampler(threading.Thread):
    """Watches a process and all that descend from it, until stopped."""

    def __init__(self, root: psutil.Process) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, float] = {}
        self._root, self._enough = root, threading.Event()
        self._roles: dict[psutil.Process, str] = {}

    def run(self) -> None:
        for turn in itertools.count():
            if self._enough.wait(SAMPLE_S):
                return
            with contextlib.suppress(psutil.Error):
                family = [self._root, *self._root.children(recursive=True)]
                for process in family:
                    self._look_at(process)
                if turn % SAMPLES_PER_SUM == 0:
                    self._see(ALL, sum(map(_share, family)))

    def stop(self) -> dict[str, float]:
        self._enough.set()
        self.join()
        return self.peaks

    def _look_at(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error):
            role = "driver" if process == self._root else self._role(process)
            self._see(role, process.memory_info().rss / MIB)

    def _see(self, role: str, mib: float) -> None:
        self.peaks[role] = max(self.peaks.get(role, 0.0), mib)

    def _role(self, process: psutil.Process) -> str:
        """What a process is, by its title; a worker stays what its first piece of work made it."""
        if (known := self._roles.get(process)) in ROLES:
            return known
        role = self._roles[process] = role_of(process.cmdline())
        return role


def _share(process: psutil.Process) -> float:
    """MiB of a process, of pages that several hold only its part (PSS)."""
    try:
        return float(process.memory_full_info().pss) / MIB
    except psutil.Error:
        return 0.0


def role_of(command: Sequence[str]) -> str:
    """The role of one of Ray's processes. Workers call themselves after what they run."""
    title = command[0] if command else ""
    signs = {
        "replica": title.startswith(("ray::RayReplica", "ray::tile")),
        "merge": title.startswith("ray::merge"),
        "idle worker": title.startswith("ray::IDLE"),
        "raylet": title.endswith("/raylet"),
        "gcs_server": title.endswith("/gcs_server"),
    }
    return next((role for role, fits in signs.items() if fits), "other")


def make_source(path: Path, side: int) -> None:
    """Photographs, mirrored so that they join, side by side until they fill ``side`` squared px."""
    photos = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    tiles = [pyvips.Image.new_from_array(p).embed(0, 0, 512, 512, extend="mirror") for p in photos]
    four = pyvips.Image.arrayjoin(tiles, across=2)
    block = pyvips.Image.arrayjoin([four, four.fliphor(), four.flipver(), four.rot180()], across=2)
    times = -(-side // block.width)
    block.replicate(times, times).crop(0, 0, side, side).write_to_file(str(path), compression=1)


def timed(command: Sequence[str]) -> tuple[float, dict[str, float]]:
    """(seconds, role to peak MiB) of a command and all that it starts."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    sampler = Sampler(psutil.Process(process.pid))
    sampler.start()
    try:
        code = process.wait()
        seconds = time.perf_counter() - start
    finally:
        peaks = sampler.stop()
    if code:
        raise click.ClickException(f"{' '.join(command)}: exit code {code}")
    return seconds, peaks


def measure(folder: Path, side: int, scale: float, options: Sequence[str]) -> Point:
    """Run both on a source of ``side`` squared px."""
    source, output, report = folder / "source.png", folder / "out.tif", folder / "report.json"
    make_source(source, side)
    vips_s, vips_peaks = timed([sys.executable, "-c", VIPS, str(source), str(output), str(scale)])
    output.unlink()
    command = [sys.executable, "-m", "dino_ray.cli", "upscale", str(source), "-o", str(output), "--model", "none",
               "--scale", str(scale), "--report", str(report), "--progress", "none", *options]  # fmt: skip
    wall_s, sampled = timed(command)
    said = json.loads(report.read_text())
    for file in (source, output, report):
        file.unlink()
    return Point(
        megapixels=said["width"] * said["height"] / 1e6,
        wall_s=wall_s,
        vips_s=vips_s,
        stages={name: stage["seconds"] for name, stage in said["stages"].items()},
        reported={role: mb * REPORT_MB / MIB for role, mb in said["peak_rss_mb"].items()},
        sampled=sampled,
        vips_mib=max(vips_peaks.values()),
    )


def growth(points: Sequence[Point], role: str) -> float:
    """Peak of a role at the last point over that at the first."""
    return points[-1].peak(role) / points[0].peak(role)


def misses(points: Sequence[Point]) -> list[str]:
    """The targets that were not reached, each as a line."""
    last = points[-1]
    missed = []
    if last.ratio > MOST_RATIO:
        missed.append(f"wall: {last.ratio:.2f} times libvips, at most {MOST_RATIO:g}")
    for point in points:
        for role in {*point.reported, *point.sampled} - {ALL}:
            most = MOST_DRIVER_MIB if role == "driver" else MOST_MIB
            if point.peak(role) > most:
                missed.append(
                    f"{role}: {point.peak(role):.0f} MiB at {point.megapixels:.0f} MP, at most {most}"
                )
    missed += [
        f"{role}: grows {growth(points, role):.2f} times, at most {MOST_GROWTH:g}"
        for role in (*ROLES, ALL)
        if len(points) > 1 and growth(points, role) > MOST_GROWTH
    ]
    return missed


def show(points: Sequence[Point], console: Console) -> None:
    """Both tables: time, and memory."""
    times = Table(title="Seconds of the whole command; stages sum over their workers")
    names = sorted({name for point in points for name in point.stages})
    for column in ("MP out", "wall", "libvips", "ratio", "MP/s", *names):
        times.add_column(column, justify="right")
    memory = Table(title="Largest resident process of each role, MiB: as reported / as sampled")
    for column in ("MP out", *ROLES, ALL, *OTHER_ROLES, "libvips"):
        memory.add_column(column, justify="right")
    for p in points:
        stages = [f"{p.stages.get(name, 0):.1f}" for name in names]
        times.add_row(f"{p.megapixels:.0f}", f"{p.wall_s:.1f}", f"{p.vips_s:.1f}", f"{p.ratio:.2f}",
                      f"{p.megapixels / p.wall_s:.1f}", *stages)  # fmt: skip
        told = [f"{p.reported.get(role, 0):.0f} / {p.sampled.get(role, 0):.0f}" for role in ROLES]
        others = [f"{p.sampled.get(role, 0):.0f}" for role in (ALL, *OTHER_ROLES)]
        memory.add_row(f"{p.megapixels:.0f}", *told, *others, f"{p.vips_mib:.0f}")
    memory.add_row("growth", *[f"{growth(points, role):.2f} ×" for role in (*ROLES, ALL)])
    console.print(times, memory)


@click.command(help=__doc__)
@click.option("--size", default=8192, show_default=True, help="Side of the largest source, px.")
@click.option("--scale", default=4.0, show_default=True)
@click.option("--only-largest", is_flag=True, help="Leave the smaller sizes out.")
@click.option(
    "--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where to work."
)
@click.option("--check", is_flag=True, help="Exit with 1 if a target is missed.")
@click.argument("options", nargs=-1)
def main(
    size: int, scale: float, only_largest: bool, folder: Path | None, check: bool, options: tuple[str, ...]
) -> None:
    sides = [size] if only_largest else [size // step for step in STEPS_DOWN]
    with tempfile.TemporaryDirectory(dir=folder) as work:
        points = [measure(Path(work), side, scale, options or OUTPUT_OPTIONS) for side in sides]
    show(points, Console(width=200))
    missed = misses(points)
    for line in missed:
        click.echo(f"missed: {line}", err=True)
    if check and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
