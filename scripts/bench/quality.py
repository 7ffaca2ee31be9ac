"""How good is the enlargement? Photographs of scikit-image, reduced and enlarged again, beside their truth.

Each photograph is reduced by PIL's bicubic filter. All scores are of BT.601 luma: PSNR without 4 px of
border, SSIM of Wang et al. 2004 (Gaussian window of sigma 1.5), GMSD of Xue et al. 2014. "base net" and
"bundled" are the whole program; "bundled" by its default options, "base net" without Ray.

    python scripts/bench/quality.py --json quality.json --sheet quality.png
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from skimage import data
from skimage.metrics import structural_similarity

from dino_ray.report.metrics import PEAK, gmsd, luma, psnr

Pixels = NDArray[np.uint8]
Method = Callable[[Pixels, int], Pixels]

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
BORDER = 4
BACK_PROJECTIONS = 5
REFERENCE = "Lanczos"

CROP = 112
"""Truth px of a crop on the sheet: few enough to tell pixels apart, enough to show a thing."""
ENLARGED = 2
"""Sheet px per truth px."""
GAP, CAPTION = 8, 26


@dataclass(frozen=True)
class Score:
    photo: str
    method: str
    psnr: float
    ssim: float
    gmsd: float
    seconds: float


def resized(image: NDArray[Any], size: tuple[int, int], filter_: Image.Resampling) -> NDArray[np.float32]:
    """Float RGB, each channel through PIL's float mode, which neither rounds nor clips."""
    planes = [Image.fromarray(image[..., c].astype(np.float32)).resize(size, filter_) for c in range(3)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def to_bytes(image: NDArray[np.float32]) -> Pixels:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def pil(filter_: Image.Resampling) -> Method:
    def enlarge(small: Pixels, scale: int) -> Pixels:
        size = (small.shape[1] * scale, small.shape[0] * scale)
        return np.asarray(Image.fromarray(small).resize(size, filter_))

    return enlarge


def back_projected(small: Pixels, scale: int) -> Pixels:
    """Bicubic, corrected until its own reduction is the source (Irani and Peleg 1991)."""
    height, width = small.shape[:2]
    size = (width * scale, height * scale)
    large = resized(small, size, Image.Resampling.BICUBIC)
    for _ in range(BACK_PROJECTIONS):
        missing = small - resized(large, (width, height), Image.Resampling.BICUBIC)
        large = large + resized(missing, size, Image.Resampling.BICUBIC)
    return to_bytes(large)


def whole_program(**options: Any) -> Method:
    def enlarge(small: Pixels, scale: int) -> Pixels:
        import dino_ray

        image, _ = dino_ray.upscale(small, scale=scale, **options)
        return np.asarray(image)

    return enlarge


METHODS: dict[str, Method] = {
    "bicubic": pil(Image.Resampling.BICUBIC),
    REFERENCE: pil(Image.Resampling.LANCZOS),
    "back-projection": back_projected,
    "base net": whole_program(model="none", base="net", address="none"),
    "bundled": whole_program(),
}


def photograph(name: str, scale: int) -> Pixels:
    """Truth, cropped at the right and bottom to a multiple of ``scale``."""
    truth = (
        np.asarray(Image.open(name).convert("RGB"))
        if Path(name).is_file()
        else getattr(data, name)()[..., :3]
    )
    height, width = (side // scale * scale for side in truth.shape[:2])
    return np.ascontiguousarray(truth[:height, :width])


def reduced(truth: Pixels, scale: int) -> Pixels:
    size = (truth.shape[1] // scale, truth.shape[0] // scale)
    return np.asarray(Image.fromarray(truth).resize(size, Image.Resampling.BICUBIC))


def score(photo: str, method: str, result: Pixels, truth: Pixels, seconds: float) -> Score:
    if result.shape != truth.shape:
        raise click.ClickException(f"{method} of {photo} has shape {result.shape}, not {truth.shape}")
    a, b = luma(result), luma(truth)
    ssim = structural_similarity(
        a, b, data_range=PEAK, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return Score(photo, method, psnr(a, b, BORDER), float(ssim), gmsd(a, b), seconds)


def means(scores: list[Score]) -> list[Score]:
    """One row per method: the mean over photographs."""
    rows = []
    for method in dict.fromkeys(s.method for s in scores):
        own = [s for s in scores if s.method == method]
        average = [float(np.mean([getattr(s, f) for s in own])) for f in ("psnr", "ssim", "gmsd", "seconds")]
        rows.append(Score("mean", method, *average))
    return rows


def table(scores: list[Score], scale: int) -> Table:
    out = Table(title=f"×{scale}, against the truth", title_justify="left")
    for name in ("photo", "method"):
        out.add_column(name)
    for name in ("PSNR dB ↑", f"− {REFERENCE}", "SSIM ↑", "GMSD ↓", "seconds"):
        out.add_column(name, justify="right")
    for photo in dict.fromkeys(s.photo for s in scores):
        own = [s for s in scores if s.photo == photo]
        level = next((s.psnr for s in own if s.method == REFERENCE), float("nan"))
        best = max(s.psnr for s in own)
        for i, s in enumerate(own):
            cells = (
                f"{s.psnr:.2f}",
                "" if np.isnan(level) else f"{s.psnr - level:+.2f}",
                f"{s.ssim:.4f}",
                f"{s.gmsd:.4f}",
                f"{s.seconds:.1f}",
            )
            out.add_row(
                photo if i == 0 else "",
                s.method,
                *cells,
                style="bold" if s.psnr == best else None,
                end_section=i == len(own) - 1,
            )
    return out


def busiest(truth: Pixels, side: int) -> tuple[int, int]:
    """Left and top of the window of ``side`` px with the most gradient, on a lattice of quarter windows."""
    energy = np.hypot(*np.gradient(luma(truth)))
    step = side // 4
    windows = {
        (x, y): float(energy[y : y + side, x : x + side].sum())
        for y in range(0, truth.shape[0] - side + 1, step)
        for x in range(0, truth.shape[1] - side + 1, step)
    }
    return max(windows, key=lambda place: windows[place])


def sheet(results: dict[str, dict[str, Pixels]], scale: int) -> Image.Image:
    """A row per photograph: source, methods and truth, the same crop of each."""
    columns = list(next(iter(results.values())))
    cell = CROP * ENLARGED
    width = GAP + len(columns) * (cell + GAP)
    out = Image.new("RGB", (width, CAPTION + len(results) * (cell + GAP)), "white")
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(15)
    for i, name in enumerate(columns):
        draw.text((GAP + i * (cell + GAP), 5), name, fill="black", font=font)
    for j, images in enumerate(results.values()):
        left, top = busiest(images["truth"], CROP)
        for i, (name, image) in enumerate(images.items()):
            per = scale if name == "source" else 1
            box = (left / per, top / per, (left + CROP) / per, (top + CROP) / per)
            crop = Image.fromarray(image).resize((cell, cell), Image.Resampling.NEAREST, box=box)
            out.paste(crop, (GAP + i * (cell + GAP), CAPTION + j * (cell + GAP)))
    return out


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--photos", multiple=True, help="Of scikit-image, or files; all four unless named.")
@click.option("--methods", multiple=True, type=click.Choice(list(METHODS)), help="All unless named.")
@click.option("--scale", default=2, show_default=True, type=click.IntRange(2, 8))
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the scores here.")
@click.option("--sheet", "sheet_path", type=click.Path(path_type=Path), help="Write crops side by side here.")
def main(
    photos: tuple[str, ...],
    methods: tuple[str, ...],
    scale: int,
    json_path: Path | None,
    sheet_path: Path | None,
) -> None:
    scores: list[Score] = []
    results: dict[str, dict[str, Pixels]] = {}
    for photo in photos or PHOTOS:
        if photo not in PHOTOS and not Path(photo).is_file():
            raise click.BadParameter(f"{photo}: no such file, nor one of {', '.join(PHOTOS)}")
        truth = photograph(photo, scale)
        small = reduced(truth, scale)
        images = {"source": small}
        for method in methods or METHODS:
            start = time.perf_counter()
            images[method] = METHODS[method](small, scale)
            scores.append(score(photo, method, images[method], truth, time.perf_counter() - start))
        results[photo] = images | {"truth": truth}
    averages = means(scores)
    Console(width=100).print(table(scores + averages, scale))
    if json_path:
        report = {"scale": scale, "border": BORDER, "scores": [asdict(s) for s in scores + averages]}
        json_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if sheet_path:
        shown = ("source", REFERENCE, "base net", "bundled", "truth")
        sheet({p: {n: images[n] for n in shown if n in images} for p, images in results.items()}, scale).save(
            sheet_path
        )


if __name__ == "__main__":
    main()
