"""What a DINO adapter of the bundled model knows of the picture whose tokens it gets: trained, and judged on others."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from figures import Figures, verdict
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train_adapter
from training.adapter import trained
from training.adapter_score import LEVELS, Row, evaluate

from dino_ray.diffusion import loading

KINDS = ("right", "other", "none")
JUDGED_FROM = 0.5
"""Noise level from which on there is something to tell: at 0.25 the bundled model starts from no noise at all."""


def scores(seed: int, steps: int) -> list[Row]:
    """One adapter, trained on painted pictures, on those that no training paints."""
    with tempfile.TemporaryDirectory() as folder:
        asked = ["--out", f"{folder}/adapter.safetensors", "--steps", str(steps), "--seed", str(seed)]
        args = train_adapter.arguments([*asked, "--work-dir", folder])
        description = loading.describe(args.model)
        course, held_out = train_adapter.plan(args, description, train_adapter.make_facts(args, description))
        train_adapter.train_adapter(course)
        return evaluate(loading.load(args.model), trained(course), held_out)


def gain(seeds: int, steps: int) -> Figures:
    """Scores of so many adapters with the right picture's tokens, another's, and none."""
    runs = [scores(seed, steps) for seed in range(seeds)]
    table = Table(title=f"adapter, {steps} steps: means of {seeds} seeds ± spread", title_justify="left")
    table.add_column("noise level")
    for figure in ("error", "cosine"):
        for kind in KINDS:
            table.add_column(f"{figure}, {kind}", justify="right")
    clear = True
    for level in LEVELS:
        cells, by_kind = [], {}
        for figure, digits in (("loss", 5), ("cosine", 4)):
            for kind in KINDS:
                values = np.array([_of(rows, level, kind, figure) for rows in runs])
                by_kind[figure, kind] = values
                cells.append(f"{values.mean():.{digits}f} ± {np.ptp(values) / 2:.1g}")
        table.add_row(f"{level:g}", *cells)
        if level >= JUDGED_FROM:
            # The worst seed with the right tokens is better than the best with others' or none.
            clear &= all(by_kind["loss", "right"].max() < by_kind["loss", k].min() for k in KINDS[1:])
            clear &= all(by_kind["cosine", "right"].min() > by_kind["cosine", k].max() for k in KINDS[1:])
    told = f"adapter, from level {JUDGED_FROM:g} on: error and cosine are better with the right tokens"
    return Figures(
        [table], [verdict(bool(clear), f"{told} than with others' or none, in the worst of {seeds} seeds")]
    )


def _of(rows: list[Row], level: float, kind: str, figure: str) -> float:
    (row,) = (row for row in rows if row.sigma == level and row.tokens == kind)
    return float(getattr(row, figure))
