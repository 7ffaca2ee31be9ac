"""What does each control of faithfulness do? The bundled model on scikit-image's photographs, with and without.

Photographs are reduced ×2 by PIL's bicubic filter. Cosines are of DINO's tokens against the base's, on crops that
guidance does not see; PSNR is against the truth, over RGB.

    python scripts/bench/dino_ablation.py
    python scripts/bench/dino_ablation.py --markdown docs/dino-figures.md  # hallucination.py's figures, too
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import adapter_gain
import click
import hallucination
import numpy as np
from figures import Figures, Section, document, missed, verdict
from misbehaving import CAST, CORRUPTION, Casting, Corrupted
from on_tiles import Bench, Pixels, benches, psnr
from rich.console import Console
from rich.table import Table
from sources import PHOTOS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STRENGTHS = (0.0, 0.25, 0.5, 1.0)
ALONE = {"adaptive": 0.0, "verify": False}
"""Of a task: nothing but what is looked at."""


@dataclass(frozen=True)
class Scope:
    """On how much something is measured."""

    photos: tuple[str, ...]
    every: int
    """Of the tiles, one in so many."""
    seeds: int
    adapter_steps: int
    """Of training an adapter."""


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


def clean_start(scope: Scope) -> Figures:
    """Guidance on a model that is faithful already.

    It has nothing to gain there, and must not harm; nor may looking for what is to be done cost much.
    """
    out = Table(title="clean start: guidance on against off", title_justify="left")
    columns(out, "photo", "PSNR off", "PSNR on", "change dB", "cosine off", "cosine on", "time on / off")
    changes, ratios = [], []
    with benches(scope.photos) as opened:
        for bench in opened:
            measure([bench], 4, {})  # warm
            off = measure([bench], scope.every, {"dino_strength": 0.0})
            on = measure([bench], scope.every, {"dino_strength": 1.0})
            changes.append(on[0] - off[0])
            ratios.append(on[2] / off[2])
            out.add_row(
                bench.photo, f"{off[0]:.3f}", f"{on[0]:.3f}", f"{changes[-1]:+.4f}", f"{off[1]:.5f}",
                f"{on[1]:.5f}", f"{ratios[-1]:.2f}",
            )  # fmt: skip
    worst, ratio = max(map(abs, changes)), float(np.mean(ratios))
    verdicts = [
        verdict(worst < 0.05, f"clean start: PSNR changes by {worst:.4f} dB at most (wanted below 0.05)"),
        verdict(ratio < 1.6, f"clean start: {ratio:.2f} times the time (wanted below 1.6)"),
    ]
    return Figures([out], verdicts)


def corrupted_start(scope: Scope) -> Figures:
    """Guidance on a model that starts from noise it was not told of.

    What is left of the noise stands for what a model makes up. Strength 0 is the model alone.
    """
    out = Table(
        title=f"corrupted start, noise {CORRUPTION}: mean of {scope.seeds} seeds ± spread",
        title_justify="left",
    )
    columns(out, "consistency", "strength", "PSNR dB", "cosine", "time / off")
    means: dict[tuple[float, float], np.ndarray] = {}
    with benches(scope.photos, Corrupted) as opened:
        for consistency in (0.0, 1.0):
            for strength in STRENGTHS:
                task = {**ALONE, "consistency": consistency, "dino_strength": strength}
                seeded = [{**task, "seed": seed} for seed in range(scope.seeds)]
                runs = np.array([measure(opened, scope.every, each) for each in seeded])
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
    verdicts = [
        verdict(rising, "corrupted start: PSNR and cosine rise with every strength"),
        verdict(gain >= 1, f"corrupted start, consistency off: {gain:+.2f} dB at strength 1 (wanted +1)"),
        verdict(
            beside >= 0, f"corrupted start, consistency on: {beside:+.3f} dB at strength 1 (no loss wanted)"
        ),
    ]
    return Figures([out], verdicts)


def colour(scope: Scope) -> Figures:
    """The colour lock on a model that gives each tile a cast of its own.

    A step is by how much more than without casts the mean colours of two neighbours differ where they overlap.
    """
    out = Table(
        title=f"a cast of up to {CAST} levels per tile: steps left, levels of 255",
        title_justify="left",
    )
    columns(out, "--color-lock", "consistency", "mean step between tiles", "largest")
    left = {}
    with (
        benches(scope.photos, Casting, dino_strength=0.0) as cast,
        benches(scope.photos, dino_strength=0.0) as plain,
    ):
        for lock in ("off", "adain", "wavelet"):
            for consistency in (0.0, 1.0):
                task = {**ALONE, "color_lock": lock, "consistency": consistency}
                steps = [
                    step
                    for a, b in zip(cast, plain, strict=True)
                    for step in steps_between(a, b, scope.every, task)
                ]
                left[lock, consistency] = max(steps)
                out.add_row(
                    lock, "on" if consistency else "off", f"{np.mean(steps):.3f}", f"{max(steps):.3f}",
                    end_section=consistency == 1,
                )  # fmt: skip
    default = max(left["wavelet", 0.0], left["wavelet", 1.0])
    told = f"casts: a step of {default:.3f} levels is left at most (wanted below 0.5)"
    return Figures([out], [verdict(default < 0.5, told)])


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


def adapter(scope: Scope) -> Figures:
    """A DINO adapter on the bundled model, with the right picture's tokens, another's, and none.

    Each seed trains an adapter of its own on painted pictures; all are judged on the same ones, which none has seen,
    after one step from the noise level. Error: mean absolute, of the pixels. Cosine: of DINO's tokens of the result
    with the truth's. [dino-adapter.md](dino-adapter.md) has the figures of a longer training.
    """
    return adapter_gain.gain(scope.seeds, scope.adapter_steps) if scope.adapter_steps else Figures([], [])


def planted(scope: Scope) -> Figures:
    """Hallucinations that are planted, caught and mended.

    Another image's patch, an object, another texture or a block with the colours of its place, where a change is seen,
    is drawn into a tile, whatever the model is asked. Caught: the drift of the tile raises an alarm. The three columns
    of dB are of the planted region against the truth, before and after, and of the base there.
    """
    each = max(1, hallucination.EACH * FULL_EVERY // scope.every)
    return hallucination.figures(hallucination.run(scope.photos, scope.seeds, each))


FULL_EVERY = 3
"""Of the tiles of a full run, one in so many is measured."""

ADAPTER_STEPS = 200
"""Enough to tell right tokens from wrong ones: minutes per seed."""

MeasureSection = Callable[[Scope], Figures]

ON_THE_TERMINAL: tuple[MeasureSection, ...] = (clean_start, corrupted_start, colour, adapter)
IN_THE_DOCUMENT: tuple[MeasureSection, ...] = (*ON_THE_TERMINAL, planted)
"""A section's docstring is its heading and introduction there."""

