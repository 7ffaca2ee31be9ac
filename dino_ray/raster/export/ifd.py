"""TIFF directories: what TIFF 6.0, and BigTIFF, put before and beside the pixels."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, LONG8 = 1, 2, 3, 4, 5, 7, 16
_CODES = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I", RATIONAL: "I", UNDEFINED: "B", LONG8: "Q"}


class Tag(IntEnum):
    """The fields used here, by their names in the specification."""

    NEW_SUBFILE_TYPE = 254
    IMAGE_WIDTH = 256
    IMAGE_LENGTH = 257
    BITS_PER_SAMPLE = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    STRIP_OFFSETS = 273
    SAMPLES_PER_PIXEL = 277
    ROWS_PER_STRIP = 278
    STRIP_BYTE_COUNTS = 279
    X_RESOLUTION = 282
    Y_RESOLUTION = 283
    PLANAR_CONFIGURATION = 284
    RESOLUTION_UNIT = 296
    PREDICTOR = 317
    TILE_WIDTH = 322
    TILE_LENGTH = 323
    TILE_OFFSETS = 324
    TILE_BYTE_COUNTS = 325
    EXTRA_SAMPLES = 338
    SAMPLE_FORMAT = 339
    JPEG_TABLES = 347
    YCBCR_SUBSAMPLING = 530
    XMP = 700
    IPTC = 33723
    ICC_PROFILE = 34675


# Values of fields.
UNCOMPRESSED = 1
BLACK_IS_ZERO, RGB, YCBCR = 1, 2, 6
CONTIGUOUS, STRAIGHT_ALPHA, UNSIGNED, INCH, REDUCED_IMAGE, HORIZONTAL = 1, 2, 1, 2, 1, 2


@dataclass(frozen=True)
class Field:
    """One entry of a directory; a rational is two values, numerator and denominator."""

    tag: Tag
    kind: int
    values: Sequence[int]

    @property
    def count(self) -> int:
        """Number of values, as the entry says it."""
        return len(self.values) // 2 if self.kind == RATIONAL else len(self.values)

    @property
    def data(self) -> bytes:
        """The values, little-endian."""
        if isinstance(self.values, bytes):  # a profile or a packet, of perhaps megabytes
            return self.values
        return struct.pack(f"<{len(self.values)}{_CODES[self.kind]}", *self.values)


@dataclass(frozen=True)
class _Layout:
    """What differs between a classic TIFF and a BigTIFF."""

    head: str
    first: int
    count: str
    entry: str
    offset: str


_CLASSIC = _Layout(head="<2sHI", first=8, count="<H", entry="<HHI", offset="<I")
_BIG = _Layout(head="<2sHHHQ", first=16, count="<Q", entry="<HHQ", offset="<Q")
_ALIGNMENT = 2  # offsets of directories and values are even


def header(directories: Sequence[Sequence[Field]], big: bool) -> bytes:
    """The start of a file: its header and a chain of directories with all their values.

    Its length does not depend on offsets in the fields, so it can be laid out before they are known.

    Parameters
    ----------
    directories
        One per image, fields in order of tags.
    big
        BigTIFF, whose offsets have 64 bits.

    Raises
    ------
    struct.error
        If a value needs more bits than its kind has.
    """
    layout = _BIG if big else _CLASSIC
    magic = (b"II", 43, 8, 0, layout.first) if big else (b"II", 42, layout.first)
    parts, position = [struct.pack(layout.head, *magic)], layout.first
    for i, fields in enumerate(directories):
        last = i == len(directories) - 1
        parts.append(_directory(layout, fields, position, last))
        position += len(parts[-1])
    return b"".join(parts)


def _directory(layout: _Layout, fields: Sequence[Field], position: int, last: bool) -> bytes:
    """One directory that begins at ``position``, its values right behind it, and behind those the next one."""
    inline = struct.calcsize(layout.offset)  # a value up to this size stands in its entry
    entry_bytes = struct.calcsize(layout.entry) + inline
    start = position + struct.calcsize(layout.count) + entry_bytes * len(fields) + inline
    start += -start % _ALIGNMENT
    entries, behind = b"", b""
    for field in fields:
        data = field.data
        if len(data) > inline:
            pointer = struct.pack(layout.offset, start + len(behind))
            behind += data + bytes(-len(data) % _ALIGNMENT)
            data = pointer
        entries += struct.pack(layout.entry, field.tag, field.kind, field.count) + data.ljust(inline, b"\0")
    following = struct.pack(layout.offset, 0 if last else start + len(behind))
    directory = struct.pack(layout.count, len(fields)) + entries + following
    return directory.ljust(start - position, b"\0") + behind


def sample_fields(bands: int, bits: int) -> list[Field]:
    """What every directory of chunky, unsigned samples with straight alpha has, beside size and place."""
    alpha = [Field(Tag.EXTRA_SAMPLES, SHORT, [STRAIGHT_ALPHA])] if bands in (2, 4) else []
    return [
        Field(Tag.BITS_PER_SAMPLE, SHORT, [bits] * bands),
        Field(Tag.SAMPLES_PER_PIXEL, SHORT, [bands]),
        Field(Tag.PLANAR_CONFIGURATION, SHORT, [CONTIGUOUS]),
        *alpha,
        Field(Tag.SAMPLE_FORMAT, SHORT, [UNSIGNED] * bands),
    ]


def ordered(fields: Sequence[Field]) -> list[Field]:
    """Fields in the order that the specification asks for."""
    return sorted(fields, key=lambda field: field.tag)
