"""EXIF to the byte, in files that libvips wrote.

libvips takes an EXIF block apart with libexif and writes what that understood: unknown tags are lost, maker
notes move away from the offsets in them, comments and unknown types change. So it is given a block that holds
nothing but room, and the real one is written over that: JPEG, PNG and WebP are changed in one place, however
large they are. Into TIFF libvips writes no EXIF at all, so the block is added at the end.
"""

from __future__ import annotations

import logging
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from dino_ray.raster.metadata.blocks import EXIF_PREFIX, Metadata, attach
from dino_ray.raster.metadata.directory import (
    LITTLE_ENDIAN,
    LONG,
    TIFF_HEADER,
    UNDEFINED,
    Field,
    write_directory,
)
from dino_ray.raster.metadata.exif import EXIF_IFD
from dino_ray.raster.metadata.tiff import add_exif_to_tiff
from dino_ray.raster.vips import VipsImage

logger = logging.getLogger(__name__)

_MAKER_NOTE = 37500
# libexif keeps a maker note of any bytes but zeros.
_FILLER = b"\xa5"
# libvips adds at least 156 bytes of tags that it wants in every block, to a note of this size or larger.
_ADDED_BYTES, _MIN_NOTE = 150, 8
# The largest note that libvips gets into the 64 KiB of a JPEG's segment beside those tags.
_MAX_NOTE = 65_358
MAX_EXIF_BYTES = _MAX_NOTE + _ADDED_BYTES

_JPEG, _PNG, _RIFF, _WEBP = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF", b"WEBP"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_APP1, _START_OF_SCAN = 0xE1, 0xDA


def reserve(image: VipsImage, metadata: Metadata) -> VipsImage:
    """As `attach`, for a file that `complete` is called on: in place of EXIF libvips is given room for it."""
    exif = metadata.exif
    if exif is None or len(exif) > MAX_EXIF_BYTES:
        return attach(image, replace(metadata, exif=None))
    note = _FILLER * max(_MIN_NOTE, len(exif) - _ADDED_BYTES)
    pointer = Field(EXIF_IFD, LONG, 1, b"", (Field(_MAKER_NOTE, UNDEFINED, len(note), note),))
    room = TIFF_HEADER + write_directory(LITTLE_ENDIAN, len(TIFF_HEADER), [pointer])
    return attach(image, replace(metadata, exif=room))


def complete(path: str | Path, metadata: Metadata) -> None:
    """Put the EXIF block into a file that libvips wrote of a reserved image, or into a TIFF of any origin.

    In a JPEG, PNG or WebP it stands byte for byte, with zeros behind it in what room is left. A block of more
    than `MAX_EXIF_BYTES` fits only in a TIFF; it is left out elsewhere, with a warning.

    Parameters
    ----------
    path
        JPEG, PNG, WebP or TIFF, by its first bytes; other files stay as they are.
    metadata
        What the image was reserved for.

    Raises
    ------
    OSError
        If the file cannot be read or written.
    """
    exif = metadata.exif
    if exif is None:
        return
    with open(path, "r+b") as file:
        start = file.read(12)
        if not start.startswith(_TIFF_STARTS):
            _fill(path, file, start, exif)
            return
    add_exif_to_tiff(path, exif)


@dataclass(frozen=True)
class _Room:
    """Bytes of a file that EXIF may stand in; ``check_type`` is the chunk's type where a checksum follows."""

    start: int
    size: int
    check_type: bytes | None = None


def _fill(path: str | Path, file: BinaryIO, start: bytes, exif: bytes) -> None:
    if start.startswith(_JPEG):
        room = _room_in_jpeg(file)
    elif start.startswith(_PNG):
        room = _room_in_png(file)
    elif start.startswith(_RIFF) and start[8:12] == _WEBP:
        room = _room_in_webp(file)
    else:
        return
    if room is None or len(exif) > min(room.size, MAX_EXIF_BYTES):
        logger.warning("%s: EXIF is left out; its %s bytes are too many", path, f"{len(exif):,}")
        return
    data = exif.ljust(room.size, b"\0")
    file.seek(room.start)
    file.write(data)
    if room.check_type is not None:
        file.write(struct.pack(">I", zlib.crc32(room.check_type + data)))


def _room_in_jpeg(file: BinaryIO) -> _Room | None:
    at = len(_JPEG)
    while True:
        file.seek(at)
        head = file.read(4 + len(EXIF_PREFIX))
        if len(head) < 4 or head[0] != 0xFF or head[1] == _START_OF_SCAN:
            return None
        (size,) = struct.unpack(">H", head[2:4])  # of the segment less its marker
        if head[1] == _APP1 and head[4:] == EXIF_PREFIX:
            return _Room(at + len(head), size - 2 - len(EXIF_PREFIX))
        at += 2 + size


def _room_in_png(file: BinaryIO) -> _Room | None:
    at = len(_PNG)
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IDAT":
            return None
        size, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return _Room(at + 8, size, kind)
        at += 8 + size + 4


def _room_in_webp(file: BinaryIO) -> _Room | None:
    at = 12
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return None
        kind, size = struct.unpack("<4sI", head)
        if kind == b"EXIF":
            return _Room(at + 8, size)
        at += 8 + size + size % 2
