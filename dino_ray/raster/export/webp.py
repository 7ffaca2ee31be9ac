"""WebP: 8 bits, lossy here, at most 16,383 pixels a side.

Its encoder holds the whole picture, about 2 GiB at the largest size; nothing streams into a WebP.
"""

from __future__ import annotations

import pyvips

from dino_ray.raster.export.formats import Format
from dino_ray.raster.vips import VipsImage

_MAX_SIDE = 16_383  # 14-bit numbers in the file

_QUALITY = 95  # as for JPEG; who wants no loss has PNG
# On upscaled photographs effort 4, libwebp's default, saves nothing over 1 at this quality and takes 1.5
# times as long.
_EFFORT = 1


def save(image: VipsImage, path: str) -> None:
    if image.bands <= 2 and image.get_typeof("icc-profile-data"):
        # The file will hold RGB, and a grey profile would not describe it.
        image = _to_srgb(image)
    # Chroma is always halved in lossy WebP; the sharp conversion keeps edges of colour where they are.
    image.webpsave(path, Q=_QUALITY, effort=_EFFORT, smart_subsample=True)


def _to_srgb(image: VipsImage) -> VipsImage:
    try:
        return image.icc_transform("srgb", embedded=True)
    except pyvips.Error:  # A profile that cannot be used is no loss.
        image = image.copy()
        image.remove("icc-profile-data")
        return image


FORMAT = Format("WebP", (".webp",), _MAX_SIDE, ("uint8",), alpha=True, save=save)
