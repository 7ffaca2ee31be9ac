"""Tiles that have nothing to refine: skies, walls, blank paper."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLAT = 1.5 / 255
"""Standard deviation, of a range of 1, below which a block shows nothing: 8 bits' rounding and a faint gradient."""
NOISES = 1.5
"""A block with no more contrast than so many standard deviations of the source's noise shows that alone."""
BLOCK = 8
"""canvas_px of a block's side: smaller than what could be a thing on an empty ground."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601."""


def is_flat(base: NDArray[np.float32], noise: float) -> bool:
    """Whether no block of a tile shows anything.

    Parameters
    ----------
    base
        (h, w, 3) in [0, 1].
    noise
        Standard deviation of the source's noise, of a range of 1.
    """
    h, w = (max(BLOCK, side // BLOCK * BLOCK) for side in base.shape[:2])
    luma = (base * LUMA).sum(axis=-1)
    luma = np.pad(luma, [(0, max(0, h - luma.shape[0])), (0, max(0, w - luma.shape[1]))], mode="edge")
    blocks = luma[:h, :w].reshape(h // BLOCK, BLOCK, w // BLOCK, BLOCK)
    return bool(blocks.std(axis=(1, 3)).max() < max(FLAT, NOISES * noise))
