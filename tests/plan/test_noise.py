from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_ray.plan.geometry import Rect
from dino_ray.plan.noise import BLOCK, MAX_SEED, field

SIDE = 3 * BLOCK
seeds = st.sampled_from([0, 1, 12345, MAX_SEED])


@settings(max_examples=200)
@given(seeds, st.integers(0, SIDE), st.integers(0, SIDE), st.integers(0, SIDE), st.integers(0, SIDE))
def test_the_noise_of_a_crop_is_the_crop_of_the_noise(seed: int, x: int, y: int, w: int, h: int) -> None:
    whole = field(seed, 2, Rect(0, 0, 2 * SIDE, 2 * SIDE))
    rect = Rect(x, y, w, h)
    crop = field(seed, 2, rect)
    assert crop.dtype == np.float32
    assert crop.shape == (2, h, w)
    assert (crop == whole[(slice(None), *rect.slices)]).all()


@given(seeds, st.integers(1, SIDE), st.integers(-SIDE, SIDE), st.integers(0, SIDE), st.integers(0, SIDE))
def test_a_closed_field_has_the_same_noise_a_period_further(
    seed: int, period: int, x: int, y: int, w: int
) -> None:
    rect = Rect(x, y, w, 20)
    closed = field(seed, 2, rect, period)
    assert closed.dtype == np.float32
    once = field(seed, 2, Rect(0, y, period, 20))
    assert (closed == once[:, :, np.arange(x, x + w) % period]).all()
    assert (closed == field(seed, 2, rect.shift(period, 0), period)).all()


def test_the_field_goes_on_far_to_the_right_and_the_bottom() -> None:
    far = Rect(2**31 - 7, 2**33 + 5, 20, 20)
    assert (field(3, 1, far)[:, 4:9, 6:11] == field(3, 1, Rect(far.x + 6, far.y + 4, 5, 5))).all()


def test_the_first_channels_do_not_depend_on_how_many_there_are() -> None:
    rect = Rect(5, 40, 50, 30)
    assert (field(9, 16, rect)[:4] == field(9, 4, rect)).all()


def test_the_noise_is_unit_normal() -> None:
    sample = field(1, 4, Rect(0, 0, 512, 512)).astype(np.float64).ravel()
    spread = 5 / np.sqrt(sample.size)  # five standard errors
    assert abs(sample.mean()) < spread
    assert abs((sample**2).mean() - 1) < spread * np.sqrt(2)
    assert abs((sample**3).mean()) < spread * np.sqrt(15)
    assert abs((sample**4).mean() - 3) < spread * np.sqrt(96)
    for z, share in [(1, 0.682689), (2, 0.954500), (3, 0.997300)]:
        assert abs((abs(sample) < z).mean() - share) < spread / 2


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """In standard errors of the correlation of independent samples."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size))


def test_samples_blocks_channels_and_seeds_are_independent() -> None:
    side = 8 * BLOCK
    a = field(1, 2, Rect(0, 0, side, side))
    first, second = a
    others = {
        "next seed": field(2, 1, Rect(0, 0, side, side))[0],
        "next channel": second,
        "block to the right": field(1, 1, Rect(BLOCK, 0, side, side))[0],
        "block below": field(1, 1, Rect(0, BLOCK, side, side))[0],
        "transposed block": first.reshape(8, BLOCK, 8, BLOCK).transpose(2, 1, 0, 3).reshape(side, side),
        "pixel to the right": field(1, 1, Rect(1, 0, side, side))[0],
        "pixel below": field(1, 1, Rect(0, 1, side, side))[0],
    }
    off_diagonal = ~np.eye(8, dtype=bool).repeat(BLOCK, 0).repeat(BLOCK, 1)
    for name, other in others.items():
        chosen = off_diagonal if name == "transposed block" else np.ones((side, side), bool)
        assert abs(correlation(first[chosen], other[chosen])) < 5, name


def test_block_borders_are_as_rough_as_anywhere() -> None:
    a = field(4, 1, Rect(0, 0, 32 * BLOCK, 32 * BLOCK))[0].astype(np.float64)
    steps = np.diff(a, axis=1) ** 2
    at_borders = steps[:, BLOCK - 1 :: BLOCK]
    assert at_borders.mean() == pytest.approx(2, rel=5 * np.sqrt(3 / at_borders.size))


def test_the_field_of_a_seed_is_what_it_always_was() -> None:
    across_four_blocks = field(42, 2, Rect(BLOCK - 1, 2 * BLOCK - 1, 2, 2))
    expected = [
        [[-0.1529041975736618, 0.22139054536819458], [-0.03948590159416199, 1.8913127183914185]],
        [[1.4048737287521362, 0.5438278317451477], [1.0227634906768799, 0.6443634629249573]],
    ]
    np.testing.assert_allclose(across_four_blocks, expected, rtol=1e-6)
