"""What does it gain, and cost, to ask the base nets about a picture in several ways (``upsample.net.CLEAN_WAYS``)?

scikit-image's photographs, ×2, clean ones by the net for such and spoilt ones by the other; Y-PSNR over Lanczos's, in
dB, and GMSD, both against the truth, means; and the time, as a ratio to one way's in the same run.

    python scripts/bench/ways.py
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from sources import PHOTOS, SOURCES, photograph

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from training.gallery import replicating

from dino_ray.plan.geometry import Rect, Scaling
from dino_ray.report.metrics import gmsd, luma, psnr
from dino_ray.upsample import base_tile
from dino_ray.upsample.net import CLEAN_WAYS, WORN_WAYS, NetUpsampler, load_net

WAYS = ((0,), (0, 2), (0, 5), (0, 1, 2, 3), tuple(range(8)))
SCALE, BORDER = 2, 4


def main() -> None:
    nets = load_net()
    table = Table(title="Base nets, asked in several ways", title_justify="left")
    for name in ("source", "ways", "PSNR − Lanczos", "GMSD", "time"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for kind, used in (("clean", CLEAN_WAYS), ("spoilt", WORN_WAYS)):
        net = nets.suited(kind == "spoilt")
        rows = [measure(replace(net, ways=ways), kind) for ways in WAYS]
        for ways, (gain, score, seconds) in zip(WAYS, rows, strict=True):
            said = ", ".join(map(str, ways)) + (" (used)" if ways == used else "")
            table.add_row(kind, said, f"{gain:+.3f}", f"{score:.4f}", f"{seconds / rows[0][2]:.1f} ×")
    Console(width=100).print(table)


def measure(net: NetUpsampler, kind: str) -> tuple[float, float, float]:
    """Mean gain in dB, mean GMSD, and seconds in all."""
    rows = []
    for photo in PHOTOS:
        truth = photograph(photo, SCALE)
        source = SOURCES[kind](truth, SCALE)
        scaling = Scaling.from_factor(source.shape[1], source.shape[0], SCALE)
        whole = Rect(0, 0, scaling.canvas_w, scaling.canvas_h)
        start = time.perf_counter()
        made = luma(np.rint(255 * base_tile(replicating(source), whole, scaling, net)))
        seconds = time.perf_counter() - start
        size = (whole.w, whole.h)
        plain = luma(np.asarray(Image.fromarray(source).resize(size, Image.Resampling.LANCZOS)))
        goal = luma(truth)
        rows.append(
            (psnr(made, goal, BORDER) - psnr(plain, goal, BORDER), gmsd(made, goal), seconds),
        )
    gain, score, _ = np.mean(rows, axis=0)
    return float(gain), float(score), sum(row[2] for row in rows)


if __name__ == "__main__":
    main()
