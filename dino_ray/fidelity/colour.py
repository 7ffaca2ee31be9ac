"""Colour lock: what a model does to the colour of a whole tile, or of large parts of it, is undone.

Diffusion models shift colours, each tile's its own way: normalisation layers see one tile's statistics. Large areas'
colours are the base's to say. "wavelet" keeps a tile's detail and takes its low-frequency band from the base, as
StableSR does (Wang et al., arXiv:2305.07015); "adain" gives each channel the base's mean and standard deviation
(Huang and Belongie, arXiv:1703.06868).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ColourLock = Literal["wavelet", "adain", "off"]
"""How a tile's colours are held to its base's."""

LEAST_SIGMA = 8
"""canvas_px. Below it the band would hold what the model is there to draw."""
SIGMAS_PER_SIDE = 32
"""A larger tile's shorter side, in sigmas of its band: casts that a model spreads over a tile vary no faster."""

_CELLS_PER_SIGMA = 4
"""The band is computed from means over cells of this part of a sigma, whose own blur is then 0.3 % of its own."""
_REACH = 4
"""Sigmas at which the Gaussian ends: 3e-4 of its height."""

_FLAT = 1e-6
"""A standard deviation below which a channel has no contrast that could be matched."""

LEVELS = 255


@torch.no_grad()
def lock_colour(tile: Tensor, base: Tensor, method: ColourLock = "wavelet") -> Tensor:
    """A refined tile with the colours of its base.

    Parameters
    ----------
    tile, base
        (3, h, w) float32, nominally in [0, 1], on one device.
    method
        "wavelet", "adain", or "off", which returns the tile itself.

    Returns
    -------
    Tensor
        As ``tile``, not clipped. It depends on nothing but the arguments.
    """
    assert tile.shape == base.shape, (tile.shape, base.shape)
    assert method in get_args(ColourLock), method
    if method == "wavelet":
        return tile + _low(base - tile)
    if method == "adain":
        (mean, spread), (wanted_mean, wanted_spread) = _moments(tile), _moments(base)
        contrast = torch.where(spread > _FLAT, wanted_spread / spread.clamp_min(_FLAT), 1)
        return (tile - mean) * contrast + wanted_mean
    return tile


@torch.no_grad()
def colour_drift(tile: Tensor, base: Tensor) -> float:
    """The largest difference in colour between large parts of a tile and its base, in levels of 255."""
    return float(_low(tile - base).abs().max()) * LEVELS


def _moments(image: Tensor) -> tuple[Tensor, Tensor]:
    return image.mean((1, 2), keepdim=True), image.std((1, 2), correction=0, keepdim=True)


def _low(image: Tensor) -> Tensor:
    """The low-frequency band of (3, h, w): constants and slopes are in it whole, up to the borders."""
    _, h, w = image.shape
    sigma = max(LEAST_SIGMA, min(h, w) / SIGMAS_PER_SIDE)
    cell = int(sigma / _CELLS_PER_SIGMA)
    cells = F.avg_pool2d(image, cell, ceil_mode=True)
    down, across = (_smoother(side, cell, sigma, image.device) for side in (h, w))
    return down @ cells @ across.T


@lru_cache(maxsize=16)
def _smoother(length: int, cell: int, sigma: float, device: torch.device) -> Tensor:
    """(length, cells): from an axis's means over cells, the value of a line fitted around each of its pixels.

    The fit is weighted by a Gaussian (Cleveland, "Robust locally weighted regression", JASA 74, 1979). Away from the
    borders that is a convolution with it; at them, where a Gaussian alone would lean towards the inside, slopes stay.
    """
    starts = np.arange(0, length, cell)
    widths = np.minimum(cell, length - starts)
    offsets = starts + (widths - 1) / 2 - np.arange(length)[:, None]
    weights = np.where(np.abs(offsets) <= _REACH * sigma, widths * np.exp(-0.5 * (offsets / sigma) ** 2), 0)
    total, lean, spread = (np.sum(weights * offsets**k, axis=1, keepdims=True) for k in range(3))
    if len(starts) > 1:  # through a single cell any line would go
        weights = weights * (spread - lean * offsets)
        total = weights.sum(1, keepdims=True)
    return torch.from_numpy((weights / total).astype(np.float32)).to(device)
