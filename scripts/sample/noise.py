"""Noise at any point of the plane, and the small functions that shaders are made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def noise(x: Array, y: Array, seed: int) -> Array:
    """Gradient noise (Perlin 2002), about -0.7 to 0.7."""
    left, top = np.floor(x), np.floor(y)
    fx, fy = x - left, y - top
    column, row = left.astype(np.int64), top.astype(np.int64)

    def corner(dx: int, dy: int) -> Array:
        # A hash of the lattice point, by odd multipliers and shifts, is the direction of its gradient.
        code = ((column + dx) * 374761393 + (row + dy) * 668265263 + seed * 974711) & 0xFFFFFFFF
        code = ((code ^ (code >> 13)) * 1274126177) & 0xFFFFFFFF
        angle = (code ^ (code >> 16)) * (2 * np.pi / 2**32)
        return np.cos(angle) * (fx - dx) + np.sin(angle) * (fy - dy)

    u, v = (t * t * t * (t * (t * 6 - 15) + 10) for t in (fx, fy))
    upper = corner(0, 0) * (1 - u) + corner(1, 0) * u
    lower = corner(0, 1) * (1 - u) + corner(1, 1) * u
    return (upper * (1 - v) + lower * v).astype(np.float32)


def fractal(x: Array, y: Array, seed: int, octaves: int) -> Array:
    """Octaves of noise, each twice as fine and half as strong."""
    return sum(noise(x * 2**i, y * 2**i, seed + i) / 2**i for i in range(octaves))


def ridges(x: Array, y: Array, seed: int, octaves: int) -> Array:
    """Ridged multifractal (Musgrave 1994): crests where noise crosses zero, rough on top; 0 to about 2."""
    total, weight = np.zeros_like(x), np.ones_like(x)
    for i in range(octaves):
        crest = np.square((1 - 1.6 * np.abs(noise(x * 2**i, y * 2**i, seed + i))).clip(0, 1)) * weight
        total += crest / 2**i
        weight = (1.9 * crest).clip(0, 1)
    return total


def smooth(low: float, high: float, t: Array) -> Array:
    """0 at ``low``, 1 at ``high``, level at both."""
    s = np.clip((t - low) / (high - low), 0, 1)
    return s * s * (3 - 2 * s)


def mixed(a: Array, b: Array, t: Array) -> Array:
    """Colours (..., 3): ``a`` where ``t`` is 0, ``b`` where it is 1."""
    return a + (b - a) * t[..., None]
