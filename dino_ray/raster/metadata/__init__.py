"""EXIF, XMP and IPTC: read from the source, made true of the output, written into it."""

from dino_ray.raster.metadata.blocks import Metadata, attach, read

__all__ = ["Metadata", "attach", "read"]
