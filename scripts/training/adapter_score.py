"""Whether an adapter helps, on pictures that it never saw: with tokens of the picture itself, of another, and none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from dino_ray.diffusion.adapter import DinoAdapter
from dino_ray.diffusion.bundled.model import BundledDenoiser
from dino_ray.diffusion.families.flux import FluxDenoiser
from training.adapter import Glimpse, conditioned, likeness
from training.pictures import Pictures

Tokens = Literal["right", "other", "none"]
LEVELS = (0.25, 0.5, 0.75, 1.0)
AT_ONCE = 4


@dataclass(frozen=True)
class Row:
    """Means over the crops, after one step from the noise level to 0."""

    sigma: float
    tokens: Tokens
    loss: float
    """As in training: of a restoring model the mean absolute error, in [0, 1]; of a rectified flow the squared one of
    its velocity."""
    cosine: float
    """Of the DINO features of the result with those of the truth."""
    psnr: float
    """dB over RGB, all crops together."""


@torch.inference_mode()
def evaluate(
    model: BundledDenoiser | FluxDenoiser,
    adapter: DinoAdapter,
    held_out: Pictures,
    seed: int = 0,
    *,
    text: Mapping[str, NDArray[np.float32]] | None = None,
    crop: int | None = None,
    crops: int = 48,
    levels: Sequence[float] = LEVELS,
) -> list[Row]:
    """Score an adapter: at each noise level the same crops and the same noise with each kind of tokens.

    Parameters
    ----------
    model
        As ``loading.load`` gives it, without an adapter.
    held_out
        At least two pictures; ``other`` shows a crop the tokens of a crop of another one.
    seed
        Of crops and noise. Two adapters are compared on the same ones.
    text
        Embeddings of an empty prompt, where the model takes text.
    crop
        canvas_px; by default the model's tile.
    crops
        How many, rounded up to whole batches.
    """
    denoiser = model.adapted(adapter.to(model.device).eval(), adapter.facts)
    side = crop or denoiser.description.tile
    at_once = min(AT_ONCE, len(held_out))
    rows = []
    for sigma in levels:
        seen: dict[Tokens, list[tuple[float, float, float]]] = {kind: [] for kind in get_args(Tokens)}
        for batch in range(-(-crops // at_once)):
            rng = np.random.default_rng((seed, batch))
            torch.manual_seed(int(rng.integers(2**62)))
            numbers = rng.permutation(len(held_out))[:at_once]  # each another picture
            cut = held_out.crops(rng, numbers, side, adapter.facts.stride)
            glimpse = Glimpse.of(denoiser, cut, sigma)
            for kind, tokens in (("right", cut.tokens), ("other", cut.tokens.roll(1, 0)), ("none", None)):
                x0 = denoiser.predict(glimpse.x, sigma, conditioned(text or {}, tokens))
                pixels = denoiser.decode(x0)
                seen[kind].append(  # type: ignore[index]
                    (
                        glimpse.error(denoiser, x0).item(),
                        likeness(held_out, pixels, glimpse.truth).item(),
                        (pixels - glimpse.truth).square().mean().item(),
                    )
                )
        for kind, values in seen.items():
            loss, cosine, square = np.mean(values, axis=0)
            rows.append(
                Row(sigma, kind, float(loss), float(cosine), float(-10 * np.log10(max(square, 1e-10))))
            )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f"{'level':>5}  {'tokens':<6}  {'loss':>9}  {'cosine':>8}  {'PSNR':>7}"]
    lines += [
        f"{row.sigma:5.2f}  {row.tokens:<6}  {row.loss:9.6f}  {row.cosine:8.5f}  {row.psnr:7.3f}"
        for row in rows
    ]
    return "\n".join(lines)
