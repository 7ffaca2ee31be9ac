"""Models that misbehave: started from noise they are not told of, or with a cast of its own for each tile."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

CORRUPTION = 0.25
"""Noise that the model is not told of, in units of its latents' standard deviation."""
CAST = 12
"""Levels of 255: the largest cast per tile and colour."""


class Wrapped:
    """A model that does one thing otherwise."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)


class Corrupted(Wrapped):
    """Starts from noise that it is not told of."""

    def noised(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        start: Tensor = self._denoiser.noised(latents, noise, sigma)
        return start + CORRUPTION * noise


class Casting(Wrapped):
    """Gives each tile a cast of its own, as a function of its brightness, which a slope runs across."""

    cast = CAST

    def decode(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self._denoiser.decode(latents)
        height, width = pixels.shape[2:]
        for i, tile in enumerate(pixels):
            rng = np.random.default_rng(int(1e6 * float(tile.mean())))
            cast = rng.uniform(-self.cast, self.cast, (3, 2)).astype(np.float32) / 255
            slope = np.linspace(-0.5, 0.5, width, dtype=np.float32)
            added = np.broadcast_to(cast[:, :1, None] + cast[:, 1:, None] * slope, (3, height, width))
            pixels[i] += pixels.new_tensor(added)
        return pixels
