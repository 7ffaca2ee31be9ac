"""What the system costs beside its models: the whole command on a photograph of 512², ×2, against bare model time.

"overhead" is the time from the first tile (models loaded) to the finished output, over the replicas' bare model
time divided by their number: 1 is what no system can beat. "first tile" is the fixed cost of a run: from the start of
the process to the first tile on a replica. Both are also in every run report.

    python scripts/bench/overhead.py --runs 3
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage import data

WAYS = {
    "1 worker": ["--workers", "1"],
    "2 workers": ["--workers", "2"],
    "no Ray": ["--address", "none"],
}


@click.command()
@click.option("--runs", default=3, show_default=True, help="Of each way, in turn.")
@click.option(
    "--photo", type=click.Path(exists=True, path_type=Path), help="Another image than scikit-image's 512²."
)
def main(runs: int, photo: Path | None) -> None:
    """Print the table."""
    figures: dict[str, list[tuple[float, float, float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        source = photo or Path(folder) / "astronaut.png"
        if photo is None:
            Image.fromarray(data.astronaut()).save(source)
        for _ in range(runs):
            for way, options in WAYS.items():
                figures[way].append(measure(source, Path(folder), options))
    table = Table(title="Medians; seconds, and a ratio")
    for column in ("way", "whole command", "first tile", "model per worker", "overhead"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, rows in figures.items():
        whole, first, model, overhead = (statistics.median(column) for column in zip(*rows, strict=True))
        table.add_row(way, f"{whole:.1f}", f"{first:.1f}", f"{model:.1f}", f"{overhead:.2f} ×")
    Console().print(table)


def measure(source: Path, folder: Path, options: list[str]) -> tuple[float, float, float, float]:
    """(whole command, process start to first tile, model time per worker, overhead) of one run."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "dino_ray.cli", "upscale", str(source), "-o", str(folder / "out.png"),
               "--report", str(report), "--progress", "none", *options]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command, check=True)
    whole = time.perf_counter() - start
    said = json.loads(report.read_text())
    outside = (
        whole - said["wall_s"]
    )  # the interpreter's start, and Ray's end, which is no part of a fixed cost
    return whole, min(outside, START_S) + said["first_tile_s"], said["model_s_per_worker"], said["overhead"]


START_S = 0.3
"""Starting Python and parsing the command, which the report's clock can't see; ``dino-ray --version`` takes less."""


if __name__ == "__main__":
    main()
