"""Rows flow out of libvips in order and once, and nothing hangs when either side gives up."""

import threading

import numpy as np
import pytest
import pyvips

from dino_ray.errors import JobError
from dino_ray.raster import chunks
from dino_ray.raster.rows import decoded_bands
from dino_ray.raster.source import ingest
from dino_ray.raster.vips import overhear


def noise(height, width=50):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("heights", [[100], [1] * 100, [13, 50, 30, 7], [64, 36]])
def test_bands_add_up_to_the_image(heights):
    pixels = noise(100)
    bands = list(decoded_bands(pyvips.Image.new_from_array(pixels), "uint8", heights))
    assert [len(band) for band in bands] == heights
    np.testing.assert_array_equal(np.concatenate(bands), pixels)


def test_a_caller_may_stop_early():
    image = pyvips.Image.black(500, 20_000, bands=3)  # much more than may be decoded ahead
    before = threading.active_count()
    bands = decoded_bands(image, "uint8", [100] * 200)
    next(bands)
    bands.close()
    assert threading.active_count() <= before + 1  # its thread is gone; libvips keeps a few of its own


def test_a_decoder_that_fails_is_heard(tmp_path):
    pyvips.Image.new_from_array(noise(3000)).pngsave(str(tmp_path / "a.png"))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    image = pyvips.Image.new_from_file(str(tmp_path / "a.png"), access="sequential", fail_on="error")
    with overhear() as heard, pytest.raises(pyvips.Error):
        list(decoded_bands(image, "uint8", [100] * 30))
    assert heard != []


def test_a_store_that_fails_ends_the_ingest(tmp_path, monkeypatch):
    pyvips.Image.new_from_array(noise(3000)).pngsave(str(tmp_path / "a.png"))

    def full(*_):
        raise JobError("no room left")

    monkeypatch.setattr(chunks, "write", full)
    before = threading.active_count()
    with pytest.raises(JobError, match="no room left"):
        ingest(tmp_path / "a.png", tmp_path / "s")
    assert threading.active_count() <= before + 1
