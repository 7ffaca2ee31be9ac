"""How fast cells are committed to a local canvas and read from it, beside zarr's own way to the same pixels.

The disk's cache is warm. "synced" is a commit that would outlive a power cut, which we do not ask for. With --cpu
processor time counts, of all threads, so that other work on the machine shows less.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
import zarr
from zarr.core.sync import sync

from dino_ray import places
from dino_ray.plan.geometry import Rect
from dino_ray.raster import chunks
from dino_ray.raster.canvas import Canvas

BANDS = 3
WINDOW = 544
"""Side of the windows that are read at random places: a tile of 512 with a filter's margin."""
WINDOWS = 200
SYNCED_CELLS = 64
"""Enough for a mean; on a slow disk each takes its time."""


class Ours:
    """The canvas as jobs use it."""

    def __init__(self, folder: Path, side: int, cell: int) -> None:
        self.canvas = Canvas.create(folder, side, side, BANDS, "uint8", (cell, cell))
        self.write, self.read, self.sha256 = self.canvas.write, self.canvas.read, self.canvas.sha256

    def rows(self) -> None:
        for _ in self.canvas.rows():
            pass

    def done(self) -> int:
        return len(self.canvas.done())


class Zarrs:
    """The same by zarr alone, with its default names of chunks."""

    def __init__(self, folder: Path, side: int, cell: int) -> None:
        self.side, self.cell = side, cell
        self.array = zarr.create_array(
            folder,
            shape=(side, side, BANDS),
            chunks=(cell, cell, BANDS),
            dtype="uint8",
            compressors=None,
            fill_value=0,
            config={"write_empty_chunks": True},
        )

    def write(self, rect: Rect, pixels: np.ndarray) -> None:
        self.array[rect.slices] = pixels

    def read(self, rect: Rect) -> Any:
        return self.array[rect.slices]

    def rows(self) -> None:
        for y in range(0, self.side, self.cell):
            self.array[y : y + self.cell]

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for y in range(0, self.side, self.cell):
            digest.update(np.ascontiguousarray(self.array[y : y + self.cell]).data)
        return digest.hexdigest()

    def done(self) -> int:
        async def count() -> int:
            return len([key async for key in self.array.store.list_prefix("c")])

        return sync(count())


Clock = Callable[[], float]


def measure(
    kind: type[Ours] | type[Zarrs], folder: Path, side: int, cell: int, clock: Clock
) -> dict[str, float]:
    """Seconds of each kind of work on a canvas of ``side``² pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (cell, cell, BANDS), dtype=np.uint8)
    corners = rng.integers(0, side - WINDOW, (WINDOWS, 2)).tolist()
    store = kind(folder, side, cell)
    squares = [Rect(x, y, cell, cell) for y in range(0, side, cell) for x in range(0, side, cell)]

    def commit() -> None:
        for square in squares:
            store.write(square, pixels)

    def windows() -> None:
        for x, y in corners:
            store.read(Rect(x, y, WINDOW, WINDOW))

    work: dict[str, Callable[[], Any]] = {
        "write cells": commit,
        "write again": commit,
        "list": store.done,
        "read bands": store.rows,
        "read windows": windows,
        "sha256": store.sha256,
    }
    return {name: seconds(job, clock) for name, job in work.items()}


def seconds(job: Callable[[], Any], clock: Clock) -> float:
    start = clock()
    job()
    return clock() - start


def list_many(folder: Path, cells: int, clock: Clock) -> float:
    """Seconds to see what is done on a canvas of so many cells, all of one pixel."""
    side = round(cells**0.5)
    canvas = Canvas.create(folder, side, side, 1, "uint8", (1, 1))
    for row in range(side):
        for column in range(side):
            (folder / chunks.name((row, column))).write_bytes(b"x")
    return seconds(canvas.missing, clock)


def synced(folder: Path, cell: int) -> float:
    """Seconds per cell that is forced to the disk."""
    folder.mkdir()
    content = bytes(cell * cell * BANDS)

    def commit() -> None:
        for i in range(SYNCED_CELLS):
            places.write_local(folder / str(i), content)

    return seconds(commit, time.perf_counter) / SYNCED_CELLS


@click.command(help=__doc__)
@click.option(
    "--size", default=8192, show_default=True, help="Side of the canvas, px; a multiple of the cell's."
)
@click.option("--cell", default=256, show_default=True, help="Side of a cell, px.")
@click.option("--cells", default=65_536, show_default=True, help="Cells of the canvas that is only listed.")
@click.option("--repeats", default=3, show_default=True, help="The best of so many runs counts.")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="On the disk to measure. [default: the system's]"
)
@click.option("--cpu", is_flag=True, help="Count processor time.")
def main(size: int, cell: int, cells: int, repeats: int, folder: Path | None, cpu: bool) -> None:
    clock = time.process_time if cpu else time.perf_counter
    best: dict[type, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch:
        for _ in range(repeats):
            for kind in (Zarrs, Ours):
                here = Path(scratch) / kind.__name__
                for name, taken in measure(kind, here, size, cell, clock).items():
                    times = best.setdefault(kind, {})
                    times[name] = min(taken, times.get(name, taken))
                shutil.rmtree(here)
        n_cells, total = (size // cell) ** 2, size * size * BANDS / 1e6
        print(f"{size} x {size} px, {n_cells} cells of {cell} x {cell}, {total:.0f} MB,", end=" ")
        print("processor time" if cpu else "wall time")
        print(f"{'':>14} {'zarr':>16} {'here':>16} {'ratio':>7}")
        for name in best[Ours]:
            zarrs, ours = best[Zarrs][name], best[Ours][name]
            columns = (rate(name, taken, total, n_cells) for taken in (zarrs, ours))
            print(f"{name:>14} {' '.join(f'{column:>16}' for column in columns)} {zarrs / ours:>7.1f}")
        print(f"listing {cells:,} cells: {list_many(Path(scratch) / 'many', cells, clock):.2f} s")
        print(f"a commit, synced: {1e3 * synced(Path(scratch) / 'synced', cell):.2f} ms")


def rate(name: str, taken: float, total: float, n_cells: int) -> str:
    if name == "list":
        return f"{1e3 * taken:.1f} ms"
    if name == "read windows":
        return f"{1e3 * taken / WINDOWS:.2f} ms each"
    speed = f"{total / taken:.0f} MB/s"
    return f"{speed}, {1e3 * taken / n_cells:.2f} ms" if name.startswith("write") else speed


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
