"""Windows of a resized image, built from bounded reads of the original: no step holds the whole source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dino_ray.plan.geometry import Rect

Read = Callable[[Rect], NDArray[np.float32]]
"""Reads a window (source_px) as (h, w, 3) RGB in [0, 1].

It may stick out: edges are replicated, but for the left and the right one of a closed source, where it goes on.
"""

READ_SIDE = 1024
"""No read is larger than this on a side: 12 MiB of float32 RGB."""

KEYS_A = -0.5
"""Free parameter of the cubic kernel (Keys 1981); -0.5 is what PIL and torch antialias with."""


@dataclass(frozen=True)
class Resized:
    """A source resized to ``width`` by ``height``, of which any window can be had.

    The filter is the antialiased bicubic of PIL and ``torch.nn.functional.interpolate(antialias=True)``.
    """

    read: Read
    source_width: int
    source_height: int
    width: int
    height: int
    closed: bool = False
    """The source closes on itself in x, and so does ``read``; then so does what is made of it."""

    def window(self, rect: Rect) -> NDArray[np.float32]:
        """(rect.h, rect.w, 3) in [0, 1]; ``rect`` in px of the resized image.

        Beyond it edges are replicated, or, to the left and the right of a closed one, it goes on.
        """
        if (self.width, self.height) == (self.source_width, self.source_height):
            return self.read(rect)
        xs = np.arange(rect.x, rect.x + rect.w)
        if not self.closed:
            xs = np.clip(xs, 0, self.width - 1)
        ys = np.clip(np.arange(rect.y, rect.y + rect.h), 0, self.height - 1)
        columns = _taps(xs, self.width, self.source_width, self.closed)
        rows = _taps(ys, self.height, self.source_height)
        out = np.zeros((rect.h, rect.w, 3), np.float32)
        for top, bottom in _blocks(rows):
            vertical = rows.matrix(top, bottom)
            band = slice(*_occupied(vertical))
            for left, right in _blocks(columns):
                horizontal = columns.matrix(left, right)
                run = slice(*_occupied(horizontal))
                block = self.read(Rect(left, top, right - left, bottom - top))
                narrowed = np.einsum("cw,hwk->hck", horizontal[run], block, optimize=True)
                out[band, run] += np.einsum("rh,hck->rck", vertical[band], narrowed, optimize=True)
        return np.clip(out, 0, 1)


@dataclass(frozen=True)
class _Taps:
    """Which source samples each output sample is made of along one axis: (n, taps) indices and weights."""

    index: NDArray[np.int64]
    weight: NDArray[np.float32]

    def matrix(self, start: int, stop: int) -> NDArray[np.float32]:
        """The part of the resize that reads source samples start..stop: (n, stop - start)."""
        dense = np.zeros((len(self.index), stop - start), np.float32)
        output, tap = np.nonzero((self.index >= start) & (self.index < stop) & (self.weight != 0))
        dense[output, self.index[output, tap] - start] = self.weight[output, tap]
        return dense


def _taps(outputs: NDArray[np.int64], length: int, source_length: int, closed: bool = False) -> _Taps:
    ratio = source_length / length
    stretch = max(
        1.0, ratio
    )  # reducing widens the kernel to the new pixel's footprint, which is the antialiasing
    centre = (outputs + 0.5) * ratio
    first = np.floor(centre - 2 * stretch).astype(np.int64)
    index = first[:, None] + np.arange(int(np.ceil(4 * stretch)) + 2)
    weight = _cubic((index + 0.5 - centre[:, None]) / stretch)
    if not closed:
        weight[(index < 0) | (index >= source_length)] = 0
    weight /= weight.sum(axis=1, keepdims=True)
    return _Taps(index, weight.astype(np.float32))


def _cubic(t: NDArray[np.float64]) -> NDArray[np.float64]:
    t = np.abs(t)
    inner = ((KEYS_A + 2) * t - (KEYS_A + 3)) * t * t + 1
    outer = KEYS_A * (((t - 5) * t + 8) * t - 4)
    return np.where(t < 1, inner, np.where(t < 2, outer, 0.0))


def _blocks(taps: _Taps) -> list[tuple[int, int]]:
    """The source interval that ``taps`` read, cut so that no piece exceeds `READ_SIDE`."""
    used = taps.index[taps.weight != 0]
    start, stop = int(used.min()), int(used.max()) + 1
    # Cuts sit at multiples of the block, so that neighbouring windows ask a store for the same chunks.
    edges = [start, *range((start // READ_SIDE + 1) * READ_SIDE, stop, READ_SIDE), stop]
    return list(pairwise(edges))


def _occupied(matrix: NDArray[np.float32]) -> tuple[int, int]:
    """Half-open range of rows that are not all zero."""
    rows = np.flatnonzero(matrix.any(axis=1))
    return (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