INTRODUCTION = (
    "What each control of [faithfulness](dino.md) does to the bundled model, on the photographs {photos}, which were "
    "reduced ×2 by PIL's bicubic filter: one tile in {every}, seeds: {seeds}. Cosines are of DINO's tokens against the "
    "base's, on crops that guidance does not see; PSNR is against the truth, over RGB. The bundled DINO judges."
)


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--photos", multiple=True, default=PHOTOS, help="Of scikit-image, or files.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--every",
    default=FULL_EVERY,
    show_default=True,
    help="Of the tiles, one in so many.",
    type=click.IntRange(1),
)
@click.option(
    "--adapter-steps",
    default=ADAPTER_STEPS,
    show_default=True,
    help="How long each seed's adapter is trained; 0 leaves adapters out.",
    type=click.IntRange(0),
)
@click.option(
    "--markdown",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all figures here, those of hallucination.py too.",
)
@click.option("--check", is_flag=True, help="Exit with 1 where a figure falls short.")
def main(
    photos: tuple[str, ...], seeds: int, every: int, adapter_steps: int, markdown: Path | None, check: bool
) -> None:
    console = Console(width=140)
    scope = Scope(photos, every, seeds, adapter_steps)
    sections = []
    for measured in IN_THE_DOCUMENT if markdown else ON_THE_TERMINAL:
        sections.append(Section.of(measured, measured(scope)))
        for table in sections[-1].figures.tables:
            console.print(table)
    verdicts = [line for section in sections for line in section.figures.verdicts]
    for line in verdicts:
        console.print(line, highlight=False)
    if markdown:
        names = ", ".join(Path(photo).stem for photo in photos)
        introduction = INTRODUCTION.format(photos=names, every=every, seeds=seeds)
        command = shlex.join(["python", "scripts/bench/dino_ablation.py", *sys.argv[1:]])
        markdown.write_text(document("Figures of faithfulness", introduction, command, sections))
    if check and missed(verdicts):
        sys.exit(1)


if __name__ == "__main__":
    main()
