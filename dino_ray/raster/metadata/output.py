"""The source's metadata, made true of the output."""

from __future__ import annotations

import logging
from collections.abc import Callable
from fractions import Fraction

from dino_ray.raster.metadata import exif, iptc, xmp
from dino_ray.raster.metadata.blocks import Metadata
from dino_ray.raster.tiff.data import Damaged

logger = logging.getLogger(__name__)

_UPRIGHT, _INCH = "1", "2"
_MAX_DENOMINATOR = 10_000  # as in EXIF
# Lengths that GPano states, along x and y.
_GPANO_X = (
    "FullPanoWidthPixels",
    "CroppedAreaImageWidthPixels",
    "CroppedAreaLeftPixels",
    "LargestValidInteriorRectLeft",
    "LargestValidInteriorRectWidth",
)
_GPANO_Y = (
    "FullPanoHeightPixels",
    "CroppedAreaImageHeightPixels",
    "CroppedAreaTopPixels",
    "LargestValidInteriorRectTop",
    "LargestValidInteriorRectHeight",
)


def for_output(
    metadata: Metadata,
    source_size: tuple[int, int],
    output_size: tuple[int, int],
    dpi: tuple[float, float] | None,
) -> Metadata:
    """The blocks as they hold for the upright, enlarged image: what speaks of the picture stays to the byte.

    Orientation, pixel dimensions, resolution and a panorama's dimensions are set where they are stated, and
    thumbnails are dropped. A damaged block is dropped as a whole, with a warning in the log; none raises.

    Parameters
    ----------
    source_size, output_size
        Width and height, upright.
    dpi
        Dots per inch of the output in x and y: EXIF states it then, if need be in a block of its own. None
        leaves what there is.
    """
    return Metadata(
        exif=_exif_for(metadata.exif, output_size, dpi),
        xmp=metadata.xmp and _xmp_for(metadata.xmp, source_size, output_size, dpi),
        iptc=metadata.iptc and (iptc.without_preview(metadata.iptc) or None),
    )


def _exif_for(block: bytes | None, size: tuple[int, int], dpi: tuple[float, float] | None) -> bytes | None:
    if block is not None:
        try:
            return exif.updated(block, size, dpi)
        except Damaged as error:
            logger.warning("EXIF is left out; it is damaged (%s)", error)
    return None if dpi is None else exif.resolution_only(dpi)


def _xmp_for(
    packet: bytes,
    source_size: tuple[int, int],
    output_size: tuple[int, int],
    dpi: tuple[float, float] | None,
) -> bytes | None:
    (width, height), scales = output_size, _scales(source_size, output_size)
    edits: dict[xmp.Name, Callable[[str], str]] = {
        (xmp.TIFF, "Orientation"): lambda _: _UPRIGHT,
        (xmp.TIFF, "ImageWidth"): lambda _: str(width),
        (xmp.TIFF, "ImageLength"): lambda _: str(height),
        (xmp.EXIF, "PixelXDimension"): lambda _: str(width),
        (xmp.EXIF, "PixelYDimension"): lambda _: str(height),
    }
    for names, scale in zip((_GPANO_X, _GPANO_Y), scales, strict=True):
        edits |= {(xmp.GPANO, name): _scaled_by(scale) for name in names}
    if dpi is not None:
        x, y = dpi
        edits |= {
            (xmp.TIFF, "XResolution"): lambda _: _rational(x),
            (xmp.TIFF, "YResolution"): lambda _: _rational(y),
            (xmp.TIFF, "ResolutionUnit"): lambda _: _INCH,
        }
    try:
        return xmp.edited(packet, edits)
    except xmp.Malformed as error:
        logger.warning("XMP is left out; it is damaged (%s)", error)
        return None


def _scales(source_size: tuple[int, int], output_size: tuple[int, int]) -> tuple[Fraction, Fraction]:
    return Fraction(output_size[0], source_size[0]), Fraction(output_size[1], source_size[1])


def _scaled_by(scale: Fraction) -> Callable[[str], str]:
    return lambda text: str(round(Fraction(float(text)) * scale))


def _rational(value: float) -> str:
    fraction = Fraction(value).limit_denominator(_MAX_DENOMINATOR)
    return f"{fraction.numerator}/{fraction.denominator}"
