"""WebP: 8 bits, lossy or lossless, at most 16,383 pixels a side.

Its encoder holds the whole picture; nothing streams into a WebP. Lossless takes about 33 bytes a pixel.
"""

from __future__ import annotations

import pyvips

from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export.formats import Compression, Format, Labels, Settings
from dino_ray.raster.export.vips_image import kept, save_with
from dino_ray.raster.vips import VipsImage

_MAX_SIDE = 16_383  # 14-bit numbers in the file

# The format has 512 KiB for the modes of a lossy picture's blocks. Where there are more blocks libwebp keeps to that
# by choosing modes that are told in fewer bits, from this effort on, and beyond about 10 bits a block, 100
# megapixels, it fails after all the work. Effort 4, its default, saves 1 % at quality 95 and takes 1.5 times as long.
_EFFORT = 2
_MAX_LOSSY_PIXELS = 8192 * 8192
_LOSSY, _LOSSLESS = "lossy", "lossless"


def save(canvas: Canvas, labels: Labels, settings: Settings, path: str) -> None:
    """Write a WebP; grey becomes RGB of equal bands, for WebP has no grey."""
    options = {"effort": _EFFORT, "keep": kept(labels)}
    if settings.compression == _LOSSLESS:
        options |= {"lossless": True, "exact": True}  # also the colours of what is fully transparent
    else:
        # Chroma is always halved in lossy WebP; the sharp conversion keeps edges of colour where they are.
        options |= {"Q": settings.quality, "smart_subsample": True}
    save_with(canvas, labels, path, lambda image: _without_grey_profile(image).webpsave(path, **options))


def _without_grey_profile(image: VipsImage) -> VipsImage:
    """The image, in sRGB if a grey profile would not describe the RGB that the file will hold."""
    if image.bands > 2 or not image.get_typeof("icc-profile-data"):
        return image
    try:
        return image.icc_transform("srgb", embedded=True)
    except pyvips.Error:  # A profile that cannot be used is no loss.
        image = image.copy()
        image.remove("icc-profile-data")
        return image


FORMAT = Format(
    key="webp",
    name="WebP",
    suffixes=(".webp",),
    max_side=_MAX_SIDE,
    compressions=(
        Compression(_LOSSY, lossy=True, depths=("uint8",), max_pixels=_MAX_LOSSY_PIXELS),
        Compression(_LOSSLESS, depths=("uint8",)),
    ),
    save=save,
)
