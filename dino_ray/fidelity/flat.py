"""Tiles that have nothing to refine: skies, walls, blank paper."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dino_ray.fidelity.grain import LUMA
from dino_ray.plan.geometry import Scaling

FLAT = 1.5 / 255
"""Standard deviation, of a range of 1, below which a block shows nothing: 8 bits' rounding and a faint gradient."""
NOISES = 1.5
"""A block with no more contrast than so many standard deviations of the source's noise shows that alone."""
BLOCK = 8
"""canvas_px of a block's side, at least: smaller than what could be a thing on an empty ground."""
SOURCE_BLOCK = 4
"""source_px of it, at least: within fewer even an edge is a faint gradient, once it is enlarged enough."""


def block_side(scaling: Scaling) -> int:
    """canvas_px of a block's side at this enlargement."""
    return max(BLOCK, math.ceil(SOURCE_BLOCK * max(scaling.factor_x, scaling.factor_y)))


def is_flat(base: NDArray[np.float32], noise: float, block: int = BLOCK) -> bool:
    """Whether no block of a tile shows anything.

    Parameters
    ----------
    base
        (h, w, 3) in [0, 1].
    noise
        Standard deviation of the source's noise, of a range of 1.
    block
        Side of a block, canvas_px; the last ones are completed by reflection.
    """
    luma = (base * LUMA).sum(axis=-1)
    luma = np.pad(luma, [(0, -side % block) for side in luma.shape], mode="symmetric")
    rows, cols = (side // block for side in luma.shape)
    contrasts = luma.reshape(rows, block, cols, block).std(axis=(1, 3))
    return bool(contrasts.max() < max(FLAT, NOISES * noise))
