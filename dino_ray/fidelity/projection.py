"""Reducing and enlarging along one axis of a tile, as small dense matrices: a few products per tile on any device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_ray.upsample.lanczos import Kernel, Taps, axis_taps

_CACHED = 32
"""Axes kept: enough for the phases that tiles have at a common scale, and for their borders. One of 1024 px
takes up to 12 MiB."""


@dataclass(frozen=True, eq=False)
class AxisProjection:
    """One axis between a tile's ``length`` canvas pixels and the ``n`` source pixels whose centres lie in it.

    All matrices are float32. D is reducing and U enlarging, both of the unbounded axis.
    """

    first: int
    """source_px, the first of the ``n``."""
    whole: tuple[int, int]
    """Which of the ``n``, half-open, are made of the tile's pixels alone."""
    reduce: Tensor
    """(n, length): D, as far as the tile goes."""
    enlarge: Tensor
    """(length, n): U, of nothing but the ``n``."""
    there_and_back: Tensor
    """(n, n): ``reduce`` after ``enlarge``."""
    seen: tuple[int, int]
    """First and number, source_px, of the m pixels that D after U looks at."""
    everywhere: Tensor
    """(n, m): D after U."""
    in_tile: Tensor
    """(n, m): D after U, as far as the tile goes."""

    @property
    def n(self) -> int:
        return self.reduce.shape[0]


def axis_projection(
    start: int,
    stop: int,
    source: int,
    canvas: int,
    kernel: Kernel,
    device: torch.device,
    *,
    closed: bool = False,
) -> AxisProjection:
    """The axis of a tile; made once for all tiles that lie alike.

    Parameters
    ----------
    start, stop
        The tile's pixels, canvas_px, half-open; they may stick out of the canvas.
    source, canvas
        Lengths of the whole axis in the two frames, the second not smaller than the first.
    kernel
        By which D and U resample.
    closed
        The axis closes on itself. Else both frames go on as their edge pixels.
    """
    if not closed and (start <= 0 or stop >= canvas):
        return _make(start, stop, source, canvas, True, kernel, device)
    # With no border in sight, only how its pixels lie to the source's tells one tile from another.
    common = math.gcd(source, canvas)
    source, canvas = source // common, canvas // common
    turns = start // canvas
    made = _make(start - turns * canvas, stop - turns * canvas, source, canvas, False, kernel, device)
    shift = turns * source
    return replace(made, first=made.first + shift, seen=(made.seen[0] + shift, made.seen[1]))


@lru_cache(maxsize=_CACHED)
def _make(
    start: int, stop: int, source: int, canvas: int, bordered: bool, kernel: Kernel, device: torch.device
) -> AxisProjection:
    """The matrices of one tile; ``bordered`` where the image ends at 0 and at ``canvas``."""
    # A centre lies at (k + 1/2) canvas / source, and the tile's first does not lie before ``start``: a ceiling.
    first, end = (-(-(2 * edge * source - canvas) // (2 * canvas)) for edge in (start, stop))
    if bordered:
        first = min(max(first, 0), source)
        end = max(min(end, source), first)
    down = axis_taps(first, end, canvas, source, kernel)
    low, high = _span(down, canvas if bordered else None, (start, stop))
    up = axis_taps(low, high, source, canvas, kernel)
    seen, seen_end = _span(up, source if bordered else None, (first, end))
    reduce = _dense(down, canvas if bordered else None, low, high)
    enlarge = _dense(up, source if bordered else None, seen, seen_end)
    tile = slice(start - low, stop - low)
    inside = np.flatnonzero(np.count_nonzero(reduce[:, tile], 1) == np.count_nonzero(reduce, 1))
    own = enlarge[tile, first - seen : end - seen]

    def there(matrix: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(matrix.astype(np.float32)).to(device)

    return AxisProjection(
        first=first,
        whole=(int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0),
        reduce=there(reduce[:, tile]),
        enlarge=there(own),
        there_and_back=there(reduce[:, tile] @ own),
        seen=(seen, seen_end - seen),
        everywhere=there(reduce @ enlarge),
        in_tile=there(reduce[:, tile] @ enlarge[tile]),
    )


def _index(taps: Taps, length: int | None) -> NDArray[np.intp]:
    """(n, taps): the input of each tap; beyond 0 and ``length`` it is the edge's."""
    index = taps.first[:, None] + np.arange(taps.weights.shape[1])
    return index if length is None else index.clip(0, length - 1)


def _span(taps: Taps, length: int | None, around: tuple[int, int]) -> tuple[int, int]:
    """The inputs that any tap looks at and those that it lies ``around``, half-open."""
    index = _index(taps, length).ravel().tolist()
    start, stop = around
    return min([start, *index]), max([stop - 1, *index]) + 1


def _dense(taps: Taps, length: int | None, start: int, stop: int) -> NDArray[np.float64]:
    """Taps as a matrix, (n, stop - start), over inputs ``[start, stop)``."""
    index = _index(taps, length)
    matrix = np.zeros((len(index), stop - start))
    np.add.at(matrix, (np.arange(len(index))[:, None], index - start), taps.weights)
    return matrix
