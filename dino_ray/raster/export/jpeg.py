"""JPEG: 8 bits, no transparency, at most 65,535 pixels a side."""

from __future__ import annotations

from dino_ray.raster.export.formats import Format
from dino_ray.raster.vips import VipsImage

_MAX_SIDE = 65_535  # sides are 16-bit numbers in the file

# Upscaling is about detail: chroma is kept at full resolution, and the loss is below what can be seen.
_QUALITY = 95
_SUBSAMPLING = "off"


def save(image: VipsImage, path: str) -> None:
    # Neither progressive nor with optimised tables: both make libjpeg hold the whole image.
    image.jpegsave(path, Q=_QUALITY, subsample_mode=_SUBSAMPLING)


FORMAT = Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), _MAX_SIDE, ("uint8",), alpha=False, save=save)
