"""Draw the pictures of docs/dino.md, from a landscape that make_sample.py paints.

The painting is reduced ×2 and enlarged again by the bundled model, or by one that misbehaves as the benches have it:

    python scripts/make_dino_pictures.py docs/dino
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "scripts" / "bench")]

from dino_pictures.scene import (  # noqa: E402
    BOAT,
    FAINT,
    PLANNED,
    crop,
    deep,
    digit,
    drift_of,
    opened,
    planes,
    planting,
    tile_over,
    whole,
)
from dino_pictures.sheets import THUMB, Panel, enlarged, glowing, halved, sheet, thumb  # noqa: E402
from misbehaving import Casting, Corrupted  # noqa: E402
from on_tiles import psnr  # noqa: E402

from dino_ray.dino.structure import change_map  # noqa: E402
from dino_ray.fidelity.colour import lock_colour  # noqa: E402
from dino_ray.fidelity.summary import Ledger, summary  # noqa: E402
from dino_ray.report.drawing import MARGIN, TEXT_PX  # noqa: E402
from dino_ray.report.heatmap import heat_map  # noqa: E402
from dino_ray.report.worst import COUNT as WORST_COUNT  # noqa: E402
from dino_ray.report.worst import worst_tiles  # noqa: E402

QUALITY = 85
"""Of JPEG, with all of its colour: pictures that load at once, and whose pixels can still be told apart."""
DIGIT_SHOWN = 32
"""canvas_px of a crop's side; twice as many of what is larger."""
UNSEEN_PX = 256
"""Of a panel."""
WORST_SHOWN = 4
"""Of the worst tiles: the others look alike."""
ALONE = {"adaptive": 0.0, "verify": False, "consistency": 0.0, "color_lock": "off", "dino_strength": 0.0}
"""Of a task: the model, and nothing after it."""


def change() -> Image.Image:
    """Where how much may change."""
    with opened() as bench:
        assert bench.guide.structure is not None
        info, (width, height) = bench.task.source.info, THUMB
        box = (0.0, 0.0, float(info.width), float(info.height))
        held = 1 - change_map(bench.guide.structure, box, height, width, 1.0)
    shown = thumb(bench.truth)
    panels = [("the picture", shown), ("held where it glows", glowing(shown / 255, 2 * held))]
    return sheet([panels])


def guidance() -> Image.Image:
    """A model that makes things up, and what guidance makes of that."""
    above: list[Panel] = []
    below: list[Panel] = []
    with opened(Corrupted) as bench:
        tile = tile_over(bench, BOAT)
        truth, base = bench.truth_of(tile), bench.base(tile)
        tries = {f"strength {s:g}": {**ALONE, "dino_strength": s} for s in (0.0, 0.25, 0.5, 1.0)}
        for name, task in tries.items():
            pixels, _ = bench.refined(tile, **task)
            cosine, drift = drift_of(bench, tile, pixels)
            above.append((f"{name}: {psnr(pixels, truth):.1f} dB", crop(pixels)))
            below.append((f"drift; mean cosine {cosine:.3f}", crop(glowing(pixels, drift))))
    there = ("the base", crop(base)), ("the truth", crop(truth))
    return sheet([[there[0], *above], [there[1], *below]], 2)


def consistency() -> Image.Image:
    """The same model, held to the source."""
    panels: list[Panel] = []
    with opened(Corrupted) as bench:
        tile = tile_over(bench, BOAT)
        source = halved(bench.truth_of(tile))
        for value in (0.0, 1.0):
            pixels, _ = bench.refined(tile, **{**ALONE, "consistency": value})
            error = 0.5 + 4 * (halved(pixels) - source).repeat(2, 0).repeat(2, 1)
            told = psnr(pixels, bench.truth_of(tile))
            panels.append((f"--consistency {value:g}: {told:.1f} dB", crop(pixels)))
            panels.append(("reduced, less source", crop(error)))
    return sheet([panels], 2)


class StrongCast(Casting):
    """So that it is seen in a small picture."""

    cast = 40


