"""Colour on the way in: CMYK becomes sRGB, all else keeps its numbers and its profile unless sRGB is asked for."""

from __future__ import annotations

import io
from dataclasses import dataclass

from dino_ray.errors import UsageError
from dino_ray.raster.vips import VipsImage, field

_ICC = "icc-profile-data"
# What libvips calls images that are plain already, by their number of colour bands.
_COLOUR_BANDS = {"b-w": 1, "grey16": 1, "srgb": 3, "rgb": 3, "rgb16": 3, "scrgb": 3}
_CMYK_INKS = 4
# As photographs are converted everywhere: white stays white and black black, all between keeps its colour.
_INTENT = {"intent": "relative", "black_point_compensation": True}


@dataclass(frozen=True)
class Plain:
    """An image of grey or RGB, each with or without straight alpha as its last band."""

    image: VipsImage
    icc: bytes | None
    notes: tuple[str, ...]


def colour_bands(image: VipsImage, shown: str) -> int:
    """Number of bands that are not alpha.

    Raises
    ------
    UsageError
        If the bands are of no kind taken here.
    """
    inks = _CMYK_INKS if image.interpretation == "cmyk" else _COLOUR_BANDS.get(image.interpretation)
    if inks is None or image.bands - inks not in (0, 1):
        raise UsageError(
            f"{shown}: has {image.bands} bands of kind {image.interpretation}; only grey, RGB and CMYK, each "
            "with or without alpha, are taken: convert it first"
        )
    return inks


def plain(image: VipsImage, shown: str, to_srgb: bool) -> Plain:
    """Convert what has to be converted, and say so.

    Parameters
    ----------
    image
        Of 8 or 16 unsigned bits.
    to_srgb
        Whether to leave the file's profile for sRGB, at the same depth.

    Raises
    ------
    UsageError
        As `colour_bands`.
    """
    inks = colour_bands(image, shown)
    profile = bytes(field(image, _ICC, b"")) or None
    if inks == _CMYK_INKS:
        # Files without a usable profile get libvips' own generic press profile.
        described = _fits(profile, b"CMYK")
        how = "its profile" if described else "a generic press profile, for it has none of its own that fits"
        converted = _converted(image, inks, embedded=described)
        srgb = None if to_srgb else bytes(field(converted, _ICC, b"")) or None
        return Plain(converted, srgb, (f"is CMYK; converted to sRGB through {how}",))
    if profile is None:
        return Plain(image, None, ())
    space = b"GRAY" if inks == 1 else b"RGB "
    if not _fits(profile, space):
        kind = "grey" if inks == 1 else "RGB"
        return Plain(
            image, None, (f"has a colour profile that is damaged or not for {kind} pixels; left out",)
        )
    if not to_srgb:
        return Plain(image, profile, ())
    converted = _converted(image, inks, embedded=True)
    return Plain(converted, None, ("converted to sRGB through its profile",))


def _converted(image: VipsImage, inks: int, embedded: bool) -> VipsImage:
    """Colour bands as sRGB, or as sRGB's grey where there was one; alpha as it was; the same depth."""
    depth = 16 if image.format == "ushort" else 8
    options = {"input_profile": "cmyk"} if inks == _CMYK_INKS else {}
    colour = image.extract_band(0, n=inks) if image.bands > inks else image
    colour = colour.icc_transform("srgb", embedded=embedded, depth=depth, **_INTENT, **options)
    if inks == 1:  # neutral: all three bands are the same
        colour = colour.extract_band(0).copy(interpretation="grey16" if depth == 16 else "b-w")
    return colour.bandjoin(image[inks]) if image.bands > inks else colour


def _fits(profile: bytes | None, space: bytes) -> bool:
    """Whether a profile can be used, and is for pixels of that colour space."""
    # ICC.1:2022, 7.2: bytes 16 to 19 of the header are the data colour space.
    if profile is None or profile[16:20] != space:
        return False
    from PIL import ImageCms

    try:
        ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except OSError:
        return False
    except ImportError:  # a Pillow without LittleCMS cannot tell
        return True
    return True
