"""How close an image is to another, by the field's measures. NumPy only; every measure works on luma."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PEAK = 255.0

BT601 = np.array([65.481, 128.553, 24.966]) / 255
"""Luma of ITU-R BT.601 at studio swing, 16 to 235: the Y that super-resolution papers print."""
BT601_BLACK = 16.0

GMSD_C = 170.0
"""Xue et al.'s constant, for luma of 0 to 255: keeps faint gradients from counting."""


def luma(image: NDArray[Any]) -> NDArray[np.float64]:
    """BT.601 luma of (H, W, 3) RGB in 0..255, not rounded: (H, W) in 16..235."""
    return BT601_BLACK + image.astype(np.float64) @ BT601


def psnr(a: NDArray[Any], b: NDArray[Any], border: int = 0) -> float:
    """Peak signal-to-noise ratio in dB between equally shaped images in 0..255; infinite for equal ones.

    ``border`` pixels on each side are left out: there, resamplers disagree on what lies beyond.
    """
    inner = slice(border, -border or None)
    error = float(np.mean(np.square(a[inner, inner].astype(np.float64) - b[inner, inner])))
    return float("inf") if error == 0 else 10 * float(np.log10(PEAK**2 / error))


def gmsd(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Gradient magnitude similarity deviation of two (H, W) luma images in 0..255; 0 for equal ones.

    Xue, Zhang, Mou and Bovik, "Gradient Magnitude Similarity Deviation: A Highly Efficient Perceptual Image
    Quality Index", IEEE Transactions on Image Processing 23 (2014): both images are halved by 2×2 means, and
    the score is the standard deviation of the pointwise similarity of their Prewitt gradients. Borders are
    zero-padded and the deviation is the sample's, as in the authors' code.
    """
    ga, gb = _gradient(_halved(a)), _gradient(_halved(b))
    similarity = (2 * ga * gb + GMSD_C) / (ga**2 + gb**2 + GMSD_C)
    return float(np.std(similarity, ddof=1))


def _halved(image: NDArray[np.float64]) -> NDArray[np.float64]:
    height, width = image.shape
    even = np.pad(image, ((0, height % 2), (0, width % 2)))
    quarters = even[0::2, 0::2] + even[1::2, 0::2] + even[0::2, 1::2] + even[1::2, 1::2]
    mean: NDArray[np.float64] = quarters / 4
    return mean


def _gradient(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Magnitude under the Prewitt operator, whose kernels sum three differences to a third each."""
    padded = np.pad(image, 1)
    columns = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    rows = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3
    magnitude: NDArray[np.float64] = np.hypot(columns[:, 2:] - columns[:, :-2], rows[2:] - rows[:-2])
    return magnitude
