"""The position-keyed latent noise field.

Noise belongs to a place, not to a tile: there is one field of unit normal noise over the latents of the whole
canvas, and every tile crops its own window of it. Overlapping tiles see the same noise, and the field depends
on nothing but its seed: not on the tiling, the order of work, or the number of workers.

The field is cut into blocks, each drawn from its own stretch of the counter-based generator Philox 4x64-10
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). Key and counter are 64-bit words, lowest
first::

    key      seed, _DOMAIN
    counter  0, 0, block column, block row

Drawing counts up the two low words, which 2 ** 128 draws do not fill, so no block ever runs into another.
Within a block channels come slowest; the first channels do not depend on how many there are.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from dino_ray.plan.geometry import Rect

BLOCK = 32
"""Block side, latent samples.

Setting up a generator costs about as much as drawing 1,000 samples, little beside the 16,384 of a block with
16 channels; larger blocks would make a tile of 128 × 128 draw much that it crops away.
"""

MAX_SEED = 2**64 - 1

_DOMAIN = 0x6C6174656E74
"""Second key word, ASCII "latent": other fields from the same seed would take another."""


def field(seed: int, channels: int, rect: Rect, period: int | None = None) -> NDArray[np.float32]:
    """Crop the noise field of one seed.

    Parameters
    ----------
    seed
        0 ... ``MAX_SEED``.
    channels
        Latent channels.
    rect
        latent; from the origin on, without bound to the right and the bottom.
    period
        latent; the field closes on itself in x: its columns ``[0, period)`` come again and again, in both
        directions. Blocks are cut off where it closes, so it need be no multiple of theirs.

    Returns
    -------
    ndarray
        float32 (channels, rect.h, rect.w), independent unit normals.
    """
    assert 0 <= seed <= MAX_SEED
    if period is not None:
        parts = [field(seed, channels, part) for part in rect.turns(period)]
        return np.concatenate([np.empty((channels, rect.h, 0), np.float32), *parts], axis=2)
    assert min(rect.x, rect.y) >= 0, rect
    out = np.empty((channels, rect.h, rect.w), np.float32)
    rows = range(rect.y // BLOCK, -(-rect.y1 // BLOCK))
    cols = range(rect.x // BLOCK, -(-rect.x1 // BLOCK))
    for row, col in product(rows, cols):
        place = Rect(col * BLOCK, row * BLOCK, BLOCK, BLOCK)
        part = place.intersect(rect)
        if part is not None:
            y, x = part.shift(-place.x, -place.y).slices
            to_y, to_x = part.shift(-rect.x, -rect.y).slices
            out[:, to_y, to_x] = _block(seed, channels, row, col)[:, y, x]
    return out


def _block(seed: int, channels: int, row: int, col: int) -> NDArray[np.float32]:
    key = np.array([seed, _DOMAIN], np.uint64)
    counter = np.array([0, 0, col, row], np.uint64)
    normals = np.random.Generator(np.random.Philox(key=key, counter=counter))
    return normals.standard_normal((channels, BLOCK, BLOCK), np.float32)
