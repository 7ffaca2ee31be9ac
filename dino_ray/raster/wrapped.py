"""A source that closes on itself in x, as a 360° panorama does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dino_ray.plan.geometry import Rect
from dino_ray.raster.source import SourceInfo
from dino_ray.raster.store import Pixels


class Windows(Protocol):
    """Whatever is read by windows, as a `dino_ray.raster.source.Source` is; columns replicate at its edges."""

    @property
    def info(self) -> SourceInfo: ...

    def read(self, rect: Rect) -> Pixels: ...


@dataclass(frozen=True)
class Wrapped:
    """A source whose columns go on around it: to the right of the last one comes the first.

    Whatever computes a pixel from a window around it (the base, DINO features) thereby closes by itself.
    """

    source: Windows

    @property
    def info(self) -> SourceInfo:
        """Of the source."""
        return self.source.info

    def read(self, rect: Rect) -> Pixels:
        """Pixels of a window, which may stick out by any amount and be wider than the source.

        Parameters
        ----------
        rect
            Window in source_px; width and height at least 1. Rows above and below the source replicate.

        Returns
        -------
        ndarray (rect.h, rect.w, bands) of ``info.dtype``, owned by the caller.

        Raises
        ------
        JobError
            If the store cannot be read or has lost bytes.
        """
        width = self.info.width
        if rect.w > 2 * width:  # turns upon turns: read what there is once, and repeat it
            once = self.source.read(Rect(0, rect.y, width, rect.h))
            return once[:, np.arange(rect.x, rect.x1) % width]
        parts = [self.source.read(part) for part in rect.turns(width)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
