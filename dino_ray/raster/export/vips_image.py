"""Labelling the image that libvips writes."""

from __future__ import annotations

from collections.abc import Callable

import pyvips

from dino_ray.raster import metadata
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export.formats import Labels
from dino_ray.raster.export.vips_source import pull
from dino_ray.raster.vips import VipsImage

_MM_PER_INCH = 25.4
_UNSTATED_DPI = (72.0, 72.0)  # what programs assume for, and libvips writes into, files that say nothing


def save_with(
    canvas: Canvas, labels: Labels, path: str, write: Callable[[VipsImage], None], png: bool = False
) -> None:
    """Stream the canvas, with its labels, into one of libvips' writers of files; see `pull`."""
    pull(canvas, lambda image: write(_labelled(metadata.reserve(image, labels.metadata, png), labels)))
    metadata.complete(path, labels.metadata)


def save_tiles_with(canvas: Canvas, labels: Labels, write: Callable[[VipsImage], None]) -> None:
    """As `save_with`, for a writer of many files: each has profile and resolution, and none the metadata."""
    pull(canvas, lambda image: write(_labelled(image, labels)))


def kept(labels: Labels) -> int:
    """What a writer is to keep, as its flags: libvips would make up an EXIF block where there is none."""
    flags = pyvips.ForeignKeep
    kept: int = flags.ICC | flags.XMP | flags.IPTC | (flags.EXIF if labels.metadata.exif else flags.NONE)
    return kept


def _labelled(image: VipsImage, labels: Labels) -> VipsImage:
    """The image with profile and resolution as the fields that libvips' writers look at."""
    dpi_x, dpi_y = labels.dpi or _UNSTATED_DPI
    image = image.copy(xres=dpi_x / _MM_PER_INCH, yres=dpi_y / _MM_PER_INCH)
    image.set_type(pyvips.GValue.gstr_type, "resolution-unit", "in")
    if labels.icc is not None:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", labels.icc)
    return image
