"""Stage ``flux``: the small FLUX transformer that refines what the base net made, given DINO tokens.

It learns the straight way from the base to the picture, as a rectified flow does from noise (Liu et al.
2022, arXiv:2209.03003): the base, at noise level ``sigma0``, is the start; a minority of samples start from
added noise, from half-way, or are to be corrected only in part. Without noise it is to come near the picture, pixel by
pixel and in its edges; with noise it is to make texture of it, as much as the picture has, that the source can't tell
from the picture's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dino_ray.diffusion.bundled import load
from dino_ray.diffusion.bundled.latents import BlockDct
from dino_ray.diffusion.bundled.model import BundledDenoiser
from dino_ray.diffusion.bundled.spec import Spec
from dino_ray.diffusion.denoiser import Conditioning, DinoTokens
from dino_ray.report.metrics import gmsd
from training.base import to_tensor
from training.gallery import Gallery
from training.loop import Moment, Stage, note, train
from training.losses import edge_loss, luma, texture_loss
from training.muon import Muon

SIGMA0 = 0.25
NOISY_LEVELS = (0.35, 0.5, 0.75)
"""At which the result is judged besides."""
LATENT_SCALE = 2
TILE, OVERLAP, MULTIPLE = 128, 32, 16
DINO_STRIDE = 16
CONFIG: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 4 * 3 * LATENT_SCALE**2,
    "num_layers": 1,
    "num_single_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "guidance_embeds": False,
    "axes_dims_rope": (8, 12, 12),
}

PEAK_RATE = 5e-3
HOLD = 0.4
"""Share of the steps at that rate, before it falls."""
AVERAGE_DECAY = 0.998
SMALL_CROP, SMALL_BATCH = 64, 8
LARGE_BATCH = 2
"""Of crops of the tile's own size, which the last steps see: attention's reach has to be learned too."""
LARGE_FROM = 0.9
MARGIN_PX = 8
"""Left out of the loss on each side: of every tile that much is context and never shown."""
DROPPED_SHARE = 0.15
"""Of the batches see no DINO tokens, so that the model works without; twice as many see them weakened."""
EDGE_WEIGHT = 0.05
"""Of edges against pixels: the most that costs next to nothing of PSNR."""
NOISY_WEIGHT = 0.3
"""Weight of the samples with noise, whose errors are larger."""
TEXTURE_WEIGHT = 2.0
"""Of texture against what the source shows, where there is noise to make it of."""
SOFT_SHARE = 0.3
"""So many samples start somewhere between Lanczos and the base. What the base net leaves over is too faint to
learn from alone, and photographs leave more of it than the pictures that the base net was trained on."""


def train_flux(stage: Stage, gallery: Gallery, out: Path, device: torch.device) -> None:
    """Train on ``gallery`` and save ``model.json`` and the averaged transformer in ``out``."""
    torch.manual_seed(stage.seed)
    spec = make_spec(gallery, out)
    transformer = build(spec).to(device)
    average = AveragedModel(transformer, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))
    denoiser = BundledDenoiser(transformer, spec)
    optimizer = Muon(transformer.parameters(), PEAK_RATE)

    def step_once(moment: Moment) -> dict[str, float]:
        rng, large = moment.rng, moment.progress >= LARGE_FROM
        side, batch = (TILE, LARGE_BATCH) if large else (SMALL_CROP, SMALL_BATCH)
        crops = gallery.crops(rng, batch, side, DINO_STRIDE)
        goal, base, plain = (
            denoiser.encode(to_tensor(p).to(device)) for p in (crops.pictures, crops.bases, crops.plains)
        )
        softness = draw_softness(rng, batch).to(device)
        start = torch.lerp(base, plain, softness.view(-1, 1, 1, 1))
        case = draw_case(rng, goal, start)
        tokens = draw_tokens(rng, torch.from_numpy(crops.tokens))
        optimizer.param_groups[0]["lr"] = moment.rate(PEAK_RATE, HOLD)
        with torch.autocast(device.type, torch.bfloat16):
            velocity = denoiser.velocity(case.x, case.sigma, tokens)
        # Measured in pixels of the picture that one step from the case's noise level would give.
        scale = case.sigma_start.view(-1, 1, 1, 1)
        inner = slice(MARGIN_PX, -MARGIN_PX)
        error = denoiser.latents.decode_difference(scale * (velocity - case.velocity))[:, :, inner, inner]
        truth = denoiser.decode(goal)[:, :, inner, inner]
        made = truth + error
        each = error.abs().mean((1, 2, 3))
        shown = F.avg_pool2d(error, 2).abs().mean((1, 2, 3))  # what the source, half as large, can tell
        faithful = each + EDGE_WEIGHT * edge_loss(made, truth)
        lively = NOISY_WEIGHT * (shown + 0.25 * each + TEXTURE_WEIGHT * texture_loss(made, truth))
        loss = torch.where(case.noisy, lively, faithful).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(transformer)
        with torch.no_grad():
            untouched = denoiser.latents.decode_difference(start - goal)[:, :, inner, inner].abs()
            usual = case.plain & (softness == 0)
            left = each[usual].sum() / untouched.mean((1, 2, 3))[usual].sum().clamp_min(1e-9)
        return {"loss": loss.item(), "gain": 1 - left.item()}

    train(stage, {"transformer": transformer, "average": average, "optimizer": optimizer}, step_once)
    average.module.save_pretrained(spec.transformer)
    spec.write()


def make_spec(gallery: Gallery, out: Path) -> Spec:
    """The model's facts; the latents' statistics are those of the gallery's pictures."""
    channels = 3 * LATENT_SCALE**2
    plain = BlockDct(LATENT_SCALE, torch.zeros(channels), torch.ones(channels))
    latents = torch.cat([plain.encode(to_tensor(p[None])) for p in gallery.large[:32]])
    # No more digits than matter: the file is read by people too.
    mean, std = (
        tuple(round(float(v), 4) for v in statistic((0, 2, 3))) for statistic in (latents.mean, latents.std)
    )
    return Spec(
        folder=out,
        sigma0=SIGMA0,
        latent_scale=LATENT_SCALE,
        latent_mean=mean,
        latent_std=std,
        tile=TILE,
        overlap=OVERLAP,
        pixel_multiple=MULTIPLE,
        steps=1,
        dino_dim=gallery.dino_dim,
        dino_stride=DINO_STRIDE,
    )


