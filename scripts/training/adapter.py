"""Training of a DINO adapter: the model is frozen, and gradients pass through it into the adapter.

Of every crop the model sees the start (the picture itself, or for a model that restores, the base) at some noise
level, and the crop's DINO tokens through the adapter, which learns to give tokens from which the model finds the
picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dino_ray.diffusion import loading
from dino_ray.diffusion.adapter import DinoAdapter
from dino_ray.diffusion.adapter_file import AdapterFacts
from dino_ray.diffusion.denoiser import Conditioning, Denoiser, DinoTokens
from training.loop import Moment, Stage, train
from training.pictures import Crops, Pictures

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: Mapping[Precision, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

WEIGHT_DECAY = 0.01
LARGEST_GRADIENT = 1.0
AVERAGE_DECAY = 0.998
AVERAGE_RISE = 10
"""In the first thousands of steps the average's decay is ``(1 + step) / (AVERAGE_RISE + step)``, so that a short
training does not end with a part of its beginning."""
WEAKENED_SHARE = 0.1
"""Of the steps see weakened tokens, as ``--dino-strength`` will show them."""
LOWEST_LEVEL = 0.02
"""Of a model that starts from noise: below, there is nothing to be told."""


@dataclass(frozen=True)
class Course:
    """All that a training depends on. Every process that takes part gets a copy."""

    model: str
    facts: AdapterFacts
    pictures: Pictures
    crop: int
    """canvas_px."""
    batch: int
    """Crops per step and process."""
    rate: float
    """Highest learning rate."""
    feature_weight: float
    """Of the term that compares DINO features of the decoded prediction with those of the truth; 0: none."""
    precision: Precision
    """Of the model; adapter, optimizer and average are float32."""
    device: str
    threads: int
    stage: Stage
    text: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Embeddings of an empty prompt, for a model that takes text."""

    def conditioning(self, tokens: Tensor | None, strength: float = 1.0) -> Conditioning:
        return conditioned(self.text, tokens, strength)


def conditioned(
    text: Mapping[str, NDArray[np.float32]], tokens: Tensor | None, strength: float = 1.0
) -> Conditioning:
    dino = None if tokens is None else DinoTokens(tokens, strength)
    return Conditioning({name: torch.from_numpy(value) for name, value in text.items()}, dino=dino)


def train_adapter(course: Course, wrap: Callable[[nn.Module], Any] = lambda module: module) -> None:
    """Train until the stage's budget is spent; its checkpoint holds the result.

    Parameters
    ----------
    wrap
        Makes of the adapter what several processes train together.
    """
    torch.set_num_threads(course.threads)
    torch.manual_seed(course.stage.seed)
    frozen = loading.load(course.model, course.device, DTYPES[course.precision])
    adapter = DinoAdapter(course.facts).to(frozen.device)
    average = averaged(adapter)
    optimizer = torch.optim.AdamW(
        adapter.parameters(), course.rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
    )
    scaler = torch.amp.GradScaler(frozen.device.type, enabled=course.precision == "fp16")
    denoiser = frozen.adapted(wrap(adapter), course.facts)

    def step_once(moment: Moment) -> dict[str, float]:
        rng = moment.rng
        numbers = rng.integers(len(course.pictures), size=course.batch)
        crops = course.pictures.crops(rng, numbers, course.crop, course.facts.stride)
        sigma = draw_level(rng, denoiser)
        strength = float(rng.uniform(0.1, 1)) if rng.random() < WEAKENED_SHARE else 1.0
        glimpse = Glimpse.of(denoiser, crops, sigma)
        x0 = denoiser.predict(glimpse.x, sigma, course.conditioning(crops.tokens, strength))
        error = glimpse.error(denoiser, x0)
        loss = error
        if course.feature_weight:
            unlike = 1 - likeness(course.pictures, denoiser.decode(x0), glimpse.truth)
            loss = error + course.feature_weight * unlike
        optimizer.param_groups[0]["lr"] = moment.rate(course.rate)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(adapter.parameters(), LARGEST_GRADIENT)
        scaler.step(optimizer)
        scaler.update()
        average.update_parameters(adapter)
        return {"error": error.item(), "loss": loss.item()}

    state = {"adapter": adapter, "average": average, "optimizer": optimizer, "scaler": scaler}
    train(course.stage, state, step_once)


def averaged(adapter: DinoAdapter) -> AveragedModel:
    """The exponential moving average that is saved in the end."""

    def mean(slow: Tensor, quick: Tensor, steps: Tensor | int) -> Tensor:
        decay = min(AVERAGE_DECAY, float((1 + steps) / (AVERAGE_RISE + steps)))
        return torch.lerp(quick, slow, decay)

    return AveragedModel(adapter, avg_fn=mean)


def trained(course: Course) -> DinoAdapter:
    """The average of the weights that the stage's checkpoint holds."""
    average = averaged(DinoAdapter(course.facts))
    saved = torch.load(course.stage.checkpoint, map_location="cpu", weights_only=True)
    average.load_state_dict(saved["state"]["average"])
    adapter: DinoAdapter = average.module  # type: ignore[assignment]
    return adapter


def draw_level(rng: np.random.Generator, denoiser: Denoiser) -> float:
    """A noise level, evenly from those at which the model gets noise."""
    lowest = max(denoiser.description.noise_free_to, LOWEST_LEVEL)
    return float(1 - (1 - lowest) * rng.random())


@dataclass(frozen=True)
class Glimpse:
    """Crops as the model sees them, at one noise level, and what it should have seen."""

    x: Tensor
    sigma: float
    truth: Tensor
    """(B, 3, H, W) pixels on the model's device."""
    latents: Tensor
    """Of the truth."""

    @classmethod
    def of(cls, denoiser: Denoiser, crops: Crops, sigma: float) -> Glimpse:
        """Draws the noise from torch's own generator."""
        with torch.no_grad():
            truth = crops.truth.to(denoiser.device)
            latents = denoiser.encode(truth)
            start = latents if crops.start is crops.truth else denoiser.encode(crops.start)
            x = denoiser.noised(start, torch.randn_like(start), sigma)
        return cls(x, sigma, truth, latents)

    def error(self, denoiser: Denoiser, x0: Tensor) -> Tensor:
        """What there is to be made less.

        A restoring model's error is the mean absolute one of its pixels; a rectified flow's is the squared one of its
        velocity, as in its own training.
        """
        if denoiser.description.noise_free_to:
            return (denoiser.decode(x0) - self.truth).abs().mean()
        return ((x0 - self.latents) / self.sigma).square().mean()


def likeness(pictures: Pictures, pixels: Tensor, truth: Tensor) -> Tensor:
    """Mean cosine of the DINO features of the same places in two pictures."""
    with torch.no_grad():
        goal = pictures.extractor(truth)
    return F.cosine_similarity(pictures.extractor(pixels.clamp(0, 1)), goal, dim=-1).mean()
