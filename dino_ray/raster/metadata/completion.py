"""EXIF to the byte, and XMP where programs look for it, in files that libvips wrote.

libvips takes an EXIF block apart with libexif and writes what that understood: unknown tags are lost, maker
notes move away from the offsets in them, comments and unknown types change. So it is given a block that holds
nothing but room, and the real one is written over that: JPEG, PNG and WebP are changed in one place, however
large they are. Into TIFF libvips writes no EXIF at all, so the block is added at the end.

In a PNG, XMP belongs into an iTXt chunk (ISO 16684-3), uncompressed; libvips makes it zTXt, which most programs
do not look into. There too it is given something to take up room, and the real chunk is written over it.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from dino_ray.raster.metadata import iptc
from dino_ray.raster.metadata.blocks import EXIF_PREFIX, Metadata, attach
from dino_ray.raster.metadata.tiff import add_exif_to_tiff
from dino_ray.raster.tiff.directory import (
    LITTLE_ENDIAN,
    LONG,
    STARTS,
    TIFF_HEADER,
    UNDEFINED,
    Field,
    write_directory,
)
from dino_ray.raster.tiff.tags import Tag
from dino_ray.raster.vips import VipsImage

logger = logging.getLogger(__name__)

# libexif keeps a maker note of any bytes but zeros.
_FILLER = b"\xa5"
# libvips adds at least 156 bytes of tags that it wants in every block, to a note of this size or larger.
_ADDED_BYTES, _MIN_NOTE = 150, 8
# The largest note that libvips gets into the 64 KiB of a JPEG's segment beside those tags.
_MAX_NOTE = 65_358
MAX_EXIF_BYTES = _MAX_NOTE + _ADDED_BYTES
# What libvips puts into a JPEG of the other blocks; of XMP it takes less than the segment holds.
_MAX_JPEG_XMP, _MAX_JPEG_IPTC = 60_000, 65_533
_XMP_END = b"<?xpacket end"

_JPEG, _PNG, _RIFF, _WEBP = b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF", b"WEBP"
_PNG_EXIF, _PNG_TEXT, _PNG_COMPRESSED_TEXT = b"eXIf", b"iTXt", b"zTXt"
_XMP_KEYWORD = b"XML:com.adobe.xmp\0"
_PNG_LIBVIPS_XMP = _PNG_COMPRESSED_TEXT + _XMP_KEYWORD
_ITXT_HEAD = _XMP_KEYWORD + b"\0\0\0\0"  # not compressed, no language, no translated keyword
_ITXT_HEAD_BYTES = len(_ITXT_HEAD)
_APP1, _START_OF_SCAN = 0xE1, 0xDA


def reserve(image: VipsImage, metadata: Metadata, png: bool = False) -> VipsImage:
    """As `attach`, for a file that `complete` is called on: what that puts in, libvips keeps room for.

    Parameters
    ----------
    png
        Whether the file will be a PNG: only there room is kept for XMP too.
    """
    exif, xmp = metadata.exif, metadata.xmp
    if exif is not None:
        exif = _room_for_exif(len(exif)) if len(exif) <= MAX_EXIF_BYTES else None
    if xmp is not None and png:
        xmp = _incompressible(_ITXT_HEAD_BYTES + len(xmp))
    elif xmp is not None and len(xmp) > _MAX_JPEG_XMP:
        xmp = _unpadded(xmp)
    return attach(image, replace(metadata, exif=exif, xmp=xmp))


def _unpadded(xmp: bytes) -> bytes:
    """The packet without the blanks before its end: kilobytes of room for others to edit in."""
    body, end, rest = xmp.rpartition(_XMP_END)
    return body.rstrip() + end + rest if end else xmp


def _room_for_exif(size: int) -> bytes:
    """A block that becomes one of at least ``size`` bytes on its way through libvips."""
    note = _FILLER * max(_MIN_NOTE, size - _ADDED_BYTES)
    pointer = Field(Tag.EXIF_IFD, LONG, 1, b"", (Field(Tag.MAKER_NOTE, UNDEFINED, len(note), note),))
    return TIFF_HEADER + write_directory(LITTLE_ENDIAN, len(TIFF_HEADER), [pointer])


def _incompressible(size: int) -> bytes:
    """Text that deflate makes no smaller than ``size`` bytes."""
    # Letters of six bits each cannot shrink below 3/4, but for a repetition now and then, which the rest covers.
    letters = size * 3 // 2 + 64
    return base64.b64encode(hashlib.shake_128(b"room").digest(letters))[:letters]


def complete(path: str | Path, metadata: Metadata) -> None:
    """Put EXIF, and in a PNG also XMP, into a file that libvips wrote of a reserved image; EXIF into any TIFF.

    In a JPEG, PNG or WebP the block stands byte for byte, with zeros behind it in what room is left. A block of
    more than `MAX_EXIF_BYTES` fits only in a TIFF; it is left out elsewhere, with a warning in the log.

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
    with open(path, "r+b") as file:
        start = file.read(12)
        if start.startswith(_PNG):
            _complete_png(path, file, metadata)
        elif start.startswith(_JPEG):
            _fill(path, file, _room_in_jpeg(file), metadata.exif)
            _warn_of_losses_in_jpeg(path, metadata)
        elif start.startswith(_RIFF) and start[8:12] == _WEBP:
            _fill(path, file, _room_in_webp(file), metadata.exif)
    if start.startswith(STARTS) and metadata.exif is not None:
        add_exif_to_tiff(path, metadata.exif)


