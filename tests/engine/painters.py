"""Models that draw what is not in the picture, and pictures for them. Importable by Ray's workers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fakes import Shade
from torch import Tensor

from dino_ray.dino import loading
from dino_ray.engine.protocol import ReplicaSpec
from dino_ray.upsample import Lanczos

COMMANDS_SIDE = 24
"""px of the blotches that the command paints which this module is, run as one."""


@cache
def bundled_dino() -> loading.Dino:
    """Loaded once for all tests of a process."""
    return loading.load("bundled")


def picture(height: int = 96, width: int = 96) -> np.ndarray:
    """Part of a photograph, uint8; every part of it shows something."""
    from skimage import data

    return data.astronaut()[40 : 40 + height, 160 : 160 + width]


def patchwork(side: int) -> Tensor:
    """(3, side, side) in [0, 1]: blotches of colour that are in no photograph."""
    colours = np.random.default_rng(3).random((3, -(-side // 6), -(-side // 6)), np.float32).round()
    return torch.from_numpy(colours.repeat(6, 1).repeat(6, 2)[:, :side, :side])


@dataclass
class Painter(Shade):
    """Sharpens its tiles a little, with a trace of noise; and paints blotches into them.

    Parameters
    ----------
    side
        Of the blotches, px; 0: it paints none. They begin at ``corner``, px from the tile's.
    from_level
        It paints where it starts at this noise level or a higher one.
    above
        It paints into tiles whose mean is higher.
    """

    side: int = 0
    corner: int = 16
    from_level: float = 0.0
    above: float = -math.inf
    levels: list[tuple[int, float]] = field(default_factory=list)
    """Tiles at once, and the noise level, of each start."""

    def noised(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        self.levels.append((len(latents), sigma))
        return latents + 0.02 * sigma * noise

    def predict(self, x: Tensor, sigma: float, conditioning: Any) -> Tensor:
        return x + 0.2 * (x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))

    def decode(self, latents: Tensor) -> Tensor:
        painted = latents.clone()
        if self.side and self.levels[-1][1] >= self.from_level:
            bright = latents.mean((1, 2, 3)) > self.above
            place = slice(self.corner, self.corner + self.side)
            painted[bright, :, place, place] = self.painting(painted[bright, :, place, place])
        return painted

    def painting(self, here: Tensor) -> Tensor:
        return patchwork(self.side).expand_as(here)


class Wreck(Painter):
    """Makes no numbers where it should paint."""

    def painting(self, here: Tensor) -> Tensor:
        return torch.full_like(here, math.nan)


class Blast(Painter):
    """Makes numbers that no picture has."""

    def painting(self, here: Tensor) -> Tensor:
        return torch.full_like(here, -math.inf)


def painting(**options: Any) -> ReplicaSpec:
    return ReplicaSpec(upsampler=Lanczos, denoiser=partial(Painter, **options), dino=bundled_dino)


if __name__ == "__main__":  # the command, with a painter in the place of the bundled model
    from dino_ray import job
    from dino_ray.cli import main

    job.replica_spec = lambda config, settings: painting(side=COMMANDS_SIDE)
    main()
