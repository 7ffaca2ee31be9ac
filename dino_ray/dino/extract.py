"""DINO features of a whole image, at two levels, from windows of it.

*coarse*: the whole image at a long side of about 518 px, aspect kept: what the picture is of. *fine*: native
resolution in overlapping windows of about 518 px, averaged under a Hann window: what is where. Both cover
all of the image at any aspect ratio; nothing is ever cropped away.

A source that closes on itself in x gets levels that do: a whole number of tokens around, each seen by some
window with what lies on either side of it. No column is an edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_ray.dino.features import FeatureLevel, FeatureMap
from dino_ray.dino.resample import Read, Resized
from dino_ray.plan.geometry import Rect

__all__ = ["FeatureLevel", "FeatureMap", "FeatureModel", "Read", "extract"]

WINDOW_SIDE = 518
"""px: the largest side DINOv2 was trained at; rounded down to a multiple of the model's patch."""

BATCH = 4
"""Windows per forward pass. Fixed, since batching may change the last bits of a matrix product."""

FINE_BYTES = 512 * 2**20
"""Largest fine level (4096² under ViT-B takes 131 MB); a larger source is reduced first, by just enough."""

SMALLEST_RMS = 1e-6
"""Below this a token is left as the zero it is."""


class FeatureModel(Protocol):
    """What extraction asks of a model; `dino_ray.dino.loading.Dino` is one."""

    @property
    def name(self) -> str: ...

    @property
    def patch(self) -> int:
        """Side of a patch, px."""
        ...

    @property
    def dim(self) -> int: ...

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1], H and W multiples of ``patch``, to (B, rows, cols, dim) tokens."""
        ...


def extract(
    dino: FeatureModel,
    read: Read,
    width: int,
    height: int,
    *,
    closed: bool = False,
    fine_bytes: int = FINE_BYTES,
    on_window: Callable[[int, int], None] | None = None,
) -> FeatureMap:
    """The two-level feature map of a whole source, in memory that does not grow with it.

    Every token is scaled to a root mean square of 1 (an L2 norm of ``sqrt(dim)``), by itself and without
    centring: cosines stay what they were, DINO's few high-norm tokens drown no neighbour, and whatever reads
    the tokens sees one scale for every model and level.

    The coarse level is the source resized (antialiased bicubic), each side to the nearest multiple of the
    patch, so its tokens are not quite square in source_px; ``dx`` and ``dy`` say how much. The fine level is
    not resized: a source that is no multiple of the patch, down to a single pixel, is completed by
    replicating its right and bottom edges. A source smaller than a window is one smaller window.

    Around a closed source the lattice of tokens must close, too. So its width, where it is no multiple of the
    patch, is resized to the nearest one: by half a patch at most, which is 0.2 % around 4,000 px. Its coarse
    level is the Hann-weighted mean of views of the whole image cut open at different meridians.

    Parameters
    ----------
    read
        Windows of the source; never asked for more than `dino_ray.dino.resample.READ_SIDE` px a side.
    width, height
        Of the source, source_px.
    closed
        The source closes on itself in x: ``read`` goes around it, as `dino_ray.raster.wrapped.Wrapped` does.
    fine_bytes
        A fine level that would be larger is made from the source reduced to fit.
    on_window
        Called with (windows done, windows in all) after each batch of the fine level.
    """
    return FeatureMap(
        model=dino.name,
        width=width,
        height=height,
        coarse=_coarse(dino, read, width, height, closed),
        fine=_fine(dino, read, width, height, closed, fine_bytes, on_window),
    )


def _coarse(dino: FeatureModel, read: Read, width: int, height: int, closed: bool) -> FeatureLevel:
    side = WINDOW_SIDE // dino.patch
    longest = max(width, height)
    cols = max(1, round(side * width / longest))
    rows = max(1, round(side * height / longest))
    image = Resized(read, width, height, cols * dino.patch, rows * dino.patch, closed)
    if closed:
        tokens = _mean_over_windows(dino, image, rows, cols, None)
    else:
        whole = image.window(Rect(0, 0, image.width, image.height))
        tokens = _unit(_tokens(dino, [whole])[0]).astype(np.float16)
    dx, dy = width / cols, height / rows
    return FeatureLevel(tokens, x0=dx / 2, y0=dy / 2, dx=dx, dy=dy, closed=closed)


def _fine(
    dino: FeatureModel,
    read: Read,
    width: int,
    height: int,
    closed: bool,
    fine_bytes: int,
    on_window: Callable[[int, int], None] | None,
) -> FeatureLevel:
    image = _whole_or_reduced(dino, read, width, height, closed, fine_bytes)
    cols, rows = math.ceil(image.width / dino.patch), math.ceil(image.height / dino.patch)
    tokens = _mean_over_windows(dino, image, rows, cols, on_window)
    dx, dy = dino.patch * width / image.width, dino.patch * height / image.height
    return FeatureLevel(tokens, x0=dx / 2, y0=dy / 2, dx=dx, dy=dy, closed=closed)


def _whole_or_reduced(
    dino: FeatureModel, read: Read, width: int, height: int, closed: bool, fine_bytes: int
) -> Resized:
    """The source at its own size, or reduced until its tokens fit; a whole number of them around if closed."""
    cols, rows = math.ceil(width / dino.patch), math.ceil(height / dino.patch)
    around = max(1, round(width / dino.patch)) * dino.patch if closed else width
    allowed = fine_bytes // (dino.dim * np.dtype(np.float16).itemsize)
    if cols * rows <= allowed:
        return Resized(read, width, height, around, height, closed)
    shrink = math.sqrt(allowed / (cols * rows))
    cols, rows = max(1, int(cols * shrink)), max(1, int(rows * shrink))
    return Resized(read, width, height, cols * dino.patch, rows * dino.patch, closed)


def _mean_over_windows(
    dino: FeatureModel,
    image: Resized,
    rows: int,
    cols: int,
    on_window: Callable[[int, int], None] | None,
) -> NDArray[np.float16]:
    """Tokens of an image by the Hann-weighted mean of overlapping windows: (rows, cols, dim)."""
    patch = dino.patch
    across, down = _windows(cols, patch, image.closed), _windows(rows, patch)
    mean = _HannMean(rows, cols, dino.dim, down, across)
    places = [(top, left) for top in down.starts for left in across.starts]
    size = across.length * patch, down.length * patch
    for first in range(0, len(places), BATCH):
        batch = places[first : first + BATCH]
        pixels = [image.window(Rect(left * patch, top * patch, *size)) for top, left in batch]
        for place, tokens in zip(batch, _tokens(dino, pixels), strict=True):
            mean.add(place, _unit(tokens))
        if on_window is not None:
            on_window(first + len(batch), len(places))
    return mean.finish()


@dataclass(frozen=True)
class _Windows:
    """Overlapping windows along one axis of the lattice of tokens."""

    starts: tuple[int, ...]
    length: int


def _windows(tokens: int, patch: int, closed: bool = False) -> _Windows:
    """Windows half a window apart (252 of 518 px at a patch of 14); the last one ends with the lattice.

    Around a closed lattice they are evenly spaced, no farther apart than that, and go on past its end.
    """
    side = WINDOW_SIDE // patch
    if closed:
        length = min(side, tokens)
        count = -(-tokens // max(1, length // 2))
        return _Windows(tuple(i * tokens // count for i in range(count)), length)
    if tokens <= side:
        return _Windows((0,), tokens)
    return _Windows((*range(0, tokens - side, side // 2), tokens - side), side)


def even_starts(tokens: int, side: int) -> tuple[int, ...]:
    """Where the fewest windows of at most ``side`` tokens begin that cover ``tokens``, evenly spread."""
    count = -(-tokens // side)
    return tuple(i * (tokens - side) // (count - 1) for i in range(count)) if count > 1 else (0,)


class _HannMean:
    """Hann-weighted mean of overlapping windows; float32 sums are held for one row of windows at a time."""

    def __init__(self, rows: int, cols: int, dim: int, down: _Windows, across: _Windows) -> None:
        self._out = np.empty((rows, cols, dim), np.float16)
        self._depth = down.length
        self._weight = np.outer(_hann(down.length), _hann(across.length))[:, :, None]
        self._sum = np.zeros((down.length, cols, dim), np.float32)
        self._total = np.zeros((down.length, cols, 1), np.float32)
        self._top = 0

    def add(self, place: tuple[int, int], tokens: NDArray[np.float32]) -> None:
        """Adds the window at lattice (row, col) ``place``; rows of windows must come top to bottom."""
        top, left = place
        if top != self._top:
            self._settle(top - self._top)
        here = np.arange(left, left + tokens.shape[1]) % self._sum.shape[1]
        self._sum[:, here] += tokens * self._weight
        self._total[:, here] += self._weight

    def finish(self) -> NDArray[np.float16]:
        self._settle(self._depth)
        return self._out

    def _settle(self, count: int) -> None:
        """Writes out the ``count`` uppermost rows held, which no window will touch again, and moves down."""
        self._out[self._top : self._top + count] = _unit(self._sum[:count] / self._total[:count])
        for held in (self._sum, self._total):
            held[: self._depth - count] = held[count:].copy()
            held[self._depth - count :] = 0
        self._top += count


def _hann(length: int) -> NDArray[np.float32]:
    """Sampled at the middle of each token, hence nowhere zero: borders that one window sees keep a weight."""
    return (np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2).astype(np.float32)


def _tokens(dino: FeatureModel, windows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    pixels = torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        tokens: NDArray[np.float32] = dino(pixels).float().cpu().numpy()
    return tokens


def _unit(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    rms = np.sqrt(np.mean(np.square(tokens, dtype=np.float32), axis=-1, keepdims=True))
    unit: NDArray[np.float32] = tokens / np.maximum(rms, SMALLEST_RMS)
    return unit
