"""Lanczos-3 resampling whose every output pixel is the same number however the canvas is tiled.

Taps come from integers, and each axis is resampled by adding them up one after another, elementwise, in the order
of the source: no matrix product chooses an order of summation, so a tile has the same bits as the crop of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dino_ray.plan.geometry import Rect, Scaling

Array = NDArray[np.float32]

SUPPORT = 3
"""Lobes either side of the centre, in px of the coarser of the two frames (Duchon 1979)."""

BLOCK_BYTES = 192 * 1024
"""Rows are worked on in blocks of about this size: three of them fit a core's cache, and calls stay few."""


def kernel(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Lanczos-3 window times sinc at ``x``, which is in px of the coarser frame."""
    values = np.sinc(x) * np.sinc(x / SUPPORT)
    on_samples = x == np.rint(x)  # there sinc is 0 or 1 and numpy's is 4e-17: a scale of 1 must change no bit
    return np.asarray(np.where(np.abs(x) < SUPPORT, np.where(on_samples, x == 0, values), 0.0))


KEYS_A = -0.5
"""Free parameter of the cubic kernel: the one that reproduces parabolas (Keys 1981), and that PIL reduces by."""


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic convolution kernel of Keys (1981) at ``x``, which is in px of the coarser frame."""
    t = np.abs(x)
    inner = ((KEYS_A + 2) * t - (KEYS_A + 3)) * t * t + 1
    outer = KEYS_A * (((t - 5) * t + 8) * t - 4)
    return np.where(t < 1, inner, np.where(t < 2, outer, 0.0))


@dataclass(frozen=True)
class Kernel:
    """A weight by distance, in px of the coarser of the two frames."""

    weigh: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    support: int
    """It is 0 from here on, on either side."""


LANCZOS = Kernel(kernel, SUPPORT)
CUBIC = Kernel(cubic, 2)


@dataclass(frozen=True)
class Taps:
    """One axis of a resampling: which source samples make each output sample, and by what weights."""

    first: NDArray[np.intp]
    """(n,) source_px of each output's first tap; outside the source, readers replicate edges."""
    weights: Array
    """(n, taps); each row sums to 1."""


def axis_taps(
    start: int, stop: int, source_length: int, canvas_length: int, kernel: Kernel = LANCZOS
) -> Taps:
    """Taps of the outputs ``[start, stop)``, canvas_px, of an axis scaled between two lengths by ``kernel``."""
    coarser = max(source_length, canvas_length)  # reducing widens the kernel over the source: antialiasing
    # In units of 1 / (2 canvas_length) source_px all of it is integers, so that an output pixel gets the same taps
    # in whichever tile it is asked for, and pixels of one phase get the same weights.
    unit = 2 * canvas_length
    outputs = np.arange(start, stop, dtype=np.int64)
    centres = (2 * outputs + 1) * source_length - canvas_length
    reach = 2 * kernel.support * coarser
    first = (centres - reach) // unit + 1  # strictly inside: at the ends of its support the kernel is 0
    n_taps = -(-2 * reach // unit)
    offsets = (first[:, None] + np.arange(n_taps)) * unit - centres[:, None]
    weights = kernel.weigh(offsets / (2 * coarser))
    weights /= weights.sum(axis=1, keepdims=True)
    return Taps(first.astype(np.intp), weights.astype(np.float32))


def _apply(rows: Array, taps: Taps, origin: int) -> Array:
    """Resample axis 0 of ``rows`` (n, w, c), C-contiguous, whose first sample is source_px ``origin``."""
    count = taps.weights.shape[1]
    assert origin <= taps.first[0], "the window starts too late"
    assert taps.first[-1] + count <= origin + len(rows), "the window ends too early"
    flat = rows.reshape(len(rows), -1)
    made = np.empty((len(taps.first), flat.shape[1]), np.float32)
    block = max(1, BLOCK_BYTES // max(1, flat[0].nbytes))
    term = np.empty((block, flat.shape[1]), np.float32)
    for y in range(0, len(made), block):
        first, weights = taps.first[y : y + block] - origin, taps.weights[y : y + block]
        total = made[y : y + block]
        for tap in range(count):
            part = term[: len(total)] if tap else total
            # "clip" never has to, as asserted above; "raise" would gather into a buffer of its own first.
            np.take(flat, first + tap, axis=0, out=part, mode="clip")
            part *= weights[:, tap, None]
            if tap:
                total += part
    return made.reshape(-1, *rows.shape[1:])


class Lanczos:
    """Lanczos-3 resampling to any size, antialiased when reducing; an :class:`~dino_ray.upsample.Upsampler`.

    Takes any number of channels.
    """

    linear = True

    def suited(self, worn: bool) -> Lanczos:
        """See :class:`~dino_ray.upsample.Upsampler`: to all sources alike."""
        return self

    def halo(self, scaling: Scaling) -> int:
        """Source_px that a window needs around what it covers."""
        spread = max(1 / scaling.factor_x, 1 / scaling.factor_y, Fraction(1))
        return math.ceil(SUPPORT * spread) + 1

    def __call__(self, window: Array, window_rect: Rect, rect: Rect, scaling: Scaling) -> Array:
        """See :class:`~dino_ray.upsample.Upsampler`."""
        down = axis_taps(rect.y, rect.y + rect.h, scaling.source_h, scaling.canvas_h)
        across = axis_taps(rect.x, rect.x + rect.w, scaling.source_w, scaling.canvas_w)
        # Across first: when enlarging, the second pass makes nearly all the pixels, and whole rows of them are
        # contiguous there. It works on columns laid out as rows.
        columns = np.ascontiguousarray(window.transpose(1, 0, 2), np.float32)
        wide = _apply(columns, across, window_rect.x)
        return _apply(np.ascontiguousarray(wide.transpose(1, 0, 2)), down, window_rect.y)
