"""A source that closes on itself in x, as a 360° panorama does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dino_ray.plan.geometry import Rect
from dino_ray.raster.info import SourceInfo
from dino_ray.raster.store import Pixels
from dino_ray.raster.windows import Windows


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
        """See `Windows.read`: columns go on around, rows above and below the source replicate."""
        width = self.info.width
        if rect.w > 2 * width:  # turns upon turns: read what there is once, and repeat it
            once = self.source.read(Rect(0, rect.y, width, rect.h))
            return once[:, np.arange(rect.x, rect.x1) % width]
        parts = [self.source.read(part) for part in rect.turns(width)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
