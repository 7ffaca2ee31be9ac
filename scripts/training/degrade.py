"""From a picture to what a user might have of it at half the size.

Most pairs use Pillow's antialiased bicubic reduction, the usual benchmark; the others are what happens to pictures:
another kernel, a soft or shaken lens, sharpening, sensor noise, JPEG.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.camera import REDUCERS, blur, grain, jpeg, sharpened

Pixels = NDArray[np.uint8]

FACTOR = 2

BLURRED, SHARPENED, NOISY, COMPRESSED = 0.6, 0.15, 0.75, 0.75
"""How often each happens: noise and JPEG to most pictures; nothing but another kernel remains of one in fifty."""
BLUR_PX = (0.3, 1.6)
"""Standard deviation, px of the large picture."""
SHAKEN = 0.3
"""Share of blurs that are longer in one direction, by up to four times."""
NOISE = (0.5 / 255, 8 / 255)
QUALITY = (40, 95)


def reduce_bicubic(picture: Pixels) -> Pixels:
    """Half the size by Pillow's bicubic kernel; uint8 (H, W, 3) to (H / 2, W / 2, 3)."""
    return _reduce(picture, Image.Resampling.BICUBIC)


def reduce_somehow(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Half the size by a random kernel, with blur, sharpening, noise and JPEG, each now and then."""
    if rng.random() < BLURRED:
        sigma, ratio = _log_uniform(rng, *BLUR_PX), 1.0
        if rng.random() < SHAKEN:
            ratio = rng.uniform(1, 4)
        widths = (sigma * np.sqrt(ratio), sigma / np.sqrt(ratio))
        picture = _to_bytes(blur(_to_unit(picture), widths, rng.uniform(0, np.pi)))
    small = _to_unit(_reduce(picture, REDUCERS[rng.integers(len(REDUCERS))]))
    if rng.random() < SHARPENED:
        small = sharpened(small, rng.uniform(0.5, 1.2), rng.uniform(0.2, 1))
    if rng.random() < NOISY:
        small = small + grain(rng, small, _log_uniform(rng, *NOISE))
    made = _to_bytes(small)
    if rng.random() < COMPRESSED:
        made = jpeg(made, int(rng.integers(QUALITY[0], QUALITY[1] + 1)), int(rng.choice([0, 2])))
    return made


def soften(picture: Pixels) -> Pixels:
    """A picture that was enlarged before: beyond half its bandwidth there is nothing left to restore."""
    height, width = picture.shape[:2]
    small = Image.fromarray(reduce_bicubic(picture))
    return np.asarray(small.resize((width, height), Image.Resampling.LANCZOS))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _reduce(picture: Pixels, kernel: Image.Resampling) -> Pixels:
    height, width = picture.shape[:2]
    return np.asarray(Image.fromarray(picture).resize((width // FACTOR, height // FACTOR), kernel))


def _to_unit(picture: Pixels) -> NDArray[np.float32]:
    return picture.astype(np.float32) / 255


def _to_bytes(picture: NDArray[np.float32]) -> Pixels:
    return np.asarray(np.rint(np.clip(picture, 0, 1) * 255), np.uint8)
