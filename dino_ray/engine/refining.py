"""The model's part of a replica's work: tiles of the base in, as one batch, and refined, verified tiles out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dino_ray.diffusion.denoiser import Conditioning, Control, DinoTokens, Host, Sampling, stacked
from dino_ray.diffusion.sampler import sample
from dino_ray.engine.protocol import Guide, ImageTask
from dino_ray.engine.transfer import put
from dino_ray.engine.verifying import Draft, Refined, Tile, verified
from dino_ray.engine.watch import Stop, Stopwatch, heed
from dino_ray.plan import noise
from dino_ray.plan.geometry import Rect
from dino_ray.prompts import prompt_for

if TYPE_CHECKING:
    from torch import Tensor

    from dino_ray.diffusion.denoiser import Denoiser, Description, Embeddings
    from dino_ray.diffusion.sampler import Amend
    from dino_ray.dino.loading import Dino


@dataclass(frozen=True)
class Models:
    """What a replica refines with."""

    denoiser: Denoiser
    dino: Dino | None = None
    """None: nothing is guided or verified by DINO."""
    image: Callable[[Sequence[np.ndarray]], Embeddings] | None = None
    """What looks at tiles as image prompts; None: nothing does."""


@dataclass(frozen=True)
class Effort:
    """How far a draft may go from its base, and how firmly it is held to it."""

    denoise: float
    strength: float

    def gentler(self, model: Description) -> Effort | None:
        """For another try: half the noise, and half of what guidance lacks of its full strength; off stays off.

        None: the model can start from no less noise, and no firmer guidance is to be had, so that it would draw the
        same again.
        """
        less = Effort(model.within(self.denoise / 2), (1 + self.strength) / 2 if self.strength else 0.0)
        return None if less == self else less


def refine_batch(
    models: Models,
    tiles: Sequence[Tile],
    task: ImageTask,
    guide: Guide,
    watch: Stopwatch,
    stop: Stop,
) -> list[Refined]:
    """Refine tiles, all at once, and see that they are true to their source, one by one.

    Parameters
    ----------
    tiles
        All of one size.
    watch
        Gets the seconds of ``encode``, ``steps``, ``decode`` and ``verify``.

    Returns
    -------
    list
        Of each tile its pixels, float32 (h, w, 3), nominally in [0, 1], and what is known of their faithfulness.

    Raises
    ------
    Cancelled
        Once ``stop`` says so; it is asked between stages, before each denoising step and whenever guidance looks.
    """
    import torch

    asked = Effort(task.denoise, task.dino_strength)

    def draft(tiles: Sequence[Tile], effort: Effort) -> Tensor:
        return _draft(models, tiles, task, guide, effort, watch, stop)

    def redraft(tile: Tile, effort: Effort) -> Draft | None:
        gentler = effort.gentler(models.denoiser.description)
        return None if gentler is None else Draft(draft([tile], gentler)[0], gentler)

    with torch.inference_mode():
        lively = [tile for tile in tiles if not tile.flat]
        pixels = iter(draft(lively, asked) if lively else ())
        made = []
        for tile in tiles:
            heed(stop)
            with watch("verify"):
                first = None if tile.flat else Draft(next(pixels), asked)
                made.append(verified(tile, first, redraft, models.dino, task, guide))
        return made


def _draft(
    models: Models,
    tiles: Sequence[Tile],
    task: ImageTask,
    guide: Guide,
    effort: Effort,
    watch: Stopwatch,
    stop: Stop,
) -> Tensor:
    """What the model makes of tiles: (B, 3, h, w), nominally in [0, 1]."""
    denoiser = models.denoiser
    rects, device = [tile.rect for tile in tiles], denoiser.device
    heed(stop)
    with watch("encode"):
        pixels = put(np.stack([tile.base for tile in tiles]), device).permute(0, 3, 1, 2).contiguous()
        base = denoiser.encode(pixels)
    with watch("steps"):
        _, channels, h, w = base.shape
        field = [_noise(task, rect, denoiser.description.latent_scale, channels) for rect in rects]
        sigmas = denoiser.sigmas(effort.denoise, task.steps, (h, w))
        noise = put(np.stack(field), device)
        start = denoiser.noised(base, noise, effort.denoise)
        conditioning = replace(
            _conditioning(denoiser, task, guide, effort.strength, base, rects),
            control=_control(task, pixels, base, sigmas.tolist()),
        )
        if models.image is not None:
            conditioning = replace(conditioning, image=models.image([tile.base for tile in tiles]))
        amend = _amend(models, task, guide, effort, base, rects, sigmas.tolist(), stop)

        def before_step(step: int) -> None:
            heed(stop)

        def follow() -> Tensor:
            return sample(denoiser, start, sigmas, conditioning, task.sampler, before_step, amend=amend)

        if isinstance(denoiser, Host):
            levels, places = sigmas.tolist(), [_place(task, rect) for rect in rects]
            closed, seed = task.grid.wrap, task.seed
            frame = Sampling(base, noise, start, levels, places, closed, seed, task.cfg, before_step)
            latents = denoiser.host(frame, follow)
        else:
            latents = follow()
    heed(stop)
    with watch("decode"):
        return denoiser.decode(latents).float()


def _place(task: ImageTask, rect: Rect) -> tuple[float, float, float, float]:
    """A window of the canvas as parts of it."""
    width, height = task.grid.width, task.grid.height
    return rect.x / width, rect.y / height, rect.w / width, rect.h / height


def _noise(task: ImageTask, rect: Rect, scale: int, channels: int) -> np.ndarray:
    """What of the noise field lies over ``rect``, canvas_px; (channels, h, w) of latents."""
    place = Rect(rect.x // scale, rect.y // scale, rect.w // scale, rect.h // scale)
    around = task.grid.xs.period
    return noise.field(task.seed, channels, place, around // scale if around else None)


def _conditioning(
    denoiser: Denoiser, task: ImageTask, guide: Guide, strength: float, base: Tensor, rects: Sequence[Rect]
) -> Conditioning:
    def there(array: np.ndarray) -> Tensor:
        return put(array, denoiser.device)

    dino = None
    if (features := guide.features) is not None and strength > 0:
        stride = denoiser.description.dino_stride
        crops = [
            features.crop(*task.scaling.source_box(rect), max(1, rect.h // stride), max(1, rect.w // stride))
            for rect in rects
        ]
        dino = DinoTokens(there(np.stack(crops)), strength)

    def text(prompt: str | None) -> Embeddings:
        arrays = guide.text.get(prompt, {}) if prompt is not None else {}
        return {name: there(array) for name, array in arrays.items()}

    boxes = [task.scaling.source_box(rect) for rect in rects]
    closed = task.grid.wrap
    told = [prompt_for(box, task.size, guide.regions, task.prompt, closed=closed) for box in boxes]
    return Conditioning(
        text=text(told[0]) if len(set(told)) == 1 else stacked([text(prompt) for prompt in told]),
        negative=text(task.negative_prompt),
        cfg=task.cfg,
        image={name: there(array) for name, array in guide.image.items()},
        reference=base if denoiser.description.takes_reference else None,
        dino=dino,
    )


def _control(task: ImageTask, pixels: Tensor, base: Tensor, levels: Sequence[float]) -> Control | None:
    """The base, for a ControlNet to hold the tiles to in those steps that lie wholly within its range."""
    start, end = task.control_range
    steps = len(levels) - 1
    acting = [level for i, level in enumerate(levels[:-1]) if start <= i / steps and (i + 1) / steps <= end]
    if task.control_scale == 0 or not acting:
        return None
    return Control(pixels, base, task.control_scale, (min(acting), max(acting)))


def _amend(
    models: Models,
    task: ImageTask,
    guide: Guide,
    effort: Effort,
    base: Tensor,
    rects: Sequence[Rect],
    levels: Sequence[float],
    stop: Stop,
) -> Amend | None:
    """What becomes of a prediction: less change where structure is, and a turn towards what DINO sees in the base."""
    changes: list[Amend] = []
    if task.adaptive > 0 and guide.structure is not None:
        changes.append(_restraint(task, guide, base, rects, levels))
    if effort.strength > 0 and models.dino is not None and guide.calibration is not None:
        from dino_ray.dino.guidance import Guidance

        def sketch(latents: Tensor) -> Tensor:
            heed(stop)  # before each of the up to a hundred looks that guidance takes within a step
            return models.denoiser.sketch(latents)

        dead_band = guide.calibration.dead_band
        steer = Guidance.towards(models.dino, sketch, base, effort.strength, dead_band, task.steps)
        changes.append(lambda x0, sigma: steer(x0))
    if not changes:
        return None

    def amend(x0: Tensor, sigma: float) -> Tensor:
        for change in changes:
            x0 = change(x0, sigma)
        return x0

    return amend


def _restraint(
    task: ImageTask, guide: Guide, base: Tensor, rects: Sequence[Rect], levels: Sequence[float]
) -> Amend:
    """A noise level for each place, as in Differential Diffusion (Levin and Fried 2023, arXiv:2306.00950).

    Above its own level a place is on the way to the base, whatever the model says; a step across the level counts for
    the part that lies below it.
    """
    from dino_ray.dino.structure import change_map

    assert guide.structure is not None
    _, _, h, w = base.shape
    maps = [change_map(guide.structure, task.scaling.source_box(rect), h, w, task.adaptive) for rect in rects]
    own = levels[0] * put(np.stack(maps), base.device)[:, None]
    below = dict(pairwise(levels))

    def restrain(x0: Tensor, sigma: float) -> Tensor:
        to = below.get(sigma, 0.0)
        share = ((own - to) / (sigma - to)).clamp(0, 1)
        return base + share * (x0 - base)

    return restrain
