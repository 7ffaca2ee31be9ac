"""What ``dino-ray plan --calibrate`` foretells, against what the run then reports.

Each job is planned and run in turn, several times, since whatever else a machine does meanwhile can be more than a
quarter of a short job's time; shown are medians. Cells of the table are foretold / reported and their ratio.

    python scripts/bench/plan.py --check
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pyvips
from rich.console import Console
from rich.table import Table
from skimage import data

TOLERANCE = 0.25
"""By which a quantity may miss what is reported, either way."""
EXACT = ("tiles", "cells", "workers", "tile_calls")
MB = 1e6


@dataclass(frozen=True)
class Case:
    """One job: a photograph of some size, and the command's options."""

    width: int
    height: int
    source: str
    output: str
    options: str

    @property
    def name(self) -> str:
        return f"{self.width}×{self.height} {self.source} → {self.output}  {self.options}"


CASES = (
    Case(2048, 2048, "jpg", "png", "--model none --address none"),
    Case(2048, 2048, "jpg", "png", "--model none --workers 2"),
    Case(4096, 4096, "jpg", "tif", "--model none --workers 1"),
    Case(4096, 4096, "jpg", "tif", "--model none --workers 2 --scale 4 --compression jpeg"),
    Case(4096, 4096, "png", "png", "--model none --workers 2 --scale 4"),
    Case(8192, 1024, "png", "jpg", "--model none --workers 2 --scale 4"),
    Case(4096, 2048, "png", "webp", "--model none --address none"),
    Case(256, 256, "png", "png", "--address none"),
    Case(256, 256, "png", "png", "--workers 2"),
    Case(512, 512, "png", "png", "--address none"),
    Case(512, 512, "png", "png", "--workers 1"),
    Case(512, 512, "png", "png", "--workers 2"),
    Case(1536, 256, "png", "tif", "--workers 2"),
)


def make_source(path: Path, width: int, height: int) -> None:
    """A photograph, mirrored beside itself until it fills the size."""
    photo = pyvips.Image.new_from_array(data.astronaut())
    pair = photo.join(photo.fliphor(), "horizontal")
    block = pair.join(pair.flipver(), "vertical")
    times = -(-width // block.width), -(-height // block.height)
    block.replicate(*times).crop(0, 0, width, height).write_to_file(str(path))


def dino_ray(*arguments: object) -> str:
    command = [sys.executable, "-m", "dino_ray.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def quantities(
    plan: Mapping[str, Any], report: Mapping[str, Any], output_mb: float
) -> dict[str, tuple[float, float]]:
    """Name to (foretold, reported)."""
    pairs = {name: (plan[name], report[name]) for name in (*EXACT, "wall_s", "first_tile_s")}
    pairs |= {f"{role} MB": (mb, report["peak_rss_mb"][role]) for role, mb in plan["peak_rss_mb"].items()}
    return {**pairs, "output MB": (plan["output_mb"], output_mb)}


def measured(case: Case, folder: Path) -> dict[str, tuple[float, float]]:
    """Plan a job and run it."""
    source, output, report = (
        folder / name for name in (f"in.{case.source}", f"out.{case.output}", "report.json")
    )
    make_source(source, case.width, case.height)
    arguments = [source, "-o", output, *case.options.split()]
    plan = json.loads(dino_ray("plan", *arguments, "--calibrate", "--json"))
    dino_ray("upscale", *arguments, "--report", report, "--progress", "none", "--fresh")
    return quantities(plan, json.loads(report.read_text()), output.stat().st_size / MB)


def misses(values: Sequence[tuple[float, float]]) -> bool:
    """Whether the median ratio of foretold to reported is beyond the tolerance."""
    return abs(median_ratio(values) - 1) > TOLERANCE


def median_ratio(values: Sequence[tuple[float, float]]) -> float:
    return statistics.median(foretold / reported for foretold, reported in values)


def cell(values: Sequence[tuple[float, float]]) -> str:
    foretold, reported = (statistics.median(side) for side in zip(*values, strict=True))
    text = f"{foretold:.3g}/{reported:.3g} {median_ratio(values):.2f}"
    return f"[red]{text}[/red]" if misses(values) else text


@click.command()
@click.option("--repeat", default=3, show_default=True, help="Times that each job is planned and run.")
@click.option("--only", default="", help="Jobs whose name has this in it.")
@click.option("--check", is_flag=True, help="Exit with 1 if a median is off by more than a quarter.")
def main(repeat: int, only: str, check: bool) -> None:
    """Compare plans with runs."""
    console, failed = Console(), []
    names = ("wall_s", "first_tile_s", "driver MB", "replica MB", "merge MB", "output MB")
    table = Table("job", "counts", *names)
    for case in (case for case in CASES if only in case.name):
        with tempfile.TemporaryDirectory() as folder:
            runs = [measured(case, Path(folder)) for _ in range(repeat)]
        values = {name: [run[name] for run in runs] for name in runs[0]}
        exact = all(foretold == reported for name in EXACT for foretold, reported in values[name])
        table.add_row(
            case.name, "equal" if exact else "[red]differ[/red]", *(cell(values[name]) for name in names)
        )
        failed += [case.name] * (not exact) + [f"{case.name}: {n}" for n in names if misses(values[n])]
        console.print(f"{case.name}: " + ", ".join(f"{n} {cell(values[n])}" for n in names))
    console.print(table)
    if check and failed:
        console.print("beyond a quarter: " + "; ".join(failed))
        sys.exit(1)


if __name__ == "__main__":
    main()
