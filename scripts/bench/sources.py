"""The photographs of the benches, and how sources are made of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from skimage import data

Pixels = NDArray[np.uint8]

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
"""Of scikit-image."""

BLUR = 0.8
"""Truth px, standard deviation of the camera's blur."""


def photograph(name: str, scale: int) -> Pixels:
    """Truth, cropped at the right and bottom to a multiple of ``scale``."""
    truth = (
        np.asarray(Image.open(name).convert("RGB"))
        if Path(name).is_file()
        else getattr(data, name)()[..., :3]
    )
    height, width = (side // scale * scale for side in truth.shape[:2])
    return np.ascontiguousarray(truth[:height, :width])


def reduced(truth: Pixels, scale: int) -> Pixels:
    """By PIL's bicubic filter."""
    size = (truth.shape[1] // scale, truth.shape[0] // scale)
    return np.asarray(Image.fromarray(truth).resize(size, Image.Resampling.BICUBIC))


def noisy(image: Pixels, sigma: float) -> Pixels:
    noise = np.random.default_rng(0).normal(0, sigma, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def jpeg(image: Pixels, quality: int) -> Pixels:
    """Saved, with colours at half size, and opened again."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def spoilt(truth: Pixels, scale: int) -> Pixels:
    """Through a soft lens, with noise of 3 levels, as JPEG of quality 80."""
    blurred = Image.fromarray(truth).filter(ImageFilter.GaussianBlur(BLUR))
    return jpeg(noisy(reduced(np.asarray(blurred), scale), 3), 80)


SOURCES: dict[str, Callable[[Pixels, int], Pixels]] = {"clean": reduced, "spoilt": spoilt}
"""Source of a truth and a scale."""
