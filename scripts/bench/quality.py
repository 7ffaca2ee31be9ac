"""How good is the enlargement? Photographs of scikit-image, reduced and enlarged again, beside their truth.

Each photograph is reduced by PIL's bicubic filter; "spoilt" ones are blurred before (0.8 px of the truth), and get
noise (3 levels of 255) and JPEG 80 (colours at half size) after it. All scores are of BT.601 luma: PSNR without 4 px of
border, SSIM of Wang et al. 2004 (Gaussian window of sigma 1.5), GMSD of Xue et al. 2014. "base net" and
"bundled" are the whole program; "bundled" by its default options, "base net" without Ray.

With --all: ×2, ×4 and spoilt ×2; what --denoise draws; how well DINO finds swapped patches, which takes minutes; what
it weighs.

    python scripts/bench/quality.py --all --json quality.json --sheet quality.png
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from crops import sheet
from figures import verdict
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage.metrics import structural_similarity
from sources import PHOTOS, SOURCES, Pixels, photograph, reduced

from dino_ray.report.metrics import PEAK, gmsd, luma, psnr

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

Method = Callable[[Pixels, int], Pixels]

BORDER = 4
BACK_PROJECTIONS = 5
REFERENCE = "Lanczos"
SHOWN = ("source", REFERENCE, "base net", "bundled", "truth")
"""On the sheet of crops; "bundled" is the base net with FLUX."""

PSNR_SPARED = 0.05
"""dB that the small FLUX may lose for the detail that it draws."""
DENOISES = (0.2, 0.25, 0.5)
MORE_DETAIL = 0.02
"""Of the truth's own fine detail: what can be seen when the two are looked at in turn."""
CONSISTENT = 45.0
"""dB, RGB: errors of about 8 bits' rounding, had every pixel an error of one and a half levels."""
SWAP_SEED = 1
AUC_WANTED = {"from anywhere": 0.97, "with neighbours": 0.90}
"""Gross changes and subtle ones."""
WEIGHTS_MB = 20


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


def table(scores: list[Score], scale: int, source: str) -> Table:
    out = Table(title=f"×{scale} from {source} sources, against the truth", title_justify="left")
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


def compare(
    photos: tuple[str, ...], methods: tuple[str, ...], scale: int, source: str
) -> tuple[list[Score], dict[str, dict[str, Pixels]]]:
    """Scores, means last, and the pictures of each photograph: source, results, truth."""
    scores: list[Score] = []
    results: dict[str, dict[str, Pixels]] = {}
    for photo in photos:
        truth = photograph(photo, scale)
        small = SOURCES[source](truth, scale)
        images = {"source": small}
        for method in methods:
            start = time.perf_counter()
            images[method] = METHODS[method](small, scale)
            scores.append(score(photo, method, images[method], truth, time.perf_counter() - start))
        results[photo] = images | {"truth": truth}
    return scores + means(scores), results


def invention(photos: tuple[str, ...]) -> tuple[Table, list[str]]:
    """What the small FLUX draws at several noise levels: detail and faithfulness of the whole program's results."""
    table = Table(title="What --denoise draws, ×2, means over the photographs", title_justify="left")
    for name in ("denoise", "detail", "changed", "reduced dB", "PSNR dB", "GMSD"):
        table.add_column(name, justify="right")
    found: dict[float, NDArray[np.float64]] = {}
    for denoise in DENOISES:
        rows = []
        for photo in photos:
            truth = photograph(photo, 2)
            small = reduced(truth, 2)
            made = whole_program(denoise=denoise)(small, 2)
            base = METHODS["base net"](small, 2)
            a, b = luma(made), luma(truth)
            rows.append(
                [
                    float(detail(a) / detail(b)),
                    float(np.abs(a - luma(base)).mean()),
                    psnr(reduced(made, 2).astype(np.float64), small, BORDER),
                    psnr(a, b, BORDER),
                    gmsd(a, b),
                ]
            )
        found[denoise] = np.mean(rows, axis=0)
        cells = (f"{v:.{digits}f}" for v, digits in zip(found[denoise], (3, 2, 2, 2, 4), strict=True))
        table.add_row(f"{denoise:g}", *cells)
    timid, bold = found[DENOISES[0]], found[DENOISES[-1]]
    return table, [
        verdict(bold[0] > timid[0] + MORE_DETAIL, f"denoise {DENOISES[-1]} draws more than {DENOISES[0]}"),
        verdict(bold[2] > CONSISTENT, f"reduced again, {bold[2]:.1f} dB from the source (> {CONSISTENT:g})"),
    ]


def detail(plane: NDArray[np.float64]) -> float:
    """Standard deviation of what of a plane is finer than about 4 px: what reducing by two leaves little of."""
    fy, fx = np.fft.fftfreq(plane.shape[0])[:, None], np.fft.rfftfreq(plane.shape[1])[None, :]
    high = np.fft.rfft2(plane) * (np.maximum(np.abs(fy), np.abs(fx)) > 0.25)
    return float(np.std(np.fft.irfft2(high, s=plane.shape)))


