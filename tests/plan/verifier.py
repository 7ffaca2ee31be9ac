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


def weights(length: int, ramps: Sequence[Span], closed: bool = False) -> np.ndarray:
    """(tiles, length): the weight of each tile along one axis.

    Closed, the last ramp leads from the last tile, past ``length``, to tile 0 of the next turn.
    """
    if closed:
        return closed_weights(length, ramps)
    table = np.zeros((len(ramps) + 1, length), np.int64)
    for x in range(length):
        passed = [256, *(rise(ramp, x) for ramp in ramps), 0]
        for i in range(len(ramps) + 1):
            table[i, x] = passed[i] - passed[i + 1]
    return table


def closed_weights(length: int, ramps: Sequence[Span]) -> np.ndarray:
    """Each tile's weight along the line that the circle is rolled off from, folded back onto the circle."""
    table = np.zeros((len(ramps), length), np.int64)
    start, stop = ramps[-1]
    before = [(start - length, stop - length), *ramps[:-1]]
    for i, (rising, falling) in enumerate(zip(before, ramps, strict=True)):
        for x in range(2 * length):
            table[i, x % length] += rise(rising, x) - rise(falling, x)
    return table


def plane_weights(
    width: int, height: int, x_ramps: Sequence[Span], y_ramps: Sequence[Span], closed: bool = False
) -> np.ndarray:
    """(tiles, height, width): the weight of each tile, row-major, at each pixel; ``closed`` in x."""
    across, down = weights(width, x_ramps, closed), weights(height, y_ramps)
    return np.stack([np.outer(wy, wx) for wy in down for wx in across])


def mosaic(
    width: int,
    height: int,
    corners: Sequence[tuple[int, int]],
    plane: np.ndarray,
    tiles: Mapping[int, np.ndarray],
    closed: bool = False,
) -> np.ndarray:
    """The weighted mean of whole tiles whose top left pixels lie at ``corners`` (x, y), halves rounded up."""
    total = np.zeros((height, width, tiles[0].shape[2]), np.int64)
    for i, (x, y) in enumerate(corners):
        seen = np.zeros((height, width), bool)
        for column in range(min(tiles[i].shape[1], width if closed else width - x)):
            part = tiles[i][: height - y, column].astype(np.int64)
            to = slice(y, y + len(part)), (x + column) % width
            total[to] += part * plane[i][to][:, None]
            seen[to] = True
        assert not plane[i][~seen].any(), f"tile {i} has weight where it has no pixels"
    return (total + 2**15) // 2**16
