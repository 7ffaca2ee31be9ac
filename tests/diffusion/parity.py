"""What the tests of the model families share: latents, and our loop from them."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from dino_ray.diffusion.sampler import sample


def latents(denoiser, h, w, batch=1, seed=0):
    """Unit noise (batch, channels, h, w), always the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, denoiser.description.latent_channels, h, w, generator=generator)


def refined(denoiser, conditioning, denoise, steps, h, w, batch=2):
    """Sigmas, the start at their first, and the latents that our loop goes to from there."""
    sigmas = denoiser.sigmas(denoise, steps, (h, w))
    start = denoiser.noised(latents(denoiser, h, w, batch), latents(denoiser, h, w, batch, seed=1), denoise)
    return sigmas, start, sample(denoiser, start, sigmas, conditioning)


def batched(embeddings, batch):
    """Embeddings for each tile of a batch."""
    return {name: value.expand(batch, *value.shape[1:]) for name, value in embeddings.items()}


def before_shift(sigmas, alpha):
    """The sigmas that a stock scheduler whose shift is ``alpha`` will shift to ``sigmas``."""
    return [sigma / (alpha - (alpha - 1) * sigma) for sigma in sigmas.double().tolist()]


@contextmanager
def following(scheduler, levels):
    """A stock flow scheduler whose every schedule is these sigmas, whatever it is asked for."""
    once = scheduler.set_timesteps

    def set_timesteps(num_inference_steps=None, device=None, sigmas=None, mu=None):
        once(sigmas=levels[:-1].tolist(), mu=mu or 0.5)
        scheduler.sigmas, scheduler.timesteps = levels, levels[:-1] * scheduler.config.num_train_timesteps

    scheduler.set_timesteps = set_timesteps
    try:
        yield
    finally:
        scheduler.set_timesteps = once
