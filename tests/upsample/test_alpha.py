"""Transparent edges: no fringe, whatever colour hides behind them, and the same pixels however the canvas is cut."""

import numpy as np
import pytest
import torch

from dino_ray.plan.geometry import Rect, Scaling
from dino_ray.upsample import Lanczos, base_tile, load_net
from dino_ray.upsample.lanczos import axis_taps

LEVEL = 1 / 255
RED, GREEN, BLACK = (1, 0, 0), (0, 1, 0), (0, 0, 0)


@pytest.fixture(scope="module", params=["lanczos", "net"])
def upsampler(request):
    torch.set_num_threads(1)
    return Lanczos() if request.param == "lanczos" else load_net()


def enlarged(image, upsampler, scale=2.0, rect=None):
    height, width = image.shape[:2]
    scaling = Scaling.from_factor(width, height, scale)

    def read(window):
        rows = np.clip(np.arange(window.y, window.y1), 0, height - 1)
        cols = np.clip(np.arange(window.x, window.x1), 0, width - 1)
        return image[rows[:, None], cols]

    return base_tile(read, rect or Rect(0, 0, scaling.canvas_w, scaling.canvas_h), scaling, upsampler)


def disc(colour, hidden, side=48, radius=15.3, soft=True):
    """RGBA uint8: a disc of one colour, and another one where nothing is seen."""
    y, x = np.mgrid[:side, :side] + 0.5
    inside = radius - np.hypot(x - side / 2, y - side / 2)
    alpha = np.clip(inside + 0.5, 0, 1) if soft else (inside > 0).astype(float)
    rgb = np.where(alpha[..., None] > 0, colour, hidden)
    return np.rint(np.dstack([rgb, alpha]) * 255).astype(np.uint8)


def over_white(rgba):
    return rgba[..., :-1] * rgba[..., -1:] + 1 - rgba[..., -1:]


def clouds(bands, seed=0, side=30):
    """Random, of a contrast at which no overshoot is clipped."""
    return 0.4 + 0.2 * np.random.default_rng(seed).random((side, side, bands), np.float32)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("hidden", [BLACK, GREEN])
def test_a_red_disc_over_white_has_no_fringe(upsampler, hidden, soft):
    made = enlarged(disc(RED, hidden, soft=soft), upsampler)
    seen = over_white(made)
    # Red over white is (1, v, v), v being the white that shines through: 1 less than alpha, and nothing else.
    assert np.abs(seen[..., 0] - 1).max() < LEVEL
    np.testing.assert_allclose(seen[..., 1:], np.repeat(1 - made[..., 3:], 2, axis=2), atol=LEVEL)


def test_what_hides_in_transparent_pixels_changes_no_bit(upsampler):
    first, second = (enlarged(disc(RED, hidden), upsampler) for hidden in (BLACK, GREEN))
    np.testing.assert_array_equal(first, second)


def test_where_nothing_is_seen_colour_is_0(upsampler):
    made = enlarged(disc(RED, GREEN), upsampler)
    nothing = made[..., 3] < 0.5 / 65535
    assert nothing.any()
    assert (made[nothing][:, :3] == 0).all()


@pytest.mark.parametrize("bands", [2, 4])
def test_an_opaque_image_comes_out_as_without_its_alpha(upsampler, bands):
    image = clouds(bands)
    image[..., -1] = 1
    with_alpha = enlarged(image, upsampler, 1.7)
    np.testing.assert_allclose(with_alpha[..., :-1], enlarged(image[..., :-1], upsampler, 1.7), atol=1e-5)
    np.testing.assert_allclose(with_alpha[..., -1], 1, atol=1e-6)


@pytest.mark.parametrize("bands", [2, 4])
@pytest.mark.parametrize("scale", [0.6, 1.5, 2.0])
def test_lanczos_composed_over_white_is_the_composition_enlarged_in_double_precision(bands, scale):
    image = clouds(bands, seed=1)
    seen = over_white(image.astype(np.float64))
    side = image.shape[0]
    made = enlarged(image, Lanczos(), scale)
    matrix = dense_taps(side, made.shape[0])
    expected = np.einsum("ys,xt,stc->yxc", matrix, matrix, seen)
    np.testing.assert_allclose(over_white(made), expected, atol=1e-5)


def dense_taps(source, canvas):
    """(canvas, source) float64: the taps of an axis, edges replicated."""
    taps = axis_taps(0, canvas, source, canvas)
    matrix = np.zeros((canvas, source))
    for i, (first, weights) in enumerate(zip(taps.first, taps.weights, strict=True)):
        at = np.clip(first + np.arange(len(weights)), 0, source - 1)
        np.add.at(matrix[i], at, weights)
    return matrix


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.0])
def test_a_tile_is_the_crop_of_the_whole(upsampler, scale):
    image = disc(RED, GREEN, side=40, radius=13, soft=False)
    image[..., 2] = np.random.default_rng(2).integers(0, 256, (40, 40))
    whole = enlarged(image, upsampler, scale)
    for rect in (Rect(0, 0, 16, 16), Rect(13, 7, 21, 9), Rect(29, 21, 11, 17)):
        tile = enlarged(image, upsampler, scale, rect)
        if upsampler.linear:
            np.testing.assert_array_equal(tile, whole[rect.slices])
        else:
            np.testing.assert_allclose(tile, whole[rect.slices], atol=1e-5)
