"""The stages' logs as curves, in one SVG: ``python scripts/training/curves.py build/training docs/training.svg``."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

CURVES = (
    *(("base", "l1"), ("base", "squares"), ("polish", "l1")),
    *(("clean", "l1"), ("clean", "squares"), ("worn", "l1"), ("worn", "squares")),
    *(("dino", "patch"), ("flux", "loss")),
)
"""Stage and what of its log is drawn; a stage without a log is left out."""
WIDTH, HEIGHT, GAP = 240, 130, 34
IN_A_ROW = 3
SMOOTHING = 0.15
"""Share of the newest value in a running mean: each is itself a mean over 50 steps."""


def points(log: Path, name: str) -> list[tuple[int, float]]:
    """(step, value), smoothed; of steps that were done twice, after a stop, the last."""
    found = {}
    for line in log.read_text().splitlines():
        record = json.loads(line)
        if name in record and "step" in record:
            found[record["step"]] = record[name]
    smooth, mean = [], None
    for step, value in sorted(found.items()):
        mean = value if mean is None else mean + SMOOTHING * (value - mean)
        smooth.append((step, mean))
    return smooth


def panel(title: str, curve: list[tuple[int, float]], left: int, top: int) -> str:
    """One curve in its frame, the value on a logarithmic axis."""
    values = [math.log(value) for _, value in curve]
    low, high, last = min(values), max(values), curve[-1][0]
    places = (
        (left + WIDTH * step / last, top + HEIGHT * (high - value) / max(high - low, 1e-9))
        for (step, _), value in zip(curve, values, strict=True)
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return (
        f'<text x="{left}" y="{top - 10}">{title}: {math.exp(values[0]):.3g} to {math.exp(values[-1]):.3g},'
        f" {last} steps</text>"
        f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>'
        f'<polyline points="{line}" fill="none" stroke="#06c"/>'
    )


def main(folder: Path, out: Path) -> None:
    drawn: list[str] = []
    for stage, name in CURVES:
        log = folder / f"{stage}.log.jsonl"
        if log.exists() and len(curve := points(log, name)) > 1:
            row, column = divmod(len(drawn), IN_A_ROW)
            place = GAP + column * (WIDTH + GAP), GAP + row * (HEIGHT + GAP)
            drawn.append(panel(f"{stage}, {name}", curve, *place))
    columns, rows = min(len(drawn), IN_A_ROW), math.ceil(len(drawn) / IN_A_ROW)
    size = f'width="{GAP + columns * (WIDTH + GAP)}" height="{GAP + rows * (HEIGHT + GAP)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    out.write_text(f'{head}<rect width="100%" height="100%" fill="white"/>{"".join(drawn)}</svg>\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
