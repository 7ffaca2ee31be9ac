"""The model's part of a replica's work: tiles of the base in, as one batch, and refined tiles out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dino_ray.diffusion.denoiser import Conditioning, DinoTokens
from dino_ray.diffusion.sampler import sample
from dino_ray.engine.protocol import Guide, ImageTask
from dino_ray.engine.watch import Stop, Stopwatch, heed
from dino_ray.plan import noise
from dino_ray.plan.geometry import Rect

if TYPE_CHECKING:
    import torch

    from dino_ray.diffusion.denoiser import Denoiser


def refine_batch(
    denoiser: Denoiser,
    tiles: Sequence[tuple[Rect, np.ndarray]],
    task: ImageTask,
    guide: Guide,
    watch: Stopwatch,
    stop: Stop,
) -> list[np.ndarray]:
    """Refine tiles, all at once.

    Parameters
    ----------
    tiles
        Of each its place, canvas_px, and its base, float32 (h, w, 3) in [0, 1]; all of one size.
    watch
        Gets the seconds of ``encode``, ``steps`` and ``decode``.

    Returns
    -------
    list
        Of each tile, float32 (h, w, 3), nominally in [0, 1].

    Raises
    ------
    Cancelled
        Once ``stop`` says so; it is asked between stages and before each denoising step.
    """
    import torch

    rects, device = [rect for rect, _ in tiles], denoiser.device
    with torch.inference_mode():
        heed(stop)
        with watch("encode"):
            latents = denoiser.encode(torch.from_numpy(_planes([base for _, base in tiles])).to(device))
        with watch("steps"):
            _, channels, h, w = latents.shape
            field = [_noise(task, rect, denoiser.description.latent_scale, channels) for rect in rects]
            sigmas = denoiser.sigmas(task.denoise, task.steps, (h, w))
            start = denoiser.noised(latents, torch.from_numpy(np.stack(field)).to(device), task.denoise)
            conditioning = _conditioning(denoiser, task, guide, rects)
            latents = sample(denoiser, start, sigmas, conditioning, task.sampler, lambda step: heed(stop))
        heed(stop)
        with watch("decode"):
            return list(denoiser.decode(latents).permute(0, 2, 3, 1).float().cpu().numpy())


def _planes(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images (h, w, c) of one size as (B, c, h, w), contiguous: a stack of transposed views would not be."""
    h, w, c = images[0].shape
    planes = np.empty((len(images), c, h, w), np.float32)
    for plane, image in zip(planes, images, strict=True):
        plane[:] = image.transpose(2, 0, 1)
    return planes


def _noise(task: ImageTask, rect: Rect, scale: int, channels: int) -> np.ndarray:
    """What of the noise field lies over ``rect``, canvas_px; (channels, h, w) of latents."""
    place = Rect(rect.x // scale, rect.y // scale, rect.w // scale, rect.h // scale)
    around = task.grid.xs.period
    return noise.field(task.seed, channels, place, around // scale if around else None)


def _conditioning(denoiser: Denoiser, task: ImageTask, guide: Guide, rects: Sequence[Rect]) -> Conditioning:
    import torch

    def there(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(denoiser.device)  # a copy: shared arrays are read-only

    dino = None
    if (features := guide.features) is not None:
        stride = denoiser.description.dino_stride
        crops = [
            features.crop(*task.scaling.source_box(rect), rect.h // stride, rect.w // stride)
            for rect in rects
        ]
        dino = DinoTokens(there(np.stack(crops)), task.dino_strength)
    return Conditioning({name: there(array) for name, array in guide.text.items()}, task.cfg, dino)
