"""The latent transform that stands in a VAE's place: an orthonormal block DCT, standardised; lossless.

A learned autoencoder small enough for a CPU loses more than the model on top of it could restore; blocks of
2 × 2 px lose nothing, and give the transformer the same shape of input as FLUX's own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class BlockDct:
    """Pixels (B, C, H, W) to latents (B, C · f², H / f, W / f) and back, exactly but for rounding.

    Parameters
    ----------
    side
        f, the side of a block in px.
    mean, std
        (C · f²,) per latent channel, which runs (colour, vertical frequency, horizontal frequency).
    """

    def __init__(self, side: int, mean: Tensor, std: Tensor) -> None:
        self.side = side
        self._basis = _basis(side).to(mean.device)
        self._mean, self._std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def encode(self, pixels: Tensor) -> Tensor:
        return (self._mix(F.pixel_unshuffle(pixels, self.side), self._basis) - self._mean) / self._std

    def decode(self, latents: Tensor) -> Tensor:
        return self._synthesise(latents * self._std + self._mean)

    def decode_difference(self, latents: Tensor) -> Tensor:
        """What adding ``latents`` to a picture's adds to its pixels: the linear part of `decode`."""
        return self._synthesise(latents * self._std)

    def _synthesise(self, coefficients: Tensor) -> Tensor:
        return F.pixel_shuffle(self._mix(coefficients, self._basis.T), self.side)

    def _mix(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Apply ``matrix`` to the f² samples of each block of each colour."""
        batch, channels, h, w = x.shape
        blocks = x.reshape(batch, channels // len(matrix), len(matrix), h, w)
        return torch.einsum("ij,bcjhw->bcihw", matrix, blocks).reshape(batch, channels, h, w)


def _basis(side: int) -> Tensor:
    """The orthonormal 2-D DCT-II of a block, (side², side²); row-major frequencies by row-major samples."""
    k = torch.arange(side, dtype=torch.float64)
    line = torch.cos(math.pi * (k[None, :] + 0.5) * k[:, None] / side) * math.sqrt(2 / side)
    line[0] /= math.sqrt(2)
    return torch.kron(line, line).float()
