"""How grainy a source is: what its pixels may be wrong by, so that nobody is held to it. NumPy only.

*Noise* is measured where there is least else: by Immerkær's mask ("Fast noise variance estimation", CVIU 64, 1996),
which is blind to slopes and to straight edges, in small blocks, of which those that answer least are believed; and by
the median of its answers (Donoho, "De-noising by soft-thresholding", IEEE Transactions on Information Theory 41, 1995).
*Blocks*, what a JPEG is off by, show as steps across its lattice that are larger than those elsewhere (Wang, Sheikh and
Bovik, "No-reference perceptual quality assessment of JPEG compressed images", ICIP 2002).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_ray.plan.frames import Rect

Array = NDArray[np.float32]
Read = Callable[[Rect], Array]
"""Reads a window (source_px; where it sticks out, edges are replicated) as (h, w, 3) RGB in [0, 1]."""

LATTICE = 8
"""Source_px of a JPEG's block (ITU-T T.81)."""

WINDOW = 128
"""Source_px on a side of what is read at once, a multiple of `LATTICE`."""
WINDOWS_PER_AXIS = 4
"""At most: 16 windows have 784 blocks, of which the 78 flattest give the noise to a few per cent."""

_BLOCK = 16
"""Source_px on a side of a block whose noise is measured: small enough to lie between edges."""
_FLATTEST = 0.1
"""The quantile of blocks, by their noise, that is believed: so much of sky, wall and blur most photographs have."""
_FLATTEST_READS = 0.87
"""What that quantile gives of white noise of 1, where all blocks are flat."""
_MASK_NORM = 6
"""By which Immerkær's mask, (1, -2, 1) down and across, makes white noise larger."""
_CLIPPED = 0.02
"""A block with a larger share of samples at 0 or 1 says nothing: clipping has cut its noise off."""

_TO_SIGMA = 1.4826
"""The standard deviation of a normal distribution, in medians of its absolute value."""
_CHANCE = 1.1
"""By how much one phase of a photograph's steps may exceed all others when there is no lattice: 1.1 was seen, in one
direction."""
_CHANCE_OF_FEW = 2.0
"""More than that by this over the root of the number of steps: two standard deviations of a median."""
_STEP_TO_ERROR = 0.7
"""The error of a JPEG, as a standard deviation, in units of its excess steps: 0.53 to 1.0, and 1.5 where half the
picture is sky, over photographs, reduced ones, and qualities from 60 to 90."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601: the plane whose blocks are 8 px in every JPEG."""


WORN_NOISE, WORN_BLOCKS = 2.8 / 255, 1.8 / 255
"""From either on, or from less of both, a source is worn: about where the net for such becomes the better one, on
painted pictures with noise alone and with JPEG alone (``scripts/bench/worn.py``)."""


@dataclass(frozen=True)
class Grain:
    """By how much a source's pixels are off, as standard deviations in units of its range [0, 1]."""

    noise: float
    """Of what differs from pixel to pixel."""
    blocks: float
    """Of what JPEG's quantisation left, block by block."""

    @property
    def sigma(self) -> float:
        """Of both: how far a reduced result may be from the source without being wrong."""
        return math.hypot(self.noise, self.blocks)

    @property
    def worn(self) -> bool:
        """Whether its grain would be taken for detail."""
        return math.hypot(self.noise / WORN_NOISE, self.blocks / WORN_BLOCKS) >= 1


CLEAN = Grain(0.0, 0.0)
"""Of a source whose every pixel counts."""


def measure_grain(read: Read, width: int, height: int) -> Grain:
    """Measure a source in up to 16 windows, spread over it.

    Parameters
    ----------
    read
        Windows of the source. Called with none larger than `WINDOW` and none that sticks out.
    width, height
        Of the source, source_px.

    Returns
    -------
    Grain
        The same for the same source. 0 where it is too small to tell.
    """
    places = [Rect(x, y, w, h) for y, h in _places(height) for x, w in _places(width)]
    windows = [np.asarray(read(place), np.float32) for place in places]
    lumas = [window @ LUMA for window in windows]
    across, down = _lattice_step(lumas), _lattice_step([luma.T for luma in lumas])
    # A JPEG's lattice has both directions; what repeats in one alone is in the picture.
    return Grain(_noise(windows), _STEP_TO_ERROR * math.sqrt(across * down))


