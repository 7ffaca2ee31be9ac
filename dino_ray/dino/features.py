"""The feature map: DINO tokens of a whole image at two levels, and crops of it at exact coordinates.

NumPy only, so that a map can lie in shared memory as read-only arrays and be cropped by processes that
never import torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FeatureLevel:
    """A regular lattice of tokens. Token (r, c) is centred at source_px ``(x0 + c * dx, y0 + r * dy)``.

    source_px are continuous here: pixel i covers [i, i + 1), so its centre lies at i + 0.5.
    """

    tokens: NDArray[np.float16]
    """(rows, cols, dim); each token has a root mean square of 1."""
    x0: float
    y0: float
    dx: float
    dy: float
    closed: bool = False
    """After the last column comes the first: ``cols * dx`` is the source's width."""

    @property
    def dim(self) -> int:
        return int(self.tokens.shape[2])

    def sample(self, xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.float32]:
        """Tokens at the lattice ``ys`` by ``xs`` (source_px), bilinear.

        Beyond the outermost centres those are repeated, but for the columns of a closed level, which come again.

        Returns
        -------
        (len(ys), len(xs), dim) float32
        """
        rows, cols, _ = self.tokens.shape
        top, bottom, fy = _neighbours((ys - self.y0) / self.dy, rows)
        left, right, fx = _neighbours((xs - self.x0) / self.dx, cols, self.closed)
        # Only the lattice's own part of the map is touched and widened: maps may be gigabytes.
        upper = _between(self.tokens, top, left, right, fx)
        lower = _between(self.tokens, bottom, left, right, fx)
        weight = fy[:, None, None]
        return upper * (1 - weight) + lower * weight


@dataclass(frozen=True)
class FeatureMap:
    """DINO features of one whole source: ``coarse`` sees the image at once, ``fine`` at native resolution."""

    model: str
    width: int
    height: int
    coarse: FeatureLevel
    fine: FeatureLevel

    @property
    def dim(self) -> int:
        """Channels of a crop: both levels, one after the other."""
        return self.coarse.dim + self.fine.dim

    @property
    def nbytes(self) -> int:
        return self.coarse.tokens.nbytes + self.fine.tokens.nbytes

    def crop(self, x: float, y: float, w: float, h: float, rows: int, cols: int) -> NDArray[np.float32]:
        """Tokens laid evenly over a window of the source.

        Parameters
        ----------
        x, y, w, h
            The window in source_px, continuous; beyond the source its outermost tokens repeat, or, to the left
            and the right of one that closes on itself, its tokens go on.
        rows, cols
            Token (r, c) is sampled at ``(x + (c + 0.5) / cols * w, y + (r + 0.5) / rows * h)``.

        Returns
        -------
        (rows, cols, dim) float32: channels of ``coarse``, then of ``fine``, each of unit root mean square
        at token centres and slightly less between them.
        """
        xs = x + (np.arange(cols, dtype=np.float64) + 0.5) / cols * w
        ys = y + (np.arange(rows, dtype=np.float64) + 0.5) / rows * h
        return np.concatenate([self.coarse.sample(xs, ys), self.fine.sample(xs, ys)], axis=2)

    def fingerprint(self) -> str:
        """SHA-256 over what a crop depends on; equal fingerprints give equal crops."""
        digest = hashlib.sha256(f"{self.model} {self.width} {self.height}".encode())
        for level in (self.coarse, self.fine):
            digest.update(f" {level.tokens.shape} {level.x0} {level.y0} {level.dx} {level.dy} ".encode())
            digest.update(b"closed " if level.closed else b"")
            digest.update(np.ascontiguousarray(level.tokens).data)
        return digest.hexdigest()


def _neighbours(
    position: NDArray[np.float64], length: int, closed: bool = False
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """The indices on either side of each lattice ``position`` and the way from the first to the second."""
    if closed:
        below = np.floor(position)
        low = below.astype(np.intp)
        return low % length, (low + 1) % length, (position - below).astype(np.float32)
    clamped = np.clip(position, 0, length - 1)
    low = np.floor(clamped).astype(np.intp)
    return low, np.minimum(low + 1, length - 1), (clamped - low).astype(np.float32)


def _between(
    tokens: NDArray[np.float16],
    rows: NDArray[np.intp],
    left: NDArray[np.intp],
    right: NDArray[np.intp],
    weight: NDArray[np.float32],
) -> NDArray[np.float32]:
    near = tokens[np.ix_(rows, left)].astype(np.float32)
    far = tokens[np.ix_(rows, right)].astype(np.float32)
    blend: NDArray[np.float32] = near * (1 - weight)[None, :, None] + far * weight[None, :, None]
    return blend