def swaps() -> tuple[Table, list[str]]:
    """Area under the ROC curve for patches that changed places, found by DINO, by random weights, by plain pixels."""
    from training.selfdistil import PATCH, untrained
    from training.swaps import raw_pixels, swap_auc

    from dino_ray.dino.loading import load

    table = Table(title="Swapped patches of unseen drawn pictures, AUC", title_justify="left")
    subjects = {"DINO": load("bundled"), "random weights": untrained(SWAP_SEED), "pixels": raw_pixels(PATCH)}
    for name in ("swapped", *subjects):
        table.add_column(name, justify="left" if name == "swapped" else "right")
    verdicts = []
    for kind, wanted in AUC_WANTED.items():
        found = [
            swap_auc(each, PATCH, SWAP_SEED, neighbours=kind == "with neighbours")
            for each in subjects.values()
        ]
        table.add_row(kind, *(f"{auc:.3f}" for auc in found))
        verdicts.append(verdict(found[0] >= wanted, f"DINO finds patches swapped {kind}: AUC {found[0]:.3f}"))
    return table, verdicts


def judged(x2: list[Score], x4: list[Score], spoilt: list[Score]) -> list[str]:
    """What was wanted of the default options, and of the small FLUX over the base net."""

    def rows(scores: list[Score], method: str) -> dict[str, Score]:
        return {s.photo: s for s in scores if s.method == method}

    def gain(scores: list[Score]) -> float:
        return rows(scores, "bundled")["mean"].psnr - rows(scores, REFERENCE)["mean"].psnr

    made, plain, base = (rows(x2, method) for method in ("bundled", REFERENCE, "base net"))
    better = all(
        m.psnr > p.psnr and m.ssim > p.ssim and m.gmsd < p.gmsd
        for m, p in ((made[photo], plain[photo]) for photo in made)
    )
    drawn = all(made[p].gmsd < base[p].gmsd and made[p].psnr >= base[p].psnr - PSNR_SPARED for p in made)
    lines = [
        verdict(
            found >= wanted, f"{name}: {found:+.2f} dB over {REFERENCE} in the mean, {wanted:+.1f} wanted"
        )
        for name, found, wanted in (
            ("×2", gain(x2), 2.2),
            ("×4", gain(x4), 0.9),
            ("spoilt ×2", gain(spoilt), 0.8),
        )
    ]
    return [
        *lines,
        verdict(better, f"×2: PSNR, SSIM and GMSD better than {REFERENCE}'s on each photograph"),
        verdict(
            drawn, f"FLUX over the base net: GMSD better, PSNR no more than {PSNR_SPARED} dB less, on each"
        ),
    ]


def weight() -> tuple[Table, list[str]]:
    """Size of all weights that ship."""
    table = Table(title="Weights", title_justify="left")
    table.add_column("part")
    table.add_column("MB", justify="right")
    package = ROOT / "dino_ray"
    sizes = {
        str(folder.parent.relative_to(package)): sum(
            f.stat().st_size for f in folder.rglob("*") if f.is_file()
        )
        for folder in sorted(package.rglob("weights"))
    }
    for name, size in sizes.items():
        table.add_row(name, f"{size / 1e6:.1f}")
    total = sum(sizes.values()) / 1e6
    return table, [verdict(total < WEIGHTS_MB, f"{total:.1f} MB of weights in all (< {WEIGHTS_MB})")]


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--photos", multiple=True, help="Of scikit-image, or files; all four unless named.")
@click.option("--methods", multiple=True, type=click.Choice(list(METHODS)), help="All unless named.")
@click.option("--scale", default=2, show_default=True, type=click.IntRange(2, 8))
@click.option("--source", default="clean", show_default=True, type=click.Choice(list(SOURCES)))
@click.option("--all", "everything", is_flag=True, help="All tables, and whether they reach what is wanted.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the scores here.")
@click.option("--sheet", "sheet_path", type=click.Path(path_type=Path), help="Write crops side by side here.")
def main(
    photos: tuple[str, ...],
    methods: tuple[str, ...],
    scale: int,
    source: str,
    everything: bool,
    json_path: Path | None,
    sheet_path: Path | None,
) -> None:
    for photo in photos:
        if photo not in PHOTOS and not Path(photo).is_file():
            raise click.BadParameter(f"{photo}: no such file, nor one of {', '.join(PHOTOS)}")
    photos, methods = photos or PHOTOS, methods or tuple(METHODS)
    console = Console(width=100)
    kinds = [(2, "clean"), (4, "clean"), (2, "spoilt")] if everything else [(scale, source)]
    report, rows, tables = [], [], []
    for scale, source in kinds:
        scores, results = compare(photos, methods, scale, source)
        console.print(table(scores, scale, source))
        tables.append(scores)
        report.append({"scale": scale, "source": source, "scores": [asdict(s) for s in scores]})
        rows += [{n: images[n] for n in SHOWN if n in images} for images in results.values()]
    if sheet_path:
        sheet(rows).save(sheet_path)
    verdicts: list[str] = []
    if everything:
        verdicts += judged(*tables)
        for made, said in (invention(photos), swaps(), weight()):
            console.print(made)
            verdicts += said
        for line in verdicts:
            console.print(line)
    if json_path:
        content = {"border": BORDER, "tables": report, "verdicts": verdicts}
        json_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
