"""What does each control of faithfulness do? The bundled model on scikit-image's photographs, with and without.

Photographs are reduced ×2 by PIL's bicubic filter. Cosines are of DINO's tokens against the base's, on crops that
guidance does not see; PSNR is against the truth, over RGB.

    python scripts/bench/dino_ablation.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
from on_tiles import Bench, Pixels, benches, psnr
from quality import PHOTOS
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STRENGTHS = (0.0, 0.25, 0.5, 1.0)
CORRUPTION = 0.25
"""Noise that the model is not told of, in units of its latents' standard deviation."""
CAST = 12
"""Levels of 255: the largest cast per tile and colour."""
ALONE = {"adaptive": 0.0, "verify": False}
"""Of a task: nothing but what is looked at."""


class Wrapped:
    """A model that does one thing otherwise."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)


class Corrupted(Wrapped):
    """Starts from noise that it is not told of."""

    def noised(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        start: Tensor = self._denoiser.noised(latents, noise, sigma)
        return start + CORRUPTION * noise


class Casting(Wrapped):
    """Gives each tile a cast of its own, as a function of its brightness, which a slope runs across."""

    def decode(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self._denoiser.decode(latents)
        height, width = pixels.shape[2:]
        for i, tile in enumerate(pixels):
            rng = np.random.default_rng(int(1e6 * float(tile.mean())))
            cast = rng.uniform(-CAST, CAST, (3, 2)).astype(np.float32) / 255
            slope = np.linspace(-0.5, 0.5, width, dtype=np.float32)
            added = np.broadcast_to(cast[:, :1, None] + cast[:, 1:, None] * slope, (3, height, width))
            pixels[i] += pixels.new_tensor(added)
        return pixels


Measured = tuple[float, float, float]
"""PSNR, cosine, seconds: means over tiles."""


def measure(opened: Sequence[Bench], every: int, task: dict[str, Any]) -> Measured:
    """Of every so many-th tile, with fields of the task changed."""
    scores, cosines, seconds = [], [], []
    for bench in opened:
        for tile in bench.tiles()[::every]:
            start = time.perf_counter()
            pixels, record = bench.refined(tile, **task)
            seconds.append(time.perf_counter() - start)
            scores.append(psnr(pixels, bench.truth_of(tile)))
            cosines.append(
                record.cosine_mean if record.cosine_mean is not None else cosine_of(bench, tile, pixels)
            )
    return float(np.mean(scores)), float(np.mean(cosines)), float(np.mean(seconds))


def cosine_of(bench: Bench, tile: int, pixels: Pixels) -> float:
    """Against the base, as verification would have it."""
    import torch

    from dino_ray.dino.drift import Reference

    dino = bench.replica.dino
    assert dino is not None
    planes = [torch.from_numpy(p.transpose(2, 0, 1).copy()).float() for p in (bench.base(tile), pixels)]
    return float(Reference.of(dino, planes[0]).drift(planes[1], alarm=1.0).cosines.mean())


def clean_start(photos: tuple[str, ...], every: int) -> tuple[Table, list[str]]:
    """Guidance on a model that is faithful already."""
    out = Table(title="clean start: guidance on against off", title_justify="left")
    columns(out, "photo", "PSNR off", "PSNR on", "change dB", "cosine off", "cosine on", "time on / off")
    changes, ratios = [], []
    with benches(photos) as opened:
        for bench in opened:
            measure([bench], 4, {})  # warm
            off = measure([bench], every, {"dino_strength": 0.0})
            on = measure([bench], every, {"dino_strength": 1.0})
            changes.append(on[0] - off[0])
            ratios.append(on[2] / off[2])
            out.add_row(
                bench.photo, f"{off[0]:.3f}", f"{on[0]:.3f}", f"{changes[-1]:+.4f}", f"{off[1]:.5f}",
                f"{on[1]:.5f}", f"{ratios[-1]:.2f}",
            )  # fmt: skip
    worst, ratio = max(map(abs, changes)), float(np.mean(ratios))
    return out, [
        verdict(worst < 0.05, f"clean start: PSNR changes by {worst:.4f} dB at most (wanted below 0.05)"),
        verdict(ratio < 1.6, f"clean start: {ratio:.2f} times the time (wanted below 1.6)"),
    ]


def corrupted_start(photos: tuple[str, ...], every: int, seeds: int) -> tuple[Table, list[str]]:
    """Guidance on a model that starts from noise it was not told of."""
    out = Table(
        title=f"corrupted start, noise {CORRUPTION}: mean of {seeds} seeds ± spread", title_justify="left"
    )
    columns(out, "consistency", "strength", "PSNR dB", "cosine", "time / off")
    means: dict[tuple[float, float], np.ndarray] = {}
    with benches(photos, Corrupted) as opened:
        for consistency in (0.0, 1.0):
            for strength in STRENGTHS:
                task = {**ALONE, "consistency": consistency, "dino_strength": strength}
                runs = np.array([measure(opened, every, {**task, "seed": seed}) for seed in range(seeds)])
                means[consistency, strength] = runs.mean(0)
                spread = np.ptp(runs, axis=0) / 2
                off = means[consistency, 0.0]
                out.add_row(
                    "on" if consistency else "off", f"{strength:g}", f"{runs[:, 0].mean():.3f} ± {spread[0]:.3f}",
                    f"{runs[:, 1].mean():.4f} ± {spread[1]:.4f}", f"{runs[:, 2].mean() / off[2]:.2f}",
                    end_section=strength == STRENGTHS[-1],
                )  # fmt: skip
    alone = [means[0.0, s] for s in STRENGTHS]
    rising = all(b[0] > a[0] and b[1] > a[1] for a, b in pairwise(alone))
    gain = alone[-1][0] - alone[0][0]
    beside = means[1.0, 1.0][0] - means[1.0, 0.0][0]
    return out, [
        verdict(rising, "corrupted start: PSNR and cosine rise with every strength"),
        verdict(gain >= 1, f"corrupted start, consistency off: {gain:+.2f} dB at strength 1 (wanted +1)"),
        verdict(
            beside >= 0, f"corrupted start, consistency on: {beside:+.3f} dB at strength 1 (no loss wanted)"
        ),
    ]


def colour(photos: tuple[str, ...], every: int) -> tuple[Table, list[str]]:
    """Casts, each tile its own."""
    out = Table(
        title=f"a cast of up to {CAST} levels per tile: steps left, levels of 255",
        title_justify="left",
    )
    columns(out, "--color-lock", "consistency", "mean step between tiles", "largest")
    left = {}
    with benches(photos, Casting, dino_strength=0.0) as cast, benches(photos, dino_strength=0.0) as plain:
        for lock in ("off", "adain", "wavelet"):
            for consistency in (0.0, 1.0):
                task = {**ALONE, "color_lock": lock, "consistency": consistency}
                steps = [
                    step
                    for a, b in zip(cast, plain, strict=True)
                    for step in steps_between(a, b, every, task)
                ]
                left[lock, consistency] = max(steps)
                out.add_row(
                    lock, "on" if consistency else "off", f"{np.mean(steps):.3f}", f"{max(steps):.3f}",
                    end_section=consistency == 1,
                )  # fmt: skip
    default = max(left["wavelet", 0.0], left["wavelet", 1.0])
    return out, [
        verdict(default < 0.5, f"casts: a step of {default:.3f} levels is left at most (wanted below 0.5)")
    ]


def steps_between(cast: Bench, plain: Bench, every: int, task: dict[str, Any]) -> list[float]:
    """By how much more than without casts the means of neighbouring tiles differ where they overlap, per colour."""
    grid = cast.task.grid
    found = []
    for tile in cast.tiles()[::every]:
        _, column = grid.tile_position(tile)
        if column + 1 == grid.xs.n_tiles or tile + 1 not in cast.tiles():
            continue
        start, stop = grid.xs.ramp(column)
        differences = []
        for bench in (cast, plain):
            parts = [
                bench.refined(each, **task)[0][
                    :, start - grid.tile_rect(each).x : stop - grid.tile_rect(each).x
                ]
                for each in (tile, tile + 1)
            ]
            differences.append(parts[1].mean((0, 1)) - parts[0].mean((0, 1)))
        found += (np.abs(differences[0] - differences[1]) * 255).tolist()
    return found


def columns(table: Table, first: str, *others: str) -> None:
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")


def verdict(good: bool, what: str) -> str:
    return f"{'reached' if good else 'MISSED'}: {what}"


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--photos", multiple=True, default=PHOTOS, help="Of scikit-image, or files.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--every", default=3, show_default=True, help="Of the tiles, one in so many.", type=click.IntRange(1)
)
@click.option("--check", is_flag=True, help="Exit with 1 where a figure falls short.")
def main(photos: tuple[str, ...], seeds: int, every: int, check: bool) -> None:
    console = Console(width=120)
    verdicts: list[str] = []
    for made in (clean_start(photos, every), corrupted_start(photos, every, seeds), colour(photos, every)):
        console.print(made[0])
        verdicts += made[1]
    for line in verdicts:
        console.print(line, highlight=False)
    if check and any(line.startswith("MISSED") for line in verdicts):
        sys.exit(1)


if __name__ == "__main__":
    main()