def colours() -> Image.Image:
    """Casts, and locks."""
    with opened(StrongCast) as bench:
        made = {tile: bench.refined(tile, **ALONE)[0] for tile in range(bench.task.grid.n_tiles)}
        bases = {tile: bench.base(tile) for tile in made}
        panels = []
        for lock in ("off", "adain", "wavelet"):
            locked = {
                tile: lock_colour(planes(pixels), planes(bases[tile]), lock).permute(1, 2, 0).numpy()  # type: ignore[arg-type]
                for tile, pixels in made.items()
            }
            result = whole(bench, {tile: deep(pixels) for tile, pixels in locked.items()})
            panels.append((f"--color-lock {lock}", thumb(result)))
    return sheet([panels])


def planted() -> Image.Image:
    """Two tiles: base, drawn, drift, mended."""
    rows = []
    with planting() as (bench, model):
        for each in PLANNED[:2]:
            tile = tile_over(bench, each.corner)
            model.plant = each.plant(bench.task.grid.xs.tile)
            drawn, _ = bench.refined(tile, verify=False, consistency=0.0)
            mended, record = bench.refined(tile)
            _, drift = drift_of(bench, tile, drawn)
            rows.append(
                [
                    ("the base", bench.base(tile)),
                    ("what the model drew", drawn),
                    ("what DINO makes of it", glowing(drawn, drift)),
                    (f"the result: {record.action}", mended),
                ]
            )
    return sheet(rows, 2)


def unseen() -> Image.Image:
    """What raises no alarm: a digit that reads as another one, and a ghost of some grass in dark water."""
    rows = []
    with planting() as (bench, model):
        for corner, side, plant in (
            (BOAT, DIGIT_SHOWN, digit),
            (PLANNED[FAINT].corner, 2 * DIGIT_SHOWN, lambda tile: PLANNED[FAINT].plant(tile.w)),
        ):
            tile = tile_over(bench, corner)
            rect = bench.task.grid.tile_rect(tile)
            model.plant = made = plant(rect)
            drawn, _ = bench.refined(tile, verify=False, consistency=0.0)
            result, record = bench.refined(tile)
            level = drift_of(bench, tile, drawn)[1]
            panels = {
                "the base": bench.base(tile),
                "what the model drew": drawn,
                f"alarm {record.alarm:.2f} of 1": glowing(drawn, level),
                f"the result: {record.action}": result,
            }
            around = (made.x + len(made.pixels) // 2, made.y + len(made.pixels) // 2)
            times = UNSEEN_PX // side
            rows.append([(name, enlarged(crop(p, side, around), times)) for name, p in panels.items()])
    return sheet(rows)


def report() -> dict[str, Image.Image]:
    """A whole run of a model that draws into some tiles: its heat map and its worst tiles.

    Nothing is brought back to its source, or little of what is below the alarm would be left to be seen.
    """
    with planting() as (bench, model):
        grid, canvas = bench.task.grid, bench.task.canvas
        plants = {tile_over(bench, each.corner): each for each in PLANNED}
        ledger, tiles = Ledger(grid.n_tiles), {}
        for tile in range(grid.n_tiles):
            model.plant = plants[tile].plant(grid.xs.tile) if tile in plants else None
            pixels, record = bench.refined(tile, consistency=0.0)
            tiles[tile] = deep(pixels)
            ledger.note(record)
        whole(bench, tiles)
        heat = heat_map(canvas, grid, ledger, summary(ledger, grid))
        worst = worst_tiles(bench.task.source, bench.task.scaling, canvas, grid, ledger)
    assert worst is not None
    heading = 2 * MARGIN + TEXT_PX
    row = (worst.height - heading) // WORST_COUNT
    return {"heat-map": heat, "worst-tiles": worst.crop((0, 0, worst.width, heading + WORST_SHOWN * row))}


PICTURES: Mapping[str, Callable[[], Image.Image | dict[str, Image.Image]]] = {
    "change-map": change,
    "guidance": guidance,
    "consistency": consistency,
    "colour-lock": colours,
    "planted": planted,
    "unseen": unseen,
    "report": report,
}


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--only", multiple=True, type=click.Choice(list(PICTURES)), help="All unless named.")
def main(folder: Path, only: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for name in only or PICTURES:
        made = PICTURES[name]()
        for stem, image in (made if isinstance(made, dict) else {name: made}).items():
            path = folder / f"{stem}.jpg"
            image.save(path, quality=QUALITY, subsampling=0, optimize=True)
            print(f"{path}: {image.width} × {image.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
