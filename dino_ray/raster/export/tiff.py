"""TIFF: lossless, 8 and 16 bits, any size; BigTIFF where a classic one would not hold the pixels."""

from __future__ import annotations

from dino_ray.raster.export.formats import LIBVIPS_MAX_SIDE, Format
from dino_ray.raster.vips import VipsImage

# Tiles rather than strips, so that viewers open a corner of a gigapixel at once; 256 is what they expect.
_TILE = 256
# On upscaled photographs deflate level 3 makes files 3 % larger than level 6 does, in half the time.
_LEVEL = 3
# Offsets of a classic TIFF are 32-bit. What is left below 2^32 is room for the index and for pixels that
# deflate makes larger (by 0.03 % at most).
_CLASSIC_BYTES = 4_000_000_000

_SAMPLE_BYTES = {"uchar": 1, "ushort": 2}


def needs_bigtiff(width: int, height: int, bands: int, sample_bytes: int) -> bool:
    """Whether pixels that do not compress could outgrow a classic TIFF; border tiles are whole tiles."""
    tiles = -(-width // _TILE) * -(-height // _TILE)
    return tiles * _TILE**2 * bands * sample_bytes > _CLASSIC_BYTES


def save(image: VipsImage, path: str) -> None:
    image.tiffsave(
        path,
        compression="deflate",
        level=_LEVEL,
        predictor="horizontal",
        tile=True,
        tile_width=_TILE,
        tile_height=_TILE,
        bigtiff=needs_bigtiff(image.width, image.height, image.bands, _SAMPLE_BYTES[image.format]),
    )


FORMAT = Format("TIFF", (".tif", ".tiff"), LIBVIPS_MAX_SIDE, ("uint8", "uint16"), alpha=True, save=save)
