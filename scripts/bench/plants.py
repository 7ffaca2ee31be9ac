"""Hallucinations to be caught: what a model that makes things up draws into tiles, and such a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.float32]

SIDES = (32, 48, 64, 96)
"""canvas_px."""
EDGE = 3
"""canvas_px over which a plant fades into the tile."""
LEAST_SEEN = 6 / 255
"""Root mean square by which a plant changes its place; one that changes less is drawn anew: nobody would see it."""
BAND = 8
"""Of a texture that is swapped, what is coarser than this many px stays."""


@dataclass(frozen=True)
class Plant:
    """Something that is not in the picture."""

    kind: str
    x: int
    y: int
    """Within the tile, px."""
    pixels: Pixels
    """(side, side, 3) in [0, 1]."""
    mask: Pixels
    """(side, side, 1) in [0, 1]: how much of the plant shows."""

    @property
    def place(self) -> tuple[slice, slice]:
        side = len(self.pixels)
        return slice(self.y, self.y + side), slice(self.x, self.x + side)

    def over(self, tile: Tensor) -> Tensor:
        """A tile (..., 3, h, w) with the plant in it."""
        pixels, mask = (
            torch.from_numpy(a).permute(2, 0, 1).to(tile.device, tile.dtype) for a in (self.pixels, self.mask)
        )
        out = tile.clone()
        out[(..., *self.place)] = torch.lerp(tile[(..., *self.place)], pixels, mask)
        return out


class Planting:
    """A model that draws ``plant`` into every tile, however gently it is asked; else the one that it wraps."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser
        self.plant: Plant | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def decode(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self._denoiser.decode(latents)
        return pixels if self.plant is None else self.plant.over(pixels)


Donor = Callable[[int], Pixels]
"""Draws a square of so many px from another picture."""


def patch(here: Pixels, donor: Donor) -> Pixels:
    """Another image's patch."""
    return donor(len(here))


def texture(here: Pixels, donor: Donor) -> Pixels:
    """The colours of the place, with another texture."""
    other = donor(len(here))
    return coarse(here) + other - coarse(other)


def block(here: Pixels, donor: Donor) -> Pixels:
    """Another patch, in mean and contrast of each colour like the place."""
    other = donor(len(here))
    spread = other.std((0, 1)) + 1e-3
    return (other - other.mean((0, 1))) / spread * here.std((0, 1)) + here.mean((0, 1))


def coarse(pixels: Pixels) -> Pixels:
    side = len(pixels)
    small = [
        Image.fromarray(pixels[..., c]).resize((side // BAND, side // BAND), Image.Resampling.BOX)
        for c in range(3)
    ]
    return np.stack([np.asarray(p.resize((side, side), Image.Resampling.BICUBIC)) for p in small], -1)


def square(side: int) -> Pixels:
    ends = np.minimum(np.arange(side), np.arange(side)[::-1])
    rise = np.clip((ends + 1) / EDGE, 0, 1).astype(np.float32)
    return np.minimum.outer(rise, rise)[..., None]


def disc(side: int) -> Pixels:
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.clip((side / 2 - np.hypot(x, y)) / EDGE, 0, 1).astype(np.float32)[..., None]


KINDS: Mapping[str, tuple[Callable[[Pixels, Donor], Pixels], Callable[[int], Pixels]]] = {
    "another image's patch": (patch, square),
    "an inpainted object": (patch, disc),
    "a texture swap": (texture, square),
    "a colour-matched block": (block, square),
}
"""What is drawn, and in what shape. Objects come from drawn pictures, the others from photographs as well."""


def draw(
    kind: str, side: int, tile: Pixels, room: int, rng: np.random.Generator, donor: Donor, tries: int = 40
) -> Plant | None:
    """A plant for a tile, at least ``room`` px from its borders; None where nothing that is seen can be planted."""
    make, shape = KINDS[kind]
    mask = shape(side)
    for _ in range(tries):
        y, x = (int(rng.integers(room, length - room - side + 1)) for length in tile.shape[:2])
        here = tile[y : y + side, x : x + side]
        pixels = np.clip(make(here, donor), 0, 1).astype(np.float32)
        if np.sqrt(np.mean(np.square(mask * (pixels - here)))) >= LEAST_SEEN:
            return Plant(kind, x, y, pixels, mask)
    return None
