"""Lanczos: Pillow's numbers, and the same bits however the canvas is cut."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dino_ray.plan.geometry import Rect, Scaling
from dino_ray.upsample import Lanczos
from dino_ray.upsample.lanczos import CUBIC, axis_taps


def replicating(image):
    def read(rect):
        rows = np.clip(np.arange(rect.y, rect.y1), 0, image.shape[0] - 1)
        cols = np.clip(np.arange(rect.x, rect.x1), 0, image.shape[1] - 1)
        return image[rows[:, None], cols[None, :]]

    return read


def resample(image, rect, scaling, extra_halo=0):
    lanczos = Lanczos()
    window = scaling.source_window(rect, lanczos.halo(scaling) + extra_halo)
    return lanczos(replicating(image)(window), window, rect, scaling)


def noise(height, width, channels, seed=0):
    return np.random.default_rng(seed).random((height, width, channels), np.float32)


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    scale=st.sampled_from([0.3, 0.5, 0.77, 1.0, 1.5, 2.0, 3.0, 4.0]),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    extra_halo=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_tile_has_the_bits_of_the_crop_of_the_whole(size, scale, cut, extra_halo):
    height, width = size
    image = noise(height, width, 2)
    scaling = Scaling.from_factor(width, height, scale)
    whole = Rect(0, 0, scaling.canvas_w, scaling.canvas_h)
    x, y = int(cut[0] * (whole.w - 1)), int(cut[1] * (whole.h - 1))
    tile = Rect(x, y, whole.w - x, whole.h - y)
    made = resample(image, tile, scaling, extra_halo)
    np.testing.assert_array_equal(made, resample(image, whole, scaling)[tile.slices])


def test_enlarging_twice_matches_pillow_away_from_the_edges():
    # Of low contrast: Pillow clips between its two passes.
    image = (80 + noise(24, 30, 3) * 90).astype(np.uint8)
    ours = resample(image.astype(np.float32), Rect(0, 0, 60, 48), Scaling(30, 24, 60, 48))
    theirs = np.asarray(Image.fromarray(image).resize((60, 48), Image.Resampling.LANCZOS))
    inner = slice(8, -8)  # Pillow renormalises at the edges where we replicate
    # Pillow rounds to 8 bits once per axis, of which the second may magnify the first's half step a little.
    assert np.abs(ours[inner, inner] - theirs[inner, inner]).max() <= 1.5


def test_reducing_is_antialiased_as_pillow_does_it():
    image = (noise(60, 60, 1) * 255).astype(np.uint8)
    ours = resample(image.astype(np.float32), Rect(0, 0, 20, 20), Scaling(60, 60, 20, 20))
    theirs = np.asarray(Image.fromarray(image[..., 0]).resize((20, 20), Image.Resampling.LANCZOS))
    assert np.abs(ours[4:-4, 4:-4, 0] - theirs[4:-4, 4:-4]).max() <= 1.5


def test_a_scale_of_one_changes_nothing():
    image = noise(9, 7, 3)
    made = resample(image, Rect(0, 0, 7, 9), Scaling(7, 9, 7, 9))
    np.testing.assert_array_equal(made, image)


@given(st.integers(1, 50), st.integers(1, 200))
@settings(deadline=None)
def test_constants_survive_any_scale(source, canvas):
    weights = axis_taps(0, canvas, source, canvas).weights
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


def test_outside_the_canvas_the_edge_pixel_goes_on():
    image = noise(6, 6, 1)
    made = resample(image, Rect(-40, 0, 20, 12), Scaling(6, 6, 12, 12))
    beside = resample(np.repeat(image[:, :1], 6, axis=1), Rect(0, 0, 20, 12), Scaling(6, 6, 12, 12))
    np.testing.assert_allclose(made, beside, atol=1e-6)


def test_bicubic_taps_reduce_as_pillow_does_away_from_the_edges():
    image = noise(60, 1, 1)
    taps = axis_taps(0, 25, 60, 25, CUBIC)
    ours = [
        image[first : first + len(weights), 0, 0] @ weights
        for first, weights in zip(taps.first, taps.weights, strict=True)
        if first >= 0 and first + len(weights) <= 60
    ]
    theirs = np.asarray(Image.fromarray(image[..., 0]).resize((1, 25), Image.Resampling.BICUBIC))[:, 0]
    inside = [i for i, first in enumerate(taps.first) if first >= 0 and first + taps.weights.shape[1] <= 60]
    assert len(inside) > 15
    np.testing.assert_allclose(ours, theirs[inside], atol=1e-5)
