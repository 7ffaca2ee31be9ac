"""What a panorama says of its shape: Google's GPano properties in XMP.

See https://developers.google.com/streetview/spherical-metadata. Lengths are in pixels of the whole sphere's
equirectangular picture, of which the file may be a part.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from dino_ray.raster.metadata import xmp
from dino_ray.raster.metadata.blocks import Metadata

logger = logging.getLogger(__name__)

_EQUIRECTANGULAR = "equirectangular"


@dataclass(frozen=True)
class Panorama:
    """Shape of a panorama, in source_px of the file that says so; 0 where it does not say.

    Attributes
    ----------
    projection
        In lower case; ``equirectangular`` is the one that viewers know.
    full_width, full_height
        Of the whole sphere.
    cropped_left, cropped_top, cropped_width, cropped_height
        The part of it that the file shows.
    """

    projection: str
    full_width: int
    full_height: int
    cropped_left: int
    cropped_top: int
    cropped_width: int
    cropped_height: int

    @property
    def closes(self) -> bool:
        """Whether the right edge meets the left one."""
        return self.projection == _EQUIRECTANGULAR and self.cropped_width == self.full_width


def panorama(metadata: Metadata) -> Panorama | None:
    """What the XMP says of a panorama; None where there is none, or no readable XMP.

    Of widths and heights of which one is not stated the other stands for it: a file without crop is whole.
    """
    if metadata.xmp is None:
        return None
    try:
        found = xmp.properties(metadata.xmp)
    except xmp.Malformed as error:
        logger.warning("XMP is not looked at; it is damaged (%s)", error)
        return None
    texts = {name: places[0].text.strip() for (space, name), places in found.items() if space == xmp.GPANO}
    if "ProjectionType" not in texts:
        return None
    full_width, full_height = (_length(texts.get(f"FullPano{axis}Pixels")) for axis in ("Width", "Height"))
    width, height = (_length(texts.get(f"CroppedAreaImage{axis}Pixels")) for axis in ("Width", "Height"))
    return Panorama(
        projection=texts["ProjectionType"].lower(),
        full_width=full_width or width,
        full_height=full_height or height,
        cropped_left=_length(texts.get("CroppedAreaLeftPixels")),
        cropped_top=_length(texts.get("CroppedAreaTopPixels")),
        cropped_width=width or full_width,
        cropped_height=height or full_height,
    )


def _length(text: str | None) -> int:
    try:
        return max(0, round(float(text or 0)))
    except (ValueError, OverflowError):
        return 0
