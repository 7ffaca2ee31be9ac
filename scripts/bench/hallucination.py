"""Are tiles caught that show what is not in the picture, and mended?

A model that draws into its tiles, whatever it is asked, refines scikit-image's photographs, which were reduced ×2 by
PIL's bicubic filter: another image's patch, an object, another texture, a block with the colours of its place, 32 to
96 px a side, where they are seen (a change of 6 levels of 255 or more, root mean square). Caught: DINO's drift of the
tile is over the threshold, which was calibrated on drawn pictures. False alarms are counted on the same tiles as the
bundled model makes them, and as a perfect one would: the truth.

    python scripts/bench/hallucination.py --sheet hallucination.png
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from figures import Figures, verdict
from numpy.typing import NDArray
from on_tiles import Bench, benches, psnr
from PIL import Image
from plants import KINDS, SIDES, Donor, Pixels, Plant, Planting, draw
from rich.console import Console
from rich.table import Table
from sources import PHOTOS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from training.images import picture

CAUGHT_WANTED, FALSE_WANTED, LOSS_WANTED = 0.95, 0.02, 1.0
"""Share of planted tiles, share of clean tiles, dB of the planted region against the base's own."""
EACH = 6
"""Tiles per kind, side and seed."""
DRAWN = 6
"""Pictures that objects come from; drawn anew for each seed."""
ROOM = 12
"""canvas_px between a plant and its tile's border: what lies nearer is context, which is not shown."""
ENLARGED = 2


@dataclass(frozen=True)
class Case:
    """One planted tile."""

    kind: str
    side: int
    alarm: float
    action: str
    planted: float
    """PSNR of the planted region, dB: with neither verification nor consistency."""
    mended: float
    base: float


@dataclass(frozen=True)
class Run:
    """Planted tiles, and what clean ones raise."""

    cases: list[Case]
    clean: NDArray[np.float64]
    """Alarms of tiles as the bundled model makes them."""
    perfect: NDArray[np.float64]
    """Alarms of tiles as a perfect model would make them."""
    rows: list[list[Pixels]]
    """Of some cases: truth, base, planted, mended."""

    @property
    def caught(self) -> float:
        return float(np.mean([c.alarm >= 1 for c in self.cases]))

    @property
    def false(self) -> float:
        return float((self.clean >= 1).mean())

    @property
    def losses(self) -> list[float]:
        """By how much each mended region falls short of the base's own, dB."""
        return [c.base - c.mended for c in self.cases]

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))

    @property
    def short(self) -> int:
        """How many fall short by more than is wanted."""
        return sum(loss > LOSS_WANTED for loss in self.losses)


def donor_for(
    photo: str, kind: str, benches: list[Bench], drawn: list[Pixels], rng: np.random.Generator
) -> Donor:
    """Squares of other photographs and of drawn pictures; for objects, of the latter only."""
    others = [] if "object" in kind else [bench.truth for bench in benches if bench.photo != photo]

    def donor(side: int) -> Pixels:
        pool = drawn if not others or rng.random() < 0.5 else others
        source = pool[rng.integers(len(pool))]
        y, x = (int(rng.integers(length - side + 1)) for length in source.shape[:2])
        return source[y : y + side, x : x + side]

    return donor


def planted_case(bench: Bench, planting: Planting, tile: int, plant: Plant) -> tuple[Case, list[Pixels]]:
    planting.plant = plant
    try:
        raw, _ = bench.refined(tile, verify=False, consistency=0.0)
        mended, record = bench.refined(tile)
    finally:
        planting.plant = None
    truth, base = bench.truth_of(tile), bench.base(tile)
    region = plant.place
    alarm = record.alarm if record.alarm is not None else 0.0
    scores = [psnr(pixels[region], truth[region]) for pixels in (raw, mended, base)]
    case = Case(plant.kind, len(plant.pixels), alarm, record.action, *scores)
    return case, [truth, base, raw, mended]


def roc(planted: NDArray[np.float64], clean: NDArray[np.float64]) -> tuple[float, float]:
    """Area under the curve, and how many planted are caught where 2 % of the clean raise an alarm."""
    wins = (planted[:, None] > clean[None]).mean() + 0.5 * (planted[:, None] == clean[None]).mean()
    return float(wins), float((planted > np.quantile(clean, 1 - FALSE_WANTED)).mean())


def figures(run: Run) -> Figures:
    """As a document has them; ``main`` says the same in one sentence."""
    return Figures(
        tables(run),
        [
            verdict(
                run.caught >= CAUGHT_WANTED,
                f"planted: {run.caught:.1%} are caught (wanted {CAUGHT_WANTED:.0%})",
            ),
            verdict(
                run.false <= FALSE_WANTED,
                f"planted: {run.false:.1%} of clean tiles raise an alarm (wanted at most {FALSE_WANTED:.0%})",
            ),
            verdict(
                run.loss <= LOSS_WANTED,
                f"planted: mended regions are {run.loss:+.2f} dB below the base's own in the mean (wanted at most "
                f"{LOSS_WANTED:g}); {run.short} of {len(run.cases)} more than that",
            ),
        ],
    )