def build(spec: Spec) -> FluxTransformer2DModel:
    """A transformer of `CONFIG` that predicts zero before it has learned anything: the base unchanged."""
    transformer = FluxTransformer2DModel(
        **CONFIG, joint_attention_dim=spec.dino_dim, pooled_projection_dim=spec.dino_dim
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


class Case:
    """A batch of starts and what the model should answer."""

    def __init__(self, goal: Tensor, start: Tensor, columns: dict[str, Tensor]) -> None:
        def wide(name: str) -> Tensor:
            return columns[name].view(-1, 1, 1, 1)

        noisy = start + wide("noise") * torch.randn_like(start)
        self.sigma_start = columns["sigma"]
        self.velocity = (noisy - goal) / wide("sigma")
        self.x = goal + wide("way") * (noisy - goal)
        self.sigma = columns["sigma"] * columns["way"] * columns["gentle"]
        self.noisy = columns["noise"] > 0
        self.plain = (columns["noise"] == 0) & (columns["way"] == 1) & (columns["gentle"] == 1)


def draw_case(rng: np.random.Generator, goal: Tensor, start: Tensor) -> Case:
    """Most samples go from the base at ``sigma0`` to the picture.

    ``sigma``, ``noise``: where they start, and the noise there; ``way``: how much of the way is still ahead;
    ``gentle``: the share of the correction that is asked for, which shows in the noise level alone.
    """
    n = len(goal)
    kind = rng.random(n)
    # Half-way states only with noise: without, a lower level asks for a part of the correction instead.
    noisy, partial, gentle = kind < 0.3, kind < 0.06, kind > 0.88
    # Mostly as little noise as people ask for.
    sigma = np.where(noisy, SIGMA0 + (1 - SIGMA0) * rng.random(n) ** 1.5, SIGMA0)
    columns = {
        "sigma": sigma,
        "noise": sigma - SIGMA0,
        "way": np.where(partial, rng.uniform(0.2, 1, n), 1.0),
        "gentle": np.where(gentle, rng.uniform(0.02, 1, n), 1.0),
    }
    return Case(goal, start, {k: torch.from_numpy(v).float().to(goal.device) for k, v in columns.items()})


def draw_softness(rng: np.random.Generator, n: int) -> Tensor:
    """(n,) in [0, 1]: 0 starts from the base, 1 from Lanczos."""
    return torch.from_numpy(np.where(rng.random(n) < SOFT_SHARE, rng.random(n), 0.0)).float()


def draw_tokens(rng: np.random.Generator, features: Tensor) -> DinoTokens | None:
    fate = rng.random()
    if fate < DROPPED_SHARE:
        return None
    weakened = fate < 2 * DROPPED_SHARE
    return DinoTokens(features, float(rng.uniform(0.1, 1)) if weakened else 1.0)


@torch.inference_mode()
def judge_flux(stage: Stage, gallery: Gallery, out: Path, batches: int = 16) -> None:
    """Log what the model makes of pictures that training never saw.

    From the base: PSNR, in dB over RGB, and GMSD; ``tokens`` are the picture's own, ``none`` leaves them out,
    ``others`` shows the model another picture's. With noise: how much fine detail there is, of the truth's, and how far
    the result is, reduced by two, from the truth, in levels of 255.
    """
    denoiser = load(out)
    inner = slice(MARGIN_PX, -MARGIN_PX)
    errors: dict[str, list[float]] = {}
    likeness: dict[str, list[float]] = {}
    drawn: dict[float, list[tuple[float, float, float]]] = {}
    for batch in range(batches):
        crops = gallery.crops(np.random.default_rng((stage.seed, batch)), LARGE_BATCH, TILE, DINO_STRIDE)
        truth, base = to_tensor(crops.pictures)[:, :, inner, inner], to_tensor(crops.bases)
        z, features = denoiser.encode(base), torch.from_numpy(crops.tokens)
        own = DinoTokens(features, 1.0)
        made = {"base": base}
        for name, dino in (("tokens", own), ("none", None), ("others", DinoTokens(features.roll(1, 0), 1.0))):
            made[name] = denoiser.decode(denoiser.predict(z, SIGMA0, Conditioning(dino=dino)))
        for name, pixels in made.items():
            pixels = pixels.clamp(0, 1)[:, :, inner, inner]
            squares = (pixels - truth).square().mean((1, 2, 3))
            errors.setdefault(name, []).extend(squares.clamp_min(1e-10).tolist())
            pairs = zip(luma(255 * pixels)[:, 0], luma(255 * truth)[:, 0], strict=True)
            likeness.setdefault(name, []).extend(gmsd(a.numpy(), b.numpy()) for a, b in pairs)
        generator = torch.Generator().manual_seed(batch)
        noise = torch.randn(z.shape, generator=generator)
        for sigma in (SIGMA0, *NOISY_LEVELS):
            x = denoiser.noised(z, noise, sigma)
            pixels = denoiser.decode(denoiser.predict(x, sigma, Conditioning(dino=own)))[:, :, inner, inner]
            fine = [float((each - F.avg_pool2d(each, 3, 1, 1)).std()) for each in (luma(pixels), luma(truth))]
            short = 255 * float(F.avg_pool2d(pixels - truth, 2).abs().mean())
            unlike = float(texture_loss(pixels, truth).mean())
            drawn.setdefault(sigma, []).append((fine[0] / fine[1], short, 255 * unlike))

    def decibels(mean_square: NDArray[np.float64]) -> float:
        return round(float(-10 * np.log10(mean_square).mean()), 3)

    # Of each crop, which weighs flat ones heavily, and of all crops' errors together, which weighs detail.
    note(stage, {"psnr_per_crop": {name: decibels(np.array(values)) for name, values in errors.items()}})
    note(stage, {"psnr_together": {name: decibels(np.mean(values)) for name, values in errors.items()}})
    note(stage, {"gmsd": {name: round(float(np.mean(values)), 5) for name, values in likeness.items()}})
    for sigma, rows in drawn.items():
        fine_share, short, unlike = (round(float(v), 3) for v in np.mean(rows, axis=0))
        note(stage, {"sigma": sigma, "detail": fine_share, "reduced": short, "texture": unlike})