def _warn_of_losses_in_jpeg(path: str | Path, metadata: Metadata) -> None:
    sizes = (
        ("XMP", len(_unpadded(metadata.xmp or b"")), _MAX_JPEG_XMP),
        ("IPTC", len(iptc.wrap(metadata.iptc or b"")), _MAX_JPEG_IPTC),
    )
    for name, size, limit in sizes:
        if size > limit:
            logger.warning(
                "%s: %s is left out; of its %s bytes a JPEG takes %s", path, name, f"{size:,}", f"{limit:,}"
            )


@dataclass(frozen=True)
class _Room:
    """Bytes of a file that a block may stand in."""

    start: int
    size: int


def _fill(path: str | Path, file: BinaryIO, room: _Room | None, exif: bytes | None) -> bytes | None:
    """Write EXIF into its room, and return all that it then holds."""
    if exif is None:
        return None
    if room is None or len(exif) > min(room.size, MAX_EXIF_BYTES):
        logger.warning("%s: EXIF is left out; the format does not hold its %s bytes", path, f"{len(exif):,}")
        return None
    data = exif.ljust(room.size, b"\0")
    file.seek(room.start)
    file.write(data)
    return data


def _complete_png(path: str | Path, file: BinaryIO, metadata: Metadata) -> None:
    chunks = dict(_png_chunks(file))
    exif_room = chunks.get(_PNG_EXIF)
    data = _fill(path, file, exif_room, metadata.exif)
    if data is not None:
        file.write(_checksum(_PNG_EXIF, data))
    xmp_room = chunks.get(_PNG_LIBVIPS_XMP)
    if metadata.xmp is not None and xmp_room and xmp_room.size >= _ITXT_HEAD_BYTES + len(metadata.xmp):
        # A packet may end in blanks, which are what its room is filled up with.
        data = _ITXT_HEAD + metadata.xmp.ljust(xmp_room.size - _ITXT_HEAD_BYTES)
        file.seek(xmp_room.start - len(_PNG_TEXT))
        file.write(_PNG_TEXT + data + _checksum(_PNG_TEXT, data))


def _checksum(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(kind + data))


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


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, _Room]]:
    """Chunks ahead of the pixels by type; compressed text by type and keyword."""
    at = len(_PNG)
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IDAT":
            return
        size, kind = struct.unpack(">I4s", head)
        keyword = file.read(len(_XMP_KEYWORD)) if kind == _PNG_COMPRESSED_TEXT else b""
        yield kind + keyword, _Room(at + 8, size)
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
