"""How fast tiles are merged: megabytes of uint16 RGB output per second of one core, for common layouts.

Processor time is counted, so that other work on the machine shows less.
"""

from __future__ import annotations

import time

import click
import numpy as np

from dino_ray.plan.blend import blend
from dino_ray.plan.geometry import make_grid

LAYOUTS = [(1024, 128), (512, 64), (256, 32), (128, 16), (128, 64)]
"""(tile, overlap), canvas_px: what FLUX and the smaller models ask for, and the dearest case."""
MULTIPLE = 16
CHANNELS = 3


def rate(size: int, tile: int, overlap: int, repeats: int) -> tuple[int, float]:
    """(cell side, best MB/s of ``repeats`` runs) over a square canvas of ``size``."""
    grid = make_grid(size, size, tile=tile, overlap=overlap, multiple=MULTIPLE)
    rng = np.random.default_rng(0)
    pixels = {i: rng.integers(0, 2**16, (tile, tile, CHANNELS), dtype=np.uint16) for i in range(grid.n_tiles)}
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        for cell in range(grid.n_cells):
            blend(grid, cell, pixels)
        seconds.append(time.process_time() - start)
    return grid.xs.cell, size * size * CHANNELS * 2 / min(seconds) / 1e6


@click.command(help=__doc__)
@click.option("--size", default=4096, show_default=True, help="Side of the canvas, px.")
@click.option("--repeats", default=3, show_default=True, help="The best of so many runs counts.")
def main(size: int, repeats: int) -> None:
    print(f"{'tile':>6} {'overlap':>8} {'cell':>6} {'MB/s':>8}")
    for tile, overlap in LAYOUTS:
        cell, speed = rate(size, tile, overlap, repeats)
        print(f"{tile:>6} {overlap:>8} {cell:>6} {speed:>8.0f}")


if __name__ == "__main__":
    main()
