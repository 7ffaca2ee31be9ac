"""EXIF, XMP and IPTC: read from the source, made true of the output, written into it.

In: `read` the header that libvips read; for a TIFF `read_tiff`, since libvips finds no EXIF there. Between:
`for_output`. Out: `reserve` the image, have libvips write it, `complete` the file. (`attach` is for formats
that `complete` does not know; a TIFF may come from any writer.)
"""

from dino_ray.raster.metadata.blocks import Metadata, attach, read
from dino_ray.raster.metadata.completion import MAX_EXIF_BYTES, complete, reserve
from dino_ray.raster.metadata.output import for_output
from dino_ray.raster.metadata.panorama import Panorama, panorama
from dino_ray.raster.metadata.tiff import add_exif_to_tiff, read_tiff

__all__ = [
    "MAX_EXIF_BYTES",
    "Metadata",
    "Panorama",
    "add_exif_to_tiff",
    "attach",
    "complete",
    "for_output",
    "panorama",
    "read",
    "read_tiff",
    "reserve",
]
