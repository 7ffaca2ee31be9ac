"""Windows that may stick out of an image: its edges are replicated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dino_ray.plan.geometry import Rect
from dino_ray.raster.store import Pixels


def read_replicated(rect: Rect, width: int, height: int, read: Callable[[Rect], Pixels]) -> Pixels:
    """A window of a width × height image, by a function that reads windows inside of it.

    Raises
    ------
    ValueError
        If the window holds no pixels.
    """
    if rect.w < 1 or rect.h < 1:
        raise ValueError(f"a window must hold pixels: {rect}")
    ys = np.clip(np.arange(rect.y, rect.y + rect.h), 0, height - 1)
    xs = np.clip(np.arange(rect.x, rect.x + rect.w), 0, width - 1)
    x, y = int(xs[0]), int(ys[0])
    inside = read(Rect(x, y, int(xs[-1]) + 1 - x, int(ys[-1]) + 1 - y))
    if inside.shape[:2] == (rect.h, rect.w):
        return inside
    replicated: Pixels = inside[(ys - y)[:, None], (xs - x)[None, :]]
    return replicated
