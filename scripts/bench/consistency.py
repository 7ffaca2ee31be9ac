"""Is a result truer to the picture for being held to its source? Photographs of scikit-image, spoilt and enlarged ×2.

Of each the truth is reduced by PIL's bicubic filter and spoilt in four ways. Results are those of quality.py's methods,
and "displaced": the base net's, whose every part lies up to a pixel from where it belongs, as models draw. PSNR is of
BT.601 luma against the truth, without 4 px of border: of the result as it is, after three rounds of back-projection to
all that the source shows, and after those that heed its grain. Tiles are the program's: 128 px, overlapping by 32,
blended.

The second table is of the kernels that back-projection may take the source to be reduced by, against those it was
reduced by; the third of colours: every tile gets a cast of its own, and is locked to the bicubic enlargement.

    python scripts/bench/consistency.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from quality import BORDER, METHODS
from rich.console import Console
from rich.table import Table
from skimage.transform import warp
from sources import PHOTOS, Pixels, jpeg, noisy, photograph, reduced, spoilt
from torch import Tensor

from dino_ray.fidelity.colour import ColourLock, colour_drift, lock_colour
from dino_ray.fidelity.consistency import SourceView, back_project, consistency_psnr, source_window
from dino_ray.fidelity.grain import CLEAN, Grain, measure_grain
from dino_ray.plan import blend
from dino_ray.plan.geometry import Grid, Rect, Scaling, make_grid
from dino_ray.report.metrics import luma, psnr
from dino_ray.upsample.lanczos import CUBIC, LANCZOS, Kernel

SCALE = 2
TILE, OVERLAP, STEP = 128, 32, 8
"""canvas_px, as the bundled model has them."""
CAST = 8.0
"""Levels of 255: each channel of a tile is off by up to that, evenly."""
SLOPE = 0.5
"""Of the cast, by which it changes from one side of a tile to the other."""
DISPLACED = 1.0
"""Truth px, at most, along each axis."""
WAVES = (17, 29)
"""Truth px per radian of the displacement, along the axes."""
REDUCERS = {name: Image.Resampling[name.upper()] for name in ("bicubic", "Lanczos", "box", "bilinear")}
KERNELS: dict[str, Kernel] = {"cubic": CUBIC, "Lanczos-3": LANCZOS}

Correct = Callable[[Tensor, SourceView], Tensor]


SOURCES: dict[str, Callable[[Pixels], Pixels]] = {
    "clean": lambda truth: reduced(truth, SCALE),
    "blur, noise 3, JPEG 80": lambda truth: spoilt(truth, SCALE),
    "JPEG 60": lambda truth: jpeg(reduced(truth, SCALE), 60),
    "noise 6": lambda truth: noisy(reduced(truth, SCALE), 6),
}


def displaced(small: Pixels, scale: int) -> Pixels:
    image = METHODS["base net"](small, scale)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(float)
    a, b = WAVES
    places = np.array(
        [y + DISPLACED * np.cos(x / a) * np.sin(y / b), x + DISPLACED * np.sin(y / a) * np.cos(x / b)]
    )
    moved = [warp(image[..., c].astype(float), places, order=3, mode="edge") for c in range(3)]
    return np.clip(np.rint(np.stack(moved, axis=-1)), 0, 255).astype(np.uint8)


RESULTS = METHODS | {"displaced": displaced}


def window(image: NDArray[np.generic], rect: Rect) -> NDArray[np.float32]:
    """(h, w, 3) in [0, 1], edges replicated."""
    rows, columns = (
        np.clip(np.arange(a, b), 0, side - 1)
        for a, b, side in ((rect.y, rect.y1, image.shape[0]), (rect.x, rect.x1, image.shape[1]))
    )
    return (image[rows[:, None], columns] / 255).astype(np.float32)


def planes(pixels: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def grid_of(result: Pixels) -> Grid:
    return make_grid(result.shape[1], result.shape[0], tile=TILE, overlap=OVERLAP, multiple=STEP)


def view_of(small: Pixels, result: Pixels, rect: Rect, kernel: Kernel = CUBIC) -> SourceView:
    scaling = Scaling(small.shape[1], small.shape[0], result.shape[1], result.shape[0])
    place = source_window(rect, scaling)
    return SourceView(planes(window(small, place)), place, rect, scaling, kernel=kernel)


def merged(grid: Grid, tiles: dict[int, Tensor]) -> NDArray[np.float64]:
    """(h, w, 3) in 0..255."""
    deep = {
        i: (t.permute(1, 2, 0).numpy().clip(0, 1) * 65535 + 0.5).astype(np.uint16) for i, t in tiles.items()
    }
    out = np.empty((grid.height, grid.width, 3))
    for cell in range(grid.n_cells):
        own = {i: deep[i] for i in grid.cell_tiles(cell)}
        out[grid.cell_rect(cell).slices] = blend.blend(grid, cell, own)
    return out / 257


def corrected(small: Pixels, result: Pixels, correct: Correct, kernel: Kernel = CUBIC) -> NDArray[np.float64]:
    grid = grid_of(result)
    tiles = {}
    for i in range(grid.n_tiles):
        rect = grid.tile_rect(i)
        tiles[i] = correct(planes(window(result, rect)), view_of(small, result, rect, kernel))
    return merged(grid, tiles)


def grain_of(small: Pixels) -> Grain:
    return measure_grain(lambda rect: window(small, rect), small.shape[1], small.shape[0])


def truth_psnr(image: NDArray[np.generic], truth: Pixels) -> float:
    return psnr(luma(image), luma(truth), BORDER)


def in_source_psnr(small: Pixels, image: NDArray[np.float64]) -> float:
    whole = Rect(0, 0, image.shape[1], image.shape[0])
    return consistency_psnr(planes((image / 255).astype(np.float32)), view_of(small, image, whole))


def truth_table(photos: tuple[str, ...], result: str) -> Table:
    title = f"{result}: Y-PSNR to the truth (in brackets, of the reduced result to the source), dB"
    out = Table(title=title, title_justify="left")
    for name in ("source", "photo"):
        out.add_column(name)
    for name in ("noise", "blocks", "nothing", "naive", "by grain", "gain"):
        out.add_column(name, justify="right")
    for kind, spoil in SOURCES.items():
        gains = []
        for photo in photos:
            truth = photograph(photo, SCALE)
            small = spoil(truth)
            made, grain = RESULTS[result](small, SCALE), grain_of(small)
            images = [
                made.astype(np.float64),
                corrected(small, made, lambda tile, view: back_project(tile, view, CLEAN)),
                corrected(small, made, lambda tile, view, grain=grain: back_project(tile, view, grain)),
            ]
            scores = [truth_psnr(image, truth) for image in images]
            gains.append(scores[2] - scores[0])
            cells = [
                f"{s:.2f} ({in_source_psnr(small, image):.1f})"
                for s, image in zip(scores, images, strict=True)
            ]
            grains = (f"{grain.noise * 255:.1f}", f"{grain.blocks * 255:.1f}")
            out.add_row(kind, photo, *grains, *cells, f"{gains[-1]:+.2f}")
            kind = ""
        out.add_row("", "mean", *[""] * 5, f"{np.mean(gains):+.2f}", style="bold", end_section=True)
    return out


def kernel_table(photos: tuple[str, ...], result: str) -> Table:
    out = Table(title="What a kernel gains, dB, by what the source was reduced by", title_justify="left")
    out.add_column("reduced by")
    for name in KERNELS:
        out.add_column(name, justify="right")
    for reducer, filter_ in REDUCERS.items():
        gains: dict[str, list[float]] = {name: [] for name in KERNELS}
        for photo in photos:
            truth = photograph(photo, SCALE)
            size = (truth.shape[1] // SCALE, truth.shape[0] // SCALE)
            small = np.asarray(Image.fromarray(truth).resize(size, filter_))
            made, grain = RESULTS[result](small, SCALE), grain_of(small)
            before = truth_psnr(made, truth)
            for name, kernel in KERNELS.items():
                after = corrected(
                    small, made, lambda tile, view, grain=grain: back_project(tile, view, grain), kernel
                )
                gains[name].append(truth_psnr(after, truth) - before)
        out.add_row(reducer, *(f"{np.mean(g):+.3f}" for g in gains.values()))
    return out


def casts(grid: Grid) -> Iterator[Tensor]:
    """Of each tile (3, TILE, TILE): a colour of its own that also changes across it."""
    rng = np.random.default_rng(1)
    slope = np.linspace(-0.5, 0.5, TILE)
    for _ in range(grid.n_tiles):
        cast, across, down = rng.uniform(-1, 1, (3, 3, 1, 1))
        plane = cast + SLOPE * (across * slope + down * slope[:, None])
        yield torch.from_numpy((CAST / 255 * plane).astype(np.float32))


def largest_step(grid: Grid, tiles: dict[int, Tensor]) -> float:
    """The largest mean difference of two neighbours over their ramp, levels of 255."""
    steps = []
    ramps = {(0, 1): grid.xs.ramps, (1, 0): grid.ys.ramps}
    for i, tile in tiles.items():
        row, col = grid.tile_position(i)
        for (down, right), seams in ramps.items():
            if (col if right else row) == len(seams):
                continue
            j = (row + down) * grid.xs.n_tiles + col + right
            start, stop = seams[col if right else row]
            here, there = grid.tile_rect(i), grid.tile_rect(j)
            axis = 2 if right else 1
            a = tile.narrow(axis, start - (here.x if right else here.y), stop - start)
            b = tiles[j].narrow(axis, start - (there.x if right else there.y), stop - start)
            steps.append(float((a - b).mean((1, 2)).abs().max()))
    return max(steps) * 255


def colour_table(photos: tuple[str, ...], result: str) -> Table:
    title = f"A cast of up to {CAST:g} levels on every tile; drift and step: largest, levels of 255"
    out = Table(title=title, title_justify="left")
    out.add_column("photo")
    for name in ("lock", "drift", "step at a seam", "PSNR to the result without casts, dB"):
        out.add_column(name, justify="right")
    methods: tuple[ColourLock, ...] = ("off", "adain", "wavelet")
    for photo in photos:
        small = reduced(photograph(photo, SCALE), SCALE)
        made = RESULTS[result](small, SCALE)
        grid = grid_of(made)
        plain = METHODS["bicubic"](small, SCALE)
        bases = {i: planes(window(plain, grid.tile_rect(i))) for i in range(grid.n_tiles)}
        fair = {i: planes(window(made, grid.tile_rect(i))) for i in bases}
        cast = {i: fair[i] + c for i, c in enumerate(casts(grid))}
        for method in methods:
            tiles = {i: lock_colour(cast[i], bases[i], method) for i in cast}
            drift = max(colour_drift(tiles[i], bases[i]) for i in tiles)
            close = psnr(merged(grid, tiles), merged(grid, fair))
            name = photo if method == methods[0] else ""
            out.add_row(name, method, f"{drift:.2f}", f"{largest_step(grid, tiles):.2f}", f"{close:.1f}")
    return out


def cost_table() -> Table:
    out = Table(title="Milliseconds per tile, one thread, ×2", title_justify="left")
    for name in ("tile", "back-projection", "colour lock"):
        out.add_column(name, justify="right")
    for side in (TILE, 8 * TILE):
        small = np.random.default_rng(2).integers(0, 256, (side, side, 3), np.uint8)
        large = small.repeat(SCALE, 0).repeat(SCALE, 1)
        rect = Rect(side // 2, side // 2, side, side)
        tile, view = planes(window(large, rect)), view_of(small, large, rect)
        works = (lambda t=tile, v=view: back_project(t, v, CLEAN), lambda t=tile: lock_colour(t, t.flip(1)))
        out.add_row(f"{side}²", *(f"{1000 * seconds(work):.1f}" for work in works))
    return out


def seconds(work: Callable[[], object], times: int = 10) -> float:
    """The median, the first time left out."""
    stamps = [time.perf_counter()]
    for _ in range(times + 1):
        work()
        stamps.append(time.perf_counter())
    return float(np.median([b - a for a, b in pairwise(stamps)][1:]))


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--photos", multiple=True, type=click.Choice(PHOTOS), help="All four unless named.")
@click.option(
    "results",
    "--result",
    multiple=True,
    type=click.Choice(list(RESULTS)),
    default=("base net", "bicubic", "displaced"),
    show_default=True,
    help="May be given several times; the first one's kernels and colours are tried.",
)
def main(photos: tuple[str, ...], results: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    console, photos = Console(width=120), photos or PHOTOS
    for result in results:
        console.print(truth_table(photos, result))
    console.print(kernel_table(photos, results[0]))
    console.print(colour_table(photos, results[0]))
    console.print(cost_table())


if __name__ == "__main__":
    main()
