"""Taking a tile back to its base where it has drifted, without an edge that shows."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

REACH = 8
"""canvas_px by which a mended area is wider than the patches that told of it: what was drawn goes on beyond them."""
FEATHER = 12
"""canvas_px over which base and tile are blended, outside of that."""


def mask_around(area: Tensor) -> Tensor:
    """How much of the base a mended tile takes.

    Parameters
    ----------
    area
        (h, w) of 0 and 1: where the tile has drifted.

    Returns
    -------
    (h, w) in [0, 1]: 1 up to ``REACH`` px around the area, from there smoothly to 0 within ``FEATHER`` px.
    """
    spread = REACH + FEATHER // 2
    wide = F.max_pool2d(area[None], 2 * spread + 1, stride=1, padding=spread)
    half = FEATHER // 2
    padded = F.pad(wide, (half, half, half, half), mode="replicate")
    mean = F.avg_pool2d(padded, 2 * half + 1, stride=1)[0].clamp(0, 1)
    smooth: Tensor = mean * mean * (3 - 2 * mean)
    return smooth


def blend(tile: Tensor, base: Tensor, mask: Tensor) -> Tensor:
    """Tile and base (3, h, w) by ``mask`` (h, w): where it is 1 the base, to the bit; where it is 0 the tile."""
    mixed = tile + mask * (base - tile)
    return base.where(mask == 1, mixed)
