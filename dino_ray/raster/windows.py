"""Images that are read by windows, which may stick out: edges are replicated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from dino_ray.plan.geometry import Rect
from dino_ray.raster.info import SourceInfo
from dino_ray.raster.store import Pixels


class Windows(Protocol):
    """What every kind of source is: an image that is read by windows."""

    @property
    def info(self) -> SourceInfo:
        """What the image is."""

    def read(self, rect: Rect) -> Pixels:
        """Pixels of a window, which may stick out by any amount.

        Parameters
        ----------
        rect
            Window in source_px; width and height at least 1.

        Returns
        -------
        ndarray (rect.h, rect.w, bands) of ``info.dtype``, owned by the caller.

        Raises
        ------
        ValueError
            If the window holds no pixels.
        JobError
            If what the pixels are read from is gone, has changed, can't be read or is damaged where the window is.
        """


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
