"""From which noise, and which JPEG quality, is the net for worn sources the better one? And what is measured there?

Painted pictures that no training saw, reduced ×2 by PIL's bicubic filter; the difference of the nets' PSNR over RGB
against the truth, in dB, in the mean and over pictures; medians of noise and blocks as measured, in levels of 255.

    python scripts/bench/worn.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sources import Pixels, jpeg, noisy, reduced

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from training.gallery import replicating
from training.images import picture

from dino_ray.fidelity.grain import Grain, measure_grain
from dino_ray.plan.geometry import Rect, Scaling
from dino_ray.upsample import base_tile, unit_range
from dino_ray.upsample.net import NetUpsampler, load_net

SEED, SIDE, SCALE = 77, 384, 2
NOISES = (0.5, 1, 1.5, 2, 3, 5)
QUALITIES = (98, 96, 94, 92, 90, 85, 75)


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--pictures", default=8, show_default=True)
def main(pictures: int) -> None:
    nets = load_net()
    truths = [picture(SEED, index, SIDE) for index in range(pictures)]
    table = Table(title="The net for worn sources against that for clean ones", title_justify="left")
    for name in ("source", "dB", "from", "to", "noise", "blocks", "worn"):
        table.add_column(name, justify="left" if name == "source" else "right")
    kinds = [
        ("clean", 0.0, 0),
        *((f"noise {n:g}", n, 0) for n in NOISES),
        *((f"JPEG {q}", 0.0, q) for q in QUALITIES),
    ]
    for name, noise, quality in kinds:
        gains, grains = [], list[Grain]()
        for truth in truths:
            source = noisy(reduced(truth, SCALE), noise)
            source = jpeg(source, quality) if quality else source
            gains.append(
                quality_of(nets.suited(True), source, truth) - quality_of(nets.suited(False), source, truth)
            )
            grains.append(measure_grain(replicating(unit_range(source)), *source.shape[1::-1]))
        levels = [
            f"{255 * np.median([getattr(g, kind) for g in grains]):.1f}" for kind in ("noise", "blocks")
        ]
        worn = f"{sum(grain.worn for grain in grains)} of {pictures}"
        table.add_row(
            name, f"{np.mean(gains):+.2f}", f"{min(gains):+.2f}", f"{max(gains):+.2f}", *levels, worn
        )
    Console(width=100).print(table)


def quality_of(net: NetUpsampler, source: Pixels, truth: Pixels) -> float:
    """PSNR over RGB, dB."""
    scaling = Scaling.from_factor(source.shape[1], source.shape[0], SCALE)
    whole = Rect(0, 0, scaling.canvas_w, scaling.canvas_h)
    error: NDArray[np.float64] = base_tile(replicating(source), whole, scaling, net) - truth / 255
    return float(-10 * np.log10(np.mean(error[8:-8, 8:-8] ** 2)))


if __name__ == "__main__":
    main()
