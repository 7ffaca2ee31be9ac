"""JPEG: 8 bits, no transparency, at most 65,535 pixels a side."""

from __future__ import annotations

from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export.formats import Compression, Format, Labels, Settings
from dino_ray.raster.export.vips_image import kept, save_with

_MAX_SIDE = 65_535  # sides are 16-bit numbers in the file


def save(canvas: Canvas, labels: Labels, settings: Settings, path: str) -> None:
    """Write a JPEG with chroma at full resolution, for upscaling is about detail."""
    # Neither progressive nor with optimised tables: both make libjpeg hold the whole image.
    options = {"Q": settings.quality, "subsample_mode": "off", "keep": kept(labels)}
    save_with(canvas, labels, path, lambda image: image.jpegsave(path, **options))


FORMAT = Format(
    key="jpeg",
    name="JPEG",
    suffixes=(".jpg", ".jpeg", ".jpe", ".jfif"),
    max_side=_MAX_SIDE,
    compressions=(Compression("jpeg", lossy=True, depths=("uint8",), bands=(1, 3)),),
    save=save,
)
