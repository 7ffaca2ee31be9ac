"""DINO tokens of a tile, on lattices that can be shifted: what guides a tile and what judges it see different crops.

A tile is completed by reflection until a lattice of patches, begun ``phase`` px before its corner, covers all of it.
Two images that are completed alike can be compared patch by patch, up to their borders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_ray.dino.extract import WINDOW_SIDE, FeatureModel, even_starts
from dino_ray.dino.loading import unit_rms

Phase = tuple[int, int]
"""(y, x): how many px before the tile's corner the lattice begins; below the patch."""


def guiding_phases(patch: int) -> tuple[Phase, ...]:
    """Where the lattices lie on which guidance steers, one after the other: half a patch apart."""
    half = patch // 2
    return (0, 0), (half, half), (0, half), (half, 0)


def judging_phases(patch: int) -> tuple[Phase, ...]:
    """Where the lattices lie on which a tile is judged: between those of guidance.

    A score on the crops that were optimised would overstate what optimising them has brought.
    """
    near, far = patch // 4, patch - patch // 4 - 1
    return (near, far), (far, near)


@dataclass(frozen=True)
class Lattice:
    """Patches over a tile of ``height`` × ``width`` px."""

    patch: int
    height: int
    width: int
    phase: Phase

    @property
    def rows(self) -> int:
        return -(-(self.height + self.phase[0]) // self.patch)

    @property
    def cols(self) -> int:
        return -(-(self.width + self.phase[1]) // self.patch)

    def tokens(self, dino: FeatureModel, pixels: Tensor) -> Tensor:
        """Tokens of tiles: (B, 3, h, w) in [0, 1] to (B, rows, cols, dim), each of unit root mean square.

        A tile larger than the windows that DINO knows is seen through several, whose tokens are averaged where they
        overlap. Gradients reach the pixels.
        """
        pixels = self._complete(pixels)
        side = WINDOW_SIDE // self.patch
        tops, lefts = even_starts(self.rows, side), even_starts(self.cols, side)
        if len(tops) == len(lefts) == 1:
            return dino(pixels)
        total = pixels.new_zeros(len(pixels), self.rows, self.cols, dino.dim)
        count = pixels.new_zeros(self.rows, self.cols, 1)
        for top in tops:
            for left in lefts:
                # Window by window: all at once would take their activations' memory together.
                rows, cols = slice(top, top + min(side, self.rows)), slice(left, left + min(side, self.cols))
                seen = dino(pixels[..., self._px(rows), self._px(cols)])
                total = total + _placed(seen, total.shape, rows, cols)
                count[rows, cols] += 1
        return unit_rms(total / count)

    def mean(self, values: Tensor) -> Tensor:
        """Means over each patch: (B, 1, h, w) to (B, rows, cols)."""
        return F.avg_pool2d(self._complete(values), self.patch)[:, 0]

    def spread(self, values: Tensor) -> Tensor:
        """Values of the patches over the tile's pixels, bilinear: (B, rows, cols) to (B, h, w)."""
        size = (self.rows * self.patch, self.cols * self.patch)
        wide = F.interpolate(values[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return self._cut(wide)

    def tiled(self, values: Tensor) -> Tensor:
        """Values of the patches, each over all pixels of its own: (B, rows, cols) to (B, h, w)."""
        wide = values.repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)
        return self._cut(wide)

    def _cut(self, wide: Tensor) -> Tensor:
        top, left = self.phase
        return wide[:, top : top + self.height, left : left + self.width]

    def _complete(self, pixels: Tensor) -> Tensor:
        top, left = self.phase
        bottom = self.rows * self.patch - self.height - top
        right = self.cols * self.patch - self.width - left
        return _mirrored(_mirrored(pixels, top, bottom, dim=-2), left, right, dim=-1)

    def _px(self, span: slice) -> slice:
        return slice(span.start * self.patch, span.stop * self.patch)


def _mirrored(pixels: Tensor, before: int, after: int, dim: int) -> Tensor:
    """Continued at both ends by reflection; what is too small for that repeats its edges.

    By flips, since the gradient of ``F.pad`` sums up in no fixed order on a GPU.
    """
    length = pixels.shape[dim]
    if max(before, after) < length:
        start, end = pixels.narrow(dim, 1, before), pixels.narrow(dim, length - 1 - after, after)
        return torch.cat([start.flip(dim), pixels, end.flip(dim)], dim)
    first, last = pixels.narrow(dim, 0, 1), pixels.narrow(dim, length - 1, 1)
    return torch.cat([*[first] * before, pixels, *[last] * after], dim)


def _placed(tokens: Tensor, shape: Sequence[int], rows: slice, cols: slice) -> Tensor:
    """Tokens of a window among zeros, so that sums of windows keep their gradients."""
    return F.pad(tokens, (0, 0, cols.start, shape[2] - cols.stop, rows.start, shape[1] - rows.stop))


def cosines(tokens: Tensor, others: Tensor) -> Tensor:
    """Patch by patch: (B, rows, cols, dim) twice, of unit root mean square, to (B, rows, cols) in [-1, 1]."""
    return (tokens * others).mean(dim=-1)


def over(pixels: Tensor, patch: int, phases: Sequence[Phase]) -> tuple[Lattice, ...]:
    """The lattices of some phases over tiles (B, c, h, w)."""
    height, width = pixels.shape[-2:]
    return tuple(Lattice(patch, height, width, phase) for phase in phases)
