"""What a picture is judged by besides its pixels: its edges and its texture. No weights, no other network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601."""
GMS_C = 170 / 255**2
"""As in ``dino_ray.report.metrics.gmsd``, for a luma in [0, 1]."""
SMALLEST = 1e-6
"""Under roots, whose slope at zero has no bound: a thousandth of full range."""
TEXTURE_PX = 8
"""Side of the windows whose energies are compared: where in a window a blade of grass stands is nobody's business."""


def luma(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, 1, H, W)."""
    return torch.einsum("bchw,c->bhw", pixels, pixels.new_tensor(LUMA))[:, None]


def edge_loss(made: Tensor, goal: Tensor) -> Tensor:
    """(B,): how far the gradients of two pictures (B, 3, H, W) are from similar.

    Mean and standard deviation of 1 - similarity, of which the second is GMSD (Xue et al. 2014,
    doi:10.1109/TIP.2013.2293423).
    """
    a, b = (_gradient(F.avg_pool2d(luma(each), 2)) for each in (made, goal))
    unlike = 1 - (2 * a * b + GMS_C) / (a * a + b * b + GMS_C)
    return unlike.mean((1, 2, 3)) + (unlike.var((1, 2, 3)) + SMALLEST).sqrt()


def texture_loss(made: Tensor, goal: Tensor) -> Tensor:
    """(B,): by how much the standard deviations of fine detail differ, window by window, direction by direction.

    In units of pixels in [0, 1]. It asks for as much texture as there is, and leaves open where its grains lie.
    """
    total = made.new_zeros(len(made))
    for level in range(2):
        a, b = (_strength(F.avg_pool2d(luma(each), 2**level)) for each in (made, goal))
        total = total + (a - b).abs().mean((1, 2, 3))
    return total


def _gradient(plane: Tensor) -> Tensor:
    kernel = plane.new_tensor([[1.0, 0, -1]] * 3) / 3
    both = F.conv2d(plane, torch.stack([kernel, kernel.T])[:, None])
    return (both.square().sum(1, keepdim=True) + SMALLEST).sqrt()


def _strength(plane: Tensor) -> Tensor:
    """(B, 3, h, w): local standard deviation of the differences across, down and both."""
    haar = plane.new_tensor([[[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]) / 2
    detail = F.conv2d(plane, haar[:, None])
    return (F.avg_pool2d(detail.square(), TEXTURE_PX, TEXTURE_PX // 2) + SMALLEST).sqrt()
