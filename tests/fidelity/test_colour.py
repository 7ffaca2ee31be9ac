"""Colour lock: a tile's large areas have the base's colours, its detail stays its own, and casts leave no steps."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dino_ray.fidelity.colour import colour_drift, lock_colour

LEVEL = 1 / 255
SIDES = st.integers(1, 200)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def picture(height, width, seed=0):
    """Large areas and fine texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = [0.5 + 0.2 * np.sin(x / a + y / b) for a, b in rng.uniform(25, 60, (3, 2))]
    return torch.from_numpy((smooth + rng.normal(0, 0.05, (3, height, width))).astype(np.float32))


def detail(height, width):
    """A checkerboard: of the highest frequency there is."""
    y, x = np.mgrid[:height, :width]
    return torch.from_numpy((0.1 * (-1.0) ** (x + y)).astype(np.float32)).expand(3, -1, -1)


@given(h=SIDES, w=SIDES, cast=st.tuples(*[st.floats(-1, 1)] * 3))
def test_a_cast_is_taken_away_to_the_last_pixel(h, w, cast):
    base = picture(h, w)
    tile = base + torch.tensor(cast, dtype=torch.float32)[:, None, None]
    torch.testing.assert_close(lock_colour(tile, base), base, atol=1e-5, rtol=0)


@given(h=st.integers(16, 200), w=st.integers(16, 200))
def test_so_is_a_cast_that_changes_evenly_across_the_tile(h, w):
    base = picture(h, w)
    slope = torch.linspace(-0.2, 0.2, w) + torch.linspace(0.1, -0.1, h)[:, None]
    locked = lock_colour(base + slope, base)
    torch.testing.assert_close(locked, base, atol=2e-3, rtol=0)
    assert colour_drift(base + slope, base) * LEVEL == pytest.approx(float(slope.abs().max()), abs=2e-3)


@pytest.mark.parametrize("method", ["wavelet", "adain", "off"])
def test_a_tile_that_is_its_base_stays(method):
    base = picture(96, 128)
    torch.testing.assert_close(lock_colour(base, base, method), base, atol=1e-6, rtol=0)


def test_what_a_model_draws_stays():
    base = picture(128, 128)
    tile = base + detail(128, 128)
    # Half a cell at the border, whose mean isn't 0, is all that is taken.
    torch.testing.assert_close(lock_colour(tile, base), tile, atol=0.5 * LEVEL, rtol=0)


def test_adain_gives_mean_and_contrast():
    tile, base = 0.3 * picture(64, 64, seed=1) + 0.2, picture(64, 64, seed=2)
    locked = lock_colour(tile, base, "adain")
    torch.testing.assert_close(locked.mean((1, 2)), base.mean((1, 2)), atol=1e-5, rtol=0)
    torch.testing.assert_close(locked.std((1, 2)), base.std((1, 2)), atol=1e-5, rtol=0)


def test_adain_of_a_flat_tile_is_flat():
    locked = lock_colour(torch.full((3, 32, 32), 0.9), picture(32, 32), "adain")
    assert locked.std((1, 2)).max() < 1e-6


def test_off_is_the_tile_itself():
    tile = picture(32, 32)
    assert lock_colour(tile, picture(32, 32, seed=1), "off") is tile


@pytest.mark.parametrize(("side", "overlap"), [(128, 32), (256, 64)])
def test_casts_of_neighbouring_tiles_leave_no_step(side, overlap):
    stride, context = side - overlap, overlap // 4
    drawn = picture(side, side + stride, seed=3)  # what both tiles would show without casts
    base = drawn + 0.02 * (picture(side, side + stride, seed=4) - drawn)
    casts = torch.tensor([[8.0, -6, 3], [-8, 5, 7]])[..., None, None] * LEVEL
    left, right = (
        lock_colour(drawn[:, :, x : x + side] + cast, base[:, :, x : x + side])
        for x, cast in zip((0, stride), casts, strict=True)
    )
    here, there = left[:, :, stride + context : side - context], right[:, :, context : overlap - context]
    step = (here - there).mean(2)  # of each row
    assert step.abs().max() < 0.5 * LEVEL


def test_drift_is_in_levels_and_texture_is_none():
    base = picture(128, 128)
    assert colour_drift(base, base) == 0
    assert colour_drift(base + 3 * LEVEL, base) == pytest.approx(3, abs=0.01)
    assert colour_drift(base + detail(128, 128), base) < 0.5
    bump = torch.zeros(128, 128)
    bump[32:96, 32:96] = 5 * LEVEL
    assert colour_drift(base - bump, base) == pytest.approx(5, abs=1)


def test_the_same_tile_has_the_same_bytes_whatever_went_before():
    tile, base = picture(128, 128, seed=5), picture(128, 128, seed=6)
    first = lock_colour(tile, base)
    lock_colour(picture(100, 90), picture(100, 90, seed=1))
    assert torch.equal(lock_colour(tile, base), first)
