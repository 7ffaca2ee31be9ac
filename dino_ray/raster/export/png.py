"""PNG: lossless, 8 and 16 bits, any size."""

from __future__ import annotations

from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export.formats import LIBVIPS_MAX_SIDE, Compression, Format, Labels, Settings
from dino_ray.raster.export.vips_image import kept, save_with

# zlib's levels; the first is taken if none is asked for. On upscaled photographs, one core: level 3 with the
# Paeth filter 21.4 % of raw size at 128 MB/s, level 6 20.6 % at 50 MB/s, level 1 32.8 % at 173 MB/s, level 3
# without a filter 35.0 %.
_LEVELS = (3, 0, 1, 2, 4, 5, 6, 7, 8, 9)
_FILTER = "paeth"


def save(canvas: Canvas, labels: Labels, settings: Settings, path: str) -> None:
    """Write a PNG that is not interlaced, for interlacing makes writer and readers hold the whole image."""
    options = {"compression": int(settings.compression), "filter": _FILTER, "keep": kept(labels)}
    save_with(canvas, labels, path, lambda image: image.pngsave(path, **options), png=True)


FORMAT = Format(
    key="png",
    name="PNG",
    suffixes=(".png",),
    max_side=LIBVIPS_MAX_SIDE,
    compressions=tuple(Compression(str(level)) for level in _LEVELS),
    save=save,
)
