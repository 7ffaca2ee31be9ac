"""What a photographer put into a file, as the raw blocks that formats carry, and its way in and out of libvips."""

from __future__ import annotations

from dataclasses import dataclass

import pyvips

from dino_ray.raster.metadata import iptc
from dino_ray.raster.vips import VipsImage

_EXIF, _XMP, _IPTC = "exif-data", "xmp-data", "iptc-data"
EXIF_PREFIX = b"Exif\0\0"


@dataclass(frozen=True)
class Metadata:
    r"""What a file says beside its pixels, profile and resolution; None where it says nothing.

    Attributes
    ----------
    exif
        An EXIF block: a TIFF structure, without the ``Exif\0\0`` that JPEG puts before it.
    xmp
        The XMP packet, as UTF-8.
    iptc
        IPTC-IIM records as in TIFF's tag 33723, without Photoshop's wrapper.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None


def read(image: VipsImage) -> Metadata:
    """The blocks that libvips found in a file's header."""
    exif, wrapped = _blob(image, _EXIF), _blob(image, _IPTC)
    return Metadata(
        exif=exif and (exif.removeprefix(EXIF_PREFIX) or None),
        xmp=_blob(image, _XMP),
        iptc=wrapped and iptc.unwrap(wrapped),
    )


def attach(image: VipsImage, metadata: Metadata) -> VipsImage:
    """A copy of an image that has these blocks, and no others, for libvips to write.

    XMP is written as it is in every format, IPTC only in JPEG. (In TIFF libvips cuts IPTC short: it counts in
    units of four bytes what is stored in single ones.) EXIF is rewritten by libexif, with losses: see
    `completion` for what keeps it whole.
    """
    image = image.copy()
    blocks = {
        _EXIF: metadata.exif and EXIF_PREFIX + metadata.exif,
        _XMP: metadata.xmp,
        _IPTC: metadata.iptc and iptc.wrap(metadata.iptc),
    }
    for name, block in blocks.items():
        if block:
            image.set_type(pyvips.GValue.blob_type, name, block)
        elif image.get_typeof(name):
            image.remove(name)
    return image


def _blob(image: VipsImage, name: str) -> bytes | None:
    return bytes(image.get(name)) or None if image.get_typeof(name) else None
