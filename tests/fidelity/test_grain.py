"""How grainy a source is: noise and JPEG blocks, in order and about their size; nothing where there is neither."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from dino_ray.fidelity.grain import CLEAN, WINDOW, WINDOWS_PER_AXIS, Grain, measure_grain

LEVEL = 1 / 255
PHOTOS = ("astronaut", "coffee", "chelsea")  # rocket is a JPEG itself


def measured(image):
    """Of bytes, or of float in [0, 1]."""
    image = np.asarray(image / 255 if image.dtype == np.uint8 else image, np.float32)
    height, width = image.shape[:2]

    def read(rect):
        assert rect.clip(width, height) == rect
        assert max(rect.w, rect.h) <= WINDOW
        return image[rect.slices]

    return measure_grain(read, width, height)


def photo(name):
    """Reduced, so that it has less of the camera's own noise."""
    image = Image.fromarray(getattr(data, name)()[..., :3])
    return np.asarray(image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC))


def noisy(image, sigma):
    noise = np.random.default_rng(0).normal(0, sigma, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("name", PHOTOS)
def test_a_clean_photograph_has_next_to_none(name):
    grain = measured(photo(name))
    assert grain.noise < 1.2 * LEVEL
    assert grain.blocks == 0


@pytest.mark.parametrize("name", PHOTOS)
def test_noise_and_blocks_make_a_source_worn_and_texture_does_not(name):
    clean = photo(name)
    assert not measured(clean).worn
    assert not measured(jpeg(clean, 97)).worn
    assert measured(noisy(clean, 3)).worn
    assert measured(jpeg(clean, 80)).worn


@pytest.mark.parametrize("name", PHOTOS)
def test_noise_is_measured_about_as_it_is_and_texture_is_none(name):
    sigmas = [measured(noisy(photo(name), sigma)).noise / LEVEL for sigma in (2, 4, 8)]
    np.testing.assert_allclose(sigmas, (2, 4, 8), rtol=0.3)


@given(sigma=st.floats(0.5, 20), side=st.integers(100, 600))
def test_white_noise_is_measured_to_a_tenth(sigma, side):
    noise = np.random.default_rng(1).normal(0.5, sigma * LEVEL, (side, 120, 3)).clip(0, 1)
    grain = measured(noise.astype(np.float32))
    assert grain.noise == pytest.approx(sigma * LEVEL, rel=0.1)
    assert grain.blocks == 0


@pytest.mark.parametrize("name", PHOTOS)
def test_jpegs_are_ordered_by_their_quality_and_about_as_wrong_as_it_says(name):
    truth = photo(name)
    blocks, errors = [], []
    for quality in (90, 75, 60, 40):
        coded = jpeg(truth, quality)
        blocks.append(measured(coded).blocks)
        errors.append(np.std((coded - truth.astype(float)) * LEVEL))
    assert blocks == sorted(blocks)
    assert blocks[0] > 0
    np.testing.assert_allclose(blocks, errors, rtol=0.5)


@pytest.mark.parametrize("crop", [(0, 0), (3, 5), (7, 1)])
def test_the_lattice_is_found_where_a_jpeg_was_cropped(crop):
    coded = jpeg(photo("coffee"), 60)
    whole, part = measured(coded), measured(coded[crop[0] :, crop[1] :])
    assert part.blocks == pytest.approx(whole.blocks, rel=0.1)


def test_noise_hides_in_no_jpeg_that_lost_it():
    assert measured(jpeg(photo("astronaut"), 40)).noise < LEVEL


@given(
    level=st.floats(0, 1),
    slopes=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
)
def test_a_smooth_gradient_has_none(level, slopes, size):
    y, x = np.mgrid[: size[0], : size[1]] / 200
    ramp = np.clip(level + slopes[0] * x + slopes[1] * y, 0, 1)
    grain = measured(np.repeat(ramp[..., None], 3, 2).astype(np.float32))
    assert grain.sigma < 0.01 * LEVEL
    rounded = measured(np.repeat(np.rint(ramp * 255)[..., None], 3, 2).astype(np.uint8))
    assert rounded.sigma < 1.5 * LEVEL  # some slopes round to a pattern, not to noise


def test_clipped_blocks_do_not_make_a_noisy_picture_clean():
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, 128:] = 128
    assert measured(noisy(image, 6)).noise == pytest.approx(6 * LEVEL, rel=0.1)


def test_a_large_source_is_read_in_few_windows():
    places = []

    def read(rect):
        places.append(rect)
        return np.full((rect.h, rect.w, 3), 0.5, np.float32)

    assert measure_grain(read, 50_000, 40_000) == CLEAN
    assert len(places) == WINDOWS_PER_AXIS**2
    assert max(p.x1 for p in places) > 35_000


def test_sigma_is_that_of_both_together():
    assert Grain(3.0, 4.0).sigma == 5.0
