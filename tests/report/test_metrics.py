from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import convolve2d

from dino_ray.report.metrics import gmsd, luma, psnr


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((0, 0, 0), 16.0),
        ((255, 255, 255), 235.0),
        ((255, 0, 0), 81.481),
        ((0, 255, 0), 144.553),
        ((0, 0, 255), 40.966),
    ],
)
def test_luma_of_primaries_is_that_of_bt601(rgb: tuple[int, int, int], expected: float) -> None:
    assert luma(np.array([[rgb]], np.uint8))[0, 0] == pytest.approx(expected, abs=1e-9)


def test_psnr_of_known_errors() -> None:
    flat = np.full((20, 30), 100, np.uint8)
    assert psnr(flat, flat + 1) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(flat, flat - 10) == pytest.approx(28.1308, abs=1e-4)
    assert psnr(flat, flat) == float("inf")


def test_psnr_leaves_the_border_out() -> None:
    a = np.full((20, 30, 3), 100, np.uint8)
    b = a.copy()
    b[:4] = b[-4:] = 0
    b[:, :4] = b[:, -4:] = 0
    assert psnr(a, b, border=4) == float("inf")
    assert psnr(a, b, border=3) < 30


def reference_gmsd(a: np.ndarray, b: np.ndarray) -> float:
    """The equations of the paper, by two-dimensional convolutions."""
    prewitt = np.array([[1.0, 0, -1]] * 3) / 3

    def gradient(image: np.ndarray) -> np.ndarray:
        small = convolve2d(image, np.full((2, 2), 0.25))[1::2, 1::2]
        return np.hypot(convolve2d(small, prewitt, mode="same"), convolve2d(small, prewitt.T, mode="same"))

    ga, gb = gradient(a), gradient(b)
    return float(((2 * ga * gb + 170) / (ga**2 + gb**2 + 170)).std(ddof=1))


@pytest.mark.parametrize("shape", [(64, 48), (33, 51), (8, 9)])
def test_gmsd_is_that_of_the_paper(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.uniform(0, 255, shape), rng.uniform(0, 255, shape)
    assert gmsd(a, b) == pytest.approx(reference_gmsd(a, b), abs=1e-12)


def test_gmsd_is_zero_for_equal_images_and_grows_with_blur() -> None:
    rng = np.random.default_rng(4)
    sharp = np.kron(rng.uniform(0, 255, (12, 12)), np.ones((6, 6)))
    kernels = [np.full((n, n), 1 / n**2) for n in (3, 5, 9)]
    scores = [gmsd(sharp, convolve2d(sharp, kernel, mode="same", boundary="symm")) for kernel in kernels]
    assert gmsd(sharp, sharp) == 0
    assert 0 < scores[0] < scores[1] < scores[2]
