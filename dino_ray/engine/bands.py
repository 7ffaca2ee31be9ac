"""Pixels between the source's bands and a model's three colours: reading, grey, alpha, 16 bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dino_ray.plan.geometry import Rect

UINT16_MAX = 65535
LUMA = tuple(np.float32(weight) for weight in (0.299, 0.587, 0.114))  # ITU-R BT.601


class LastRead:
    """Reads windows of a source; a part of the last one is cut out of it. A read may come from another machine."""

    def __init__(self, read: Callable[[Rect], np.ndarray]) -> None:
        self._read = read
        self._last: tuple[Rect, np.ndarray] | None = None

    def __call__(self, rect: Rect) -> np.ndarray:
        if self._last is not None:
            place, window = self._last
            if rect.intersect(place) == rect:
                return window[rect.shift(-place.x, -place.y).slices]
        window = self._read(rect)
        self._last = rect, window
        return window


def rgb(pixels: np.ndarray) -> np.ndarray:
    """The colour of 1 to 4 bands (colour first, then alpha) as three bands."""
    return np.repeat(pixels[..., :1], 3, axis=-1) if pixels.shape[-1] < 3 else pixels[..., :3]


def with_alpha(pixels: np.ndarray, colour_bands: int) -> np.ndarray:
    """Colour as three bands, and alpha, if there is any."""
    return np.concatenate([rgb(pixels[..., :colour_bands]), pixels[..., colour_bands:]], axis=-1)


def like(pixels: np.ndarray, colour_bands: int) -> np.ndarray:
    """Three colours as the source has them: as they are, or as their luma."""
    if colour_bands == 3:
        return pixels
    # Not a matrix product: that would leave the order of the sum to the library and its threads.
    luma: np.ndarray = pixels[..., :1] * LUMA[0] + pixels[..., 1:2] * LUMA[1] + pixels[..., 2:] * LUMA[2]
    return luma


def to_uint16(pixels: np.ndarray) -> np.ndarray:
    """[0, 1], clipped, to the full range of 16 bits."""
    scaled: np.ndarray = np.clip(pixels, 0.0, 1.0)
    scaled *= UINT16_MAX  # in place: a tile is many times the cache
    scaled += 0.5
    return scaled.astype(np.uint16)