def tables(run: Run) -> list[Table]:
    caught = Table(title="planted, by kind and side", title_justify="left")
    for name in (
        "kind",
        "side",
        "tiles",
        "caught",
        "blended",
        "retried",
        "kept",
        "planted dB",
        "mended dB",
        "base dB",
    ):
        caught.add_column(name, justify="left" if name == "kind" else "right")
    for kind in KINDS:
        for side in (*SIDES, None):
            own = [c for c in run.cases if c.kind == kind and side in (None, c.side)]
            if own:
                caught.add_row(*_row(kind, str(side or "all"), own), end_section=side is None)
    caught.add_row(*_row("all", "", run.cases), style="bold")
    curve = Table(title="ROC: planted against clean", title_justify="left")
    for name in ("clean tiles", "tiles", "false alarms", "AUC", "caught at 2 % false"):
        curve.add_column(name, justify="left" if name == "clean tiles" else "right")
    scores = np.array([c.alarm for c in run.cases])
    for name, values in (("of the bundled model", run.clean), ("of a perfect model", run.perfect)):
        area, at = roc(scores, values)
        curve.add_row(name, str(len(values)), f"{(values >= 1).mean():.1%}", f"{area:.4f}", f"{at:.1%}")
    return [caught, curve]


def _row(kind: str, side: str, own: list[Case]) -> list[str]:
    def share(*actions: str) -> str:
        return f"{np.mean([c.action in actions for c in own]):.0%}"

    means = [f"{np.mean([getattr(c, name) for c in own]):.2f}" for name in ("planted", "mended", "base")]
    caught = f"{np.mean([c.alarm >= 1 for c in own]):.1%}"
    return [kind, side, str(len(own)), caught, share("blended"), share("retried"), share("kept"), *means]


def sheet(rows: list[list[Pixels]]) -> Image.Image:
    """Of some cases: truth, base, planted, mended."""
    lines = [np.concatenate(row, axis=1) for row in rows]
    whole = (np.clip(np.concatenate(lines, axis=0), 0, 1) * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(whole).resize((whole.shape[1] * ENLARGED, whole.shape[0] * ENLARGED), 0)


def run(photos: tuple[str, ...], seeds: int, each: int) -> Run:
    """Plant ``each`` of every kind and side, by every seed."""
    plantings: list[Planting] = []

    def model(denoiser: object) -> Planting:
        plantings.append(Planting(denoiser))
        return plantings[-1]

    cases: list[Case] = []
    rows: list[list[Pixels]] = []
    with benches(photos, model) as opened:
        lively = [_lively(bench) for bench in opened]
        clean = np.array([alarm for alarms in lively for alarm in alarms.values()])
        perfect = np.array(
            [
                _alarm_of_truth(*model_of, tile)
                for *model_of, known in zip(opened, plantings, lively, strict=True)
                for tile in known
            ]
        )
        for seed in range(seeds):
            drawn = [picture(1000 + seed, i, 512).astype(np.float32) / 255 for i in range(DRAWN)]
            for kind in KINDS:
                for side in SIDES:
                    rng = np.random.default_rng((seed, sum(kind.encode()), side))
                    wanted = len(cases) + each
                    while len(cases) < wanted:
                        which = len(cases) % len(opened)
                        bench = opened[which]
                        tile = int(rng.choice(list(lively[which])))
                        room = min(ROOM, (bench.task.grid.xs.tile - side) // 2)
                        donor = donor_for(bench.photo, kind, opened, drawn, rng)
                        plant = draw(kind, side, bench.base(tile), room, rng, donor)
                        if plant is None:  # on this tile nothing would be seen
                            continue
                        case, pictures = planted_case(bench, plantings[which], tile, plant)
                        cases.append(case)
                        if seed == 0 and (len(cases) - 1) % each == 0:
                            rows.append(pictures)
    return Run(cases, clean, perfect, rows)


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--photos", multiple=True, default=PHOTOS, help="Of scikit-image, or files.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--each", default=EACH, show_default=True, help="Tiles per kind, side, seed.", type=click.IntRange(1)
)
@click.option("--sheet", "sheet_path", type=click.Path(path_type=Path), help="Truth, base, planted, mended.")
@click.option("--check", is_flag=True, help="Exit with 1 where a figure falls short.")
def main(photos: tuple[str, ...], seeds: int, each: int, sheet_path: Path | None, check: bool) -> None:
    found = run(photos, seeds, each)
    console = Console(width=120)
    for table in tables(found):
        console.print(table)
    console.print(
        f"caught {found.caught:.1%} (wanted {CAUGHT_WANTED:.0%}) at {found.false:.1%} false alarms (at most "
        f"{FALSE_WANTED:.0%}); planted regions {found.loss:+.2f} dB below the base's own in the mean (at most "
        f"{LOSS_WANTED:g}); {found.short} of {len(found.cases)} more than that"
    )
    if sheet_path:
        sheet(found.rows).save(sheet_path)
    good = found.caught >= CAUGHT_WANTED and found.false <= FALSE_WANTED and found.loss <= LOSS_WANTED
    if check and not good:
        sys.exit(1)


def _lively(bench: Bench) -> dict[int, float]:
    """The alarm of each tile that the model is asked for: into flat ones nothing can be drawn."""
    records = [bench.refined(tile)[1] for tile in bench.tiles()]
    return {record.tile: record.alarm for record in records if record.alarm is not None}


def _alarm_of_truth(bench: Bench, planting: Planting, tile: int) -> float:
    """The alarm that a model raises which makes the truth of a tile."""
    truth = bench.truth_of(tile)
    whole = np.ones((*truth.shape[:2], 1), np.float32)
    planting.plant = Plant("truth", 0, 0, truth, whole)
    try:
        return bench.refined(tile)[1].alarm or 0.0
    finally:
        planting.plant = None


if __name__ == "__main__":
    main()
