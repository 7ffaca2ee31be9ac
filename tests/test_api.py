"""Promises of ``dino_ray.upscale``: what comes out is the kind of thing that went in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import dino_ray

QUICK: dict[str, Any] = {"model": "none", "address": "none"}


def gradient(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    top = np.iinfo(dtype).max
    return (np.linspace(0, top, int(np.prod(shape))).reshape(shape)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [None, 1, 2, 3, 4])
def test_an_array_comes_back_as_an_array_of_its_kind(dtype: type, bands: int | None) -> None:
    shape = (20, 30) if bands is None else (20, 30, bands)
    image, report = dino_ray.upscale(gradient(shape, dtype), scale=2, **QUICK)
    assert isinstance(image, np.ndarray)
    assert image.shape == (40, 60, *shape[2:])
    assert image.dtype == dtype
    assert (report.width, report.height, report.output) == (60, 40, "")


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_a_pil_image_comes_back_as_one_of_its_mode(mode: str) -> None:
    image, _ = dino_ray.upscale(PIL.Image.new(mode, (8, 6)), scale=3, **QUICK)
    assert isinstance(image, PIL.Image.Image)
    assert (image.mode, image.size) == (mode, (24, 18))


def test_pils_16_bit_greys_stay_16_bit() -> None:
    grey = gradient((12, 12), np.uint16)
    image, _ = dino_ray.upscale(PIL.Image.fromarray(grey), scale=1, **QUICK)
    assert (np.asarray(image) == grey).all()


def test_a_palette_with_transparency_keeps_it() -> None:
    clear = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0)).quantize()
    image, _ = dino_ray.upscale(clear, **QUICK)
    assert isinstance(image, PIL.Image.Image)
    assert image.mode == "RGBA"
    assert np.asarray(image)[..., 3].max() == 0


def test_a_path_comes_back_as_a_pil_image_with_its_profile(tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "in put.png"
    PIL.Image.new("RGB", (9, 7), (10, 200, 30)).save(path, icc_profile=profile)
    image, _ = dino_ray.upscale(path, **QUICK)
    assert isinstance(image, PIL.Image.Image)
    assert image.info["icc_profile"] == profile
    assert (np.asarray(image) == (10, 200, 30)).all()


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros(4, np.uint8),
        7,
    ],
)
def test_what_is_no_image_is_refused(bad: Any) -> None:
    with pytest.raises(dino_ray.UsageError):
        dino_ray.upscale(bad, **QUICK)


def test_options_go_on_top_of_a_config() -> None:
    config = dino_ray.UpscaleConfig(scale=4, **QUICK)
    assert dino_ray.upscale(np.zeros((4, 4), np.uint8), config=config).report.width == 16
    assert dino_ray.upscale(np.zeros((4, 4), np.uint8), config=config, scale=3).report.width == 12


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(dino_ray.UsageError, match="sacle"):
        dino_ray.upscale(np.zeros((4, 4), np.uint8), sacle=2)


def test_the_whole_image_is_the_same_however_it_is_tiled() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    whole, _ = dino_ray.upscale(pixels, scale=2.3, tile=512, **QUICK)
    tiled, report = dino_ray.upscale(pixels, scale=2.3, tile=32, overlap=16, **QUICK)
    assert report.tiles > 20
    assert (np.asarray(whole) == np.asarray(tiled)).all()


def test_pixels_of_the_result_lie_where_pils_lanczos_puts_them() -> None:
    pixels = np.random.default_rng(1).integers(64, 192, (40, 40, 3), np.uint8)
    ours = np.asarray(dino_ray.upscale(pixels, scale=2, **QUICK).image).astype(int)
    theirs = np.asarray(PIL.Image.fromarray(pixels).resize((80, 80), PIL.Image.Resampling.LANCZOS)).astype(
        int
    )
    # At the borders PIL leaves taps out where we replicate edges; elsewhere it rounds between its two passes.
    assert np.abs(ours - theirs)[8:-8, 8:-8].max() <= 2
