"""Export: time and memory of every format at two sizes, each in a process of its own.

The canvas is photographs enlarged, side by side. "libvips" is its own pyramid of JPEG tiles, fed by the same rows: what
`dino_ray/raster/export/pyramid.py` has to beat.

    python scripts/bench/export.py                       # 64 and 256 megapixels
    python scripts/bench/export.py --side 8192 --side 32768 --only "tiff jpeg" --only libvips --check
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage import data

from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export import ExportOptions, export
from dino_ray.raster.info import SourceInfo

MOST_MIB = 500
"""Resident, of the process that exports."""
MOST_GROWTH = 1.15
"""Peak at the largest size over that at the smallest, where memory is not to depend on the size: TIFF, OME-Zarr."""

CELL = 448
PHOTO = 1024
MIB = 2**20

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "png": ("o.png", {}),
    "jpeg": ("o.jpg", {}),
    "webp": ("o.webp", {}),
    "tiff deflate": ("o.tif", {"compression": "deflate", "pyramid": True}),
    "tiff none": ("o.tif", {"compression": "none", "pyramid": True}),
    "tiff lzw": ("o.tif", {"compression": "lzw", "pyramid": True}),
    "tiff zstd": ("o.tif", {"compression": "zstd", "pyramid": True}),
    "tiff jpeg": ("o.tif", {"compression": "jpeg", "pyramid": True, "quality": 90}),
    "tiff webp": ("o.tif", {"compression": "webp", "pyramid": True, "quality": 90}),
    "dzi": ("o.dzi", {}),
    "ome-zarr": ("o.ome.zarr", {}),
    "libvips": ("o.tif", {}),
}
CONSTANT = ("tiff", "ome-zarr")
LARGEST = {"jpeg": 65_535, "webp": 16_383}


@dataclass(frozen=True)
class Point:
    """One export."""

    case: str
    side: int
    wall_s: float
    cpu_s: float
    peak_mib: float
    written: int


def make_canvas(folder: Path, side: int) -> Canvas:
    """Four photographs at twice to three times their size, repeated."""
    photos = [
        np.asarray(Image.fromarray(photo).resize((PHOTO, PHOTO), Image.Resampling.LANCZOS))
        for photo in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
    ]
    block = np.vstack([np.hstack(photos[:2]), np.hstack(photos[2:])])
    canvas = Canvas.create(folder, side, side, 3, "uint8", (CELL, CELL))
    for row, column in canvas.missing():
        rect = canvas.cell_rect(row, column)
        ys, xs = np.arange(rect.y, rect.y1) % len(block), np.arange(rect.x, rect.x1) % len(block)
        canvas.write(rect, np.ascontiguousarray(block[ys[:, None], xs]))
    return canvas


def export_here(case: str, folder: str, output: str) -> None:
    """One export in this process, and a line of JSON about it."""
    canvas = Canvas.open(folder)
    name, options = CASES[case]
    path = os.path.join(output, name)
    started = time.perf_counter()
    if case == "libvips":
        from dino_ray.raster.export.vips_source import pull

        pull(canvas, lambda image: image.tiffsave(path, compression="jpeg", Q=90, tile=True, pyramid=True))
    else:
        info = SourceInfo("bench", canvas.width, canvas.height, canvas.bands, canvas.dtype, alpha=False)
        export(canvas, info, path, ExportOptions(**options))  # type: ignore[arg-type]
    used = resource.getrusage(resource.RUSAGE_SELF)
    point = {
        "wall_s": time.perf_counter() - started,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss / 1024,
    }
    print(json.dumps(point))


def measure(case: str, canvas: Canvas, scratch: Path) -> Point:
    output = scratch / "out"
    output.mkdir()
    command = [sys.executable, __file__, "--here", case, canvas.folder, str(output)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    written = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    shutil.rmtree(output)
    return Point(case, canvas.width, written=written, **json.loads(done.stdout))


def show(points: list[Point]) -> None:
    table = Table("format", "side", "wall s", "CPU s", "MB/s", "peak MiB", "MB")
    for point in points:
        size = point.side**2 * 3 / 1e6
        table.add_row(
            point.case,
            f"{point.side:,}",
            f"{point.wall_s:.1f}",
            f"{point.cpu_s:.1f}",
            f"{size / point.wall_s:.0f}",
            f"{point.peak_mib:.0f}",
            f"{point.written / 1e6:.0f}",
        )
    Console().print(table)


def failures(points: list[Point]) -> list[str]:
    failed = [
        f"{p.case} at {p.side:,}: {p.peak_mib:.0f} MiB"
        for p in points
        if p.peak_mib > MOST_MIB and p.case not in ("webp", "libvips")
    ]
    for case in {p.case for p in points if p.case.startswith(CONSTANT)}:
        peaks = [p.peak_mib for p in sorted(points, key=lambda p: p.side) if p.case == case]
        if peaks[-1] > MOST_GROWTH * peaks[0]:
            failed.append(f"{case}: memory grew from {peaks[0]:.0f} to {peaks[-1]:.0f} MiB")
    return failed


@click.command()
@click.option("--side", "sides", type=int, multiple=True, default=(8192, 16384), show_default=True)
@click.option("--only", type=click.Choice(list(CASES)), multiple=True, help="These cases alone.")
@click.option("--check", is_flag=True, help="End with 1 where memory is above what is promised.")
@click.option("--here", nargs=3, hidden=True)
def main(
    sides: tuple[int, ...], only: tuple[str, ...], check: bool, here: tuple[str, str, str] | None
) -> None:
    """Measure exports."""
    if here:
        export_here(*here)
        return
    points = []
    with tempfile.TemporaryDirectory(prefix="dino-ray-bench-") as scratch:
        for side in sides:
            canvas = make_canvas(Path(scratch) / f"canvas-{side}", side)
            for case in only or CASES:
                if side <= LARGEST.get(case, side):
                    points.append(measure(case, canvas, Path(scratch)))
            shutil.rmtree(canvas.folder)
    show(points)
    failed = failures(points)
    for line in failed:
        print(line)
    if check and failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
