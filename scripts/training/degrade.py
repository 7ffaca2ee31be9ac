"""From a picture to what a user might have of it at half the size.

Most pairs use Pillow's antialiased bicubic reduction, the usual benchmark; the others are mild versions of
what happens to pictures: another kernel, a soft lens, sensor noise, JPEG.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]

FACTOR = 2
OTHER_KERNELS = (
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
    Image.Resampling.BOX,
    Image.Resampling.HAMMING,
    Image.Resampling.BILINEAR,
)


def reduce_bicubic(picture: Pixels) -> Pixels:
    """Half the size by Pillow's bicubic kernel; uint8 (H, W, 3) to (H / 2, W / 2, 3)."""
    return _reduce(Image.fromarray(picture), Image.Resampling.BICUBIC)


def reduce_somehow(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Half the size by a random kernel, with light blur, noise and JPEG, each now and then."""
    image = Image.fromarray(picture)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    small = _reduce(image, OTHER_KERNELS[rng.integers(len(OTHER_KERNELS))])
    if rng.random() < 0.4:
        noisy = small + rng.normal(0, rng.uniform(0.5, 4), small.shape)
        small = np.asarray(np.rint(np.clip(noisy, 0, 255)), np.uint8)
    if rng.random() < 0.4:
        buffer = io.BytesIO()
        quality, subsampling = int(rng.integers(70, 97)), int(rng.choice([0, 2]))
        Image.fromarray(small).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
        small = np.asarray(Image.open(buffer))
    return small


def soften(picture: Pixels) -> Pixels:
    """A picture that was enlarged before: beyond half its bandwidth there is nothing left to restore."""
    height, width = picture.shape[:2]
    small = Image.fromarray(reduce_bicubic(picture))
    return np.asarray(small.resize((width, height), Image.Resampling.LANCZOS))


def _reduce(image: Image.Image, kernel: Image.Resampling) -> Pixels:
    return np.asarray(image.resize((image.width // FACTOR, image.height // FACTOR), kernel))
