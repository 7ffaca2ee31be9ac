"""Where a picture has structure that must not change, after what DINO makes of it: faces, lettering, edges of things.

There neighbouring patches differ; over sky, skin, grass or a wall, however finely textured, they are alike. So
structure is how much a patch of the fine level differs from its neighbours, on the scale of the model's calibration.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dino_ray.dino.calibration import Calibration, difference_from_neighbours
from dino_ray.dino.features import FeatureLevel

STRIP_BYTES = 32 * 2**20
"""The map is worked on in strips of rows of about this size, for it may be hundreds of megabytes."""


def structure(fine: FeatureLevel, calibration: Calibration) -> FeatureLevel:
    """The structure of a source.

    Returns
    -------
    FeatureLevel
        One channel, on the lattice of ``fine``: 0 where nothing but texture is, 1 where all is structure.
    """
    low, high = calibration.structure
    rows = max(1, STRIP_BYTES // max(1, fine.tokens[0].nbytes))
    strips = []
    for top in range(0, len(fine.tokens), rows):
        # With a row from either neighbour, so that strips meet as if there were none.
        before, after = max(0, top - 1), min(len(fine.tokens), top + rows + 1)
        difference = difference_from_neighbours(fine.tokens[before:after].astype(np.float32), fine.closed)
        strips.append(difference[top - before : top - before + rows])
    level = np.clip((np.concatenate(strips) - low) / (high - low), 0, 1)
    tokens = level[..., None].astype(np.float16)
    return FeatureLevel(tokens, fine.x0, fine.y0, fine.dx, fine.dy, fine.closed)


def change_map(
    level: FeatureLevel, box: tuple[float, float, float, float], rows: int, cols: int, adaptive: float
) -> NDArray[np.float32]:
    """How much a tile may change, from place to place.

    Parameters
    ----------
    level
        Of ``structure``.
    box
        The tile as (x, y, w, h) in source_px, continuous.
    rows, cols
        Of the map, laid evenly over the tile.
    adaptive
        In [0, 1]: what part of the change is withheld where all is structure.

    Returns
    -------
    (rows, cols) in [1 - adaptive, 1]: by what the noise level that is asked for is to be multiplied there.
    """
    x, y, w, h = box
    xs = x + (np.arange(cols, dtype=np.float64) + 0.5) / cols * w
    ys = y + (np.arange(rows, dtype=np.float64) + 0.5) / rows * h
    allowed: NDArray[np.float32] = 1 - np.float32(adaptive) * level.sample(xs, ys)[..., 0]
    return allowed