def _places(length: int) -> list[tuple[int, int]]:
    """(start, length) of the windows along an axis: all of it, or spread evenly; on multiples of `LATTICE`."""
    count = min(WINDOWS_PER_AXIS, -(-length // WINDOW))
    gap = max(0, length - count * WINDOW) / (count + 1)
    starts = [int((i + 1) * gap + i * WINDOW) // LATTICE * LATTICE for i in range(count)]
    return [(start, min(WINDOW, length - start)) for start in starts]


def _noise(windows: list[Array]) -> float:
    """The noise of the flattest blocks, over all channels."""
    sigmas = np.concatenate([_noise_of_blocks(window) for window in windows])
    channels = [column[np.isfinite(column)] for column in sigmas.T]
    flattest = [np.quantile(known, _FLATTEST) if len(known) else 0.0 for known in channels]
    return float(np.sqrt(np.mean(np.square(flattest)))) / _FLATTEST_READS


def _noise_of_blocks(window: Array) -> Array:
    """(blocks, 3): standard deviations; NaN for what is clipped."""
    if min(window.shape[:2]) < _BLOCK + 2:  # the mask needs a pixel around
        return np.empty((0, 3), np.float32)
    bent = window[:-2] - 2 * window[1:-1] + window[2:]
    bent = bent[:, :-2] - 2 * bent[:, 1:-1] + bent[:, 2:]
    clipped = (window <= 0) | (window >= 1)
    sigmas = _TO_SIGMA / _MASK_NORM * np.median(np.abs(_in_blocks(bent)), axis=1)
    lost = _in_blocks(clipped[1:-1, 1:-1]).mean(axis=1) > _CLIPPED
    return np.where(lost, np.float32(np.nan), sigmas)


def _in_blocks(planes: NDArray[Any]) -> NDArray[Any]:
    """(h, w, c) as (blocks, pixels of a block, c), without what is left over."""
    rows, columns = planes.shape[0] // _BLOCK, planes.shape[1] // _BLOCK
    whole = planes[: rows * _BLOCK, : columns * _BLOCK]
    blocks = whole.reshape(rows, _BLOCK, columns, _BLOCK, -1).swapaxes(1, 2)
    return blocks.reshape(rows * columns, _BLOCK**2, -1)


def _lattice_step(lumas: list[Array]) -> float:
    """By how much steps across a lattice's lines exceed those elsewhere, as a standard deviation; 0 if by chance.

    ``lumas``, (h, w) each, start on multiples of `LATTICE` columns. The lattice may lie at any phase, for a JPEG may
    have been cropped.
    """
    # A step is what a pair of neighbours differs by, less what the pairs on either side of it do: slopes have none.
    bends = [np.diff(luma, axis=1) for luma in lumas]
    steps = [np.abs(d[:, 1:-1] - (d[:, :-2] + d[:, 2:]) / 2) for d in bends]
    by_phase = [np.concatenate([s[:, phase::LATTICE].ravel() for s in steps]) for phase in range(LATTICE)]
    count = min(len(values) for values in by_phase)
    if count == 0:
        return 0.0
    sigmas = np.array([_TO_SIGMA * np.median(values) for values in by_phase])
    best = int(sigmas.argmax())
    # The pairs beside a line contain half of its step.
    others = np.delete(sigmas, [(best + near) % LATTICE for near in (-1, 0, 1)])
    by_chance = (_CHANCE + _CHANCE_OF_FEW / math.sqrt(count)) * others.max()
    return math.sqrt(max(0.0, float(sigmas[best] ** 2 - by_chance**2)))
