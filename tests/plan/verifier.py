"""A second opinion on plans: everything pixel by pixel, from tile windows and ramps alone, in plain integers.

It shares no code with ``dino_ray.plan``: slow, and obvious.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

Span = tuple[int, int]


def rise(ramp: Span, x: int) -> int:
    """How much of 256 has passed to the tile after the seam, at pixel ``x``."""
    start, stop = ramp
    if x < start:
        return 0
    if x >= stop:
        return 256
    u = (x - start + Fraction(1, 2)) / (stop - start)
    level = int(256 * (3 * u**2 - 2 * u**3) + Fraction(1, 2))
    return min(max(level, 1), 255)


def weights(length: int, ramps: Sequence[Span]) -> np.ndarray:
    """(tiles, length): the weight of each tile along one axis."""
    table = np.zeros((len(ramps) + 1, length), np.int64)
    for x in range(length):
        passed = [256, *(rise(ramp, x) for ramp in ramps), 0]
        for i in range(len(ramps) + 1):
            table[i, x] = passed[i] - passed[i + 1]
    return table


def plane_weights(width: int, height: int, x_ramps: Sequence[Span], y_ramps: Sequence[Span]) -> np.ndarray:
    """(tiles, height, width): the weight of each tile, row-major, at each pixel."""
    across, down = weights(width, x_ramps), weights(height, y_ramps)
    return np.stack([np.outer(wy, wx) for wy in down for wx in across])


def mosaic(
    width: int,
    height: int,
    corners: Sequence[tuple[int, int]],
    plane: np.ndarray,
    tiles: Mapping[int, np.ndarray],
) -> np.ndarray:
    """The weighted mean of whole tiles whose top left pixels lie at ``corners`` (x, y), halves rounded up."""
    total = np.zeros((height, width, tiles[0].shape[2]), np.int64)
    for i, (x, y) in enumerate(corners):
        part = tiles[i][: height - y, : width - x].astype(np.int64)
        h, w = part.shape[:2]
        total[y : y + h, x : x + w] += part * plane[i, y : y + h, x : x + w, None]
        outside = plane[i].copy()
        outside[y : y + h, x : x + w] = 0
        assert not outside.any(), f"tile {i} has weight where it has no pixels"
    return (total + 2**15) // 2**16
