"""What a family of formats can hold, as data, and how it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dino_ray.raster.store import Depth
from dino_ray.raster.vips import VipsImage

# libvips' own limit on a side, VIPS_MAX_COORD; the formats without a smaller one share it.
LIBVIPS_MAX_SIDE = 100_000_000


@dataclass(frozen=True)
class Format:
    """A family of formats.

    Attributes
    ----------
    name
        As people write it.
    suffixes
        File name endings in lower case, the usual one first.
    max_side
        Largest width or height in pixels.
    depths
        Sample depths that it holds.
    alpha
        Whether it holds transparency.
    save
        Writes an image to a path that ends in anything, streaming; raises pyvips.Error.
    """

    name: str
    suffixes: tuple[str, ...]
    max_side: int
    depths: tuple[Depth, ...]
    alpha: bool
    save: Callable[[VipsImage, str], None]

    def shortcoming(self, width: int, height: int, bands: int) -> str | None:
        """Why an image does not fit in at any depth, as the end of a sentence; None if it fits."""
        if max(width, height) > self.max_side:
            return f"holds at most {self.max_side:,} pixels a side, and the result is {width:,} × {height:,}"
        if bands in (2, 4) and not self.alpha:
            return "holds no transparency, and the result has an alpha band"
        return None
