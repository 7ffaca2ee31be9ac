"""Lanczos-3 resampling whose every output pixel is the same number however the canvas is tiled.

Each axis is resampled by adding up its taps one after another, elementwise, in the order of the source: no
matrix product chooses an order of summation, so a tile has the same bits as the crop of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dino_ray.plan.geometry import Rect, Scaling

Array = NDArray[np.float32]

SUPPORT = 3
"""Lobes either side of the centre, in px of the coarser of the two frames (Duchon 1979)."""


def kernel(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Lanczos-3 window times sinc at ``x``, which is in px of the coarser frame."""
    values = np.sinc(x) * np.sinc(x / SUPPORT)
    return np.asarray(np.where(np.abs(x) < SUPPORT, values, 0.0))


@dataclass(frozen=True)
class Taps:
    """One axis of a resampling: which source samples make each output sample, and by what weights."""

    first: NDArray[np.intp]
    """(n,) source_px of each output's first tap; outside the source, readers replicate edges."""
    weights: Array
    """(n, taps); each row sums to 1."""


def axis_taps(start: int, stop: int, source_length: int, canvas_length: int) -> Taps:
    """Taps of the outputs ``[start, stop)``, canvas_px, of an axis scaled between two lengths."""
    ratio = source_length / canvas_length
    spread = max(ratio, 1.0)  # reducing widens the kernel over the source: antialiasing
    # From integers, so that an output pixel gets the same double in whichever tile it is asked for.
    outputs = np.arange(start, stop, dtype=np.int64)
    centres = ((2 * outputs + 1) * source_length / (2 * canvas_length)) - 0.5
    reach = SUPPORT * spread
    first = np.ceil(centres - reach).astype(np.intp)
    n_taps = math.floor(2 * reach) + 1
    offsets = first[:, None] + np.arange(n_taps) - centres[:, None]
    weights = kernel(offsets / spread)
    weights /= weights.sum(axis=1, keepdims=True)
    return Taps(first, weights.astype(np.float32))


def _apply(rows: Array, taps: Taps, origin: int) -> Array:
    """Resample axis 0 of ``rows`` (n, w, c), whose first sample is source_px ``origin``."""
    count = taps.weights.shape[1]
    assert origin <= taps.first[0], "the window starts too late"
    assert taps.first[-1] + count <= origin + len(rows), "the window ends too early"
    total = np.zeros((len(taps.first), *rows.shape[1:]), np.float32)
    for tap in range(count):
        total += taps.weights[:, tap, None, None] * rows[taps.first + (tap - origin)]
    return total


class Lanczos:
    """Lanczos-3 resampling to any size, antialiased when reducing; an :class:`~dino_ray.upsample.Upsampler`.

    Takes any number of channels.
    """

    def halo(self, scaling: Scaling) -> int:
        """Source_px that a window needs around what it covers."""
        spread = max(1 / scaling.factor_x, 1 / scaling.factor_y, Fraction(1))
        return math.ceil(SUPPORT * spread) + 1

    def __call__(self, window: Array, window_rect: Rect, rect: Rect, scaling: Scaling) -> Array:
        """See :class:`~dino_ray.upsample.Upsampler`."""
        down = axis_taps(rect.y, rect.y + rect.h, scaling.source_h, scaling.canvas_h)
        across = axis_taps(rect.x, rect.x + rect.w, scaling.source_w, scaling.canvas_w)
        tall = _apply(np.ascontiguousarray(window, np.float32), down, window_rect.y)
        wide = _apply(np.ascontiguousarray(tall.transpose(1, 0, 2)), across, window_rect.x)
        return np.ascontiguousarray(wide.transpose(1, 0, 2))
