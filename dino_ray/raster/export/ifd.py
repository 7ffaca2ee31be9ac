"""The head of a TIFF that is written here: its header and a directory per image, little-endian."""

from __future__ import annotations

from collections.abc import Sequence

from dino_ray.raster.tiff import directory
from dino_ray.raster.tiff.directory import (
    BIG_LITTLE_ENDIAN,
    BIG_TIFF_HEADER,
    LITTLE_ENDIAN,
    SHORT,
    TIFF_HEADER,
    Field,
    write_directory,
)
from dino_ray.raster.tiff.tags import CONTIGUOUS, STRAIGHT_ALPHA, UNSIGNED, Tag


def field(tag: Tag, kind: int, values: Sequence[int]) -> Field:
    """One entry of a directory; see `directory.field`."""
    return directory.field(LITTLE_ENDIAN, tag, kind, values)


def header(directories: Sequence[Sequence[Field]], big: bool) -> bytes:
    """The start of a file: its header and a chain of directories with all their values.

    Its length does not depend on offsets in the fields, so it can be laid out before they are known.

    Parameters
    ----------
    directories
        One per image, fields in any order.
    big
        BigTIFF, whose offsets have 64 bits.
    """
    layout, head = (BIG_LITTLE_ENDIAN, BIG_TIFF_HEADER) if big else (LITTLE_ENDIAN, TIFF_HEADER)
    for i, fields in enumerate(directories, 1):
        following = 0 if i == len(directories) else None
        in_order = sorted(fields, key=lambda field: field.tag)  # of their values, too
        head += write_directory(layout, len(head), in_order, following=following)
    return head


def sample_fields(bands: int, bits: int) -> list[Field]:
    """What every directory of chunky, unsigned samples with straight alpha has, beside size and place."""
    alpha = [field(Tag.EXTRA_SAMPLES, SHORT, [STRAIGHT_ALPHA])] if bands in (2, 4) else []
    return [
        field(Tag.BITS_PER_SAMPLE, SHORT, [bits] * bands),
        field(Tag.SAMPLES_PER_PIXEL, SHORT, [bands]),
        field(Tag.PLANAR_CONFIGURATION, SHORT, [CONTIGUOUS]),
        *alpha,
        field(Tag.SAMPLE_FORMAT, SHORT, [UNSIGNED] * bands),
    ]
