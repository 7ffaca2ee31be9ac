"""EXIF in TIFF files, where libvips neither reads nor writes it.

What is one block elsewhere is spread over a TIFF: descriptive tags stand in its first directory, those of
EXIF, GPS and interoperability in directories that this points to. Going in or out, values are taken apart and
put together in the other's byte order and size of offsets. A maker note is moved as it is: if its maker
counts offsets from the start of the file, only programs that mend such offsets (ExifTool) can follow them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from dino_ray.raster.metadata import iptc
from dino_ray.raster.metadata.blocks import Metadata
from dino_ray.raster.tiff.data import BlockBytes, Bytes, Damaged, FileBytes
from dino_ray.raster.tiff.directory import (
    IFD8,
    LITTLE_ENDIAN,
    LONG,
    LONG8,
    SHORT,
    SIGNED_LONG8,
    TIFF_HEADER,
    Directory,
    Entry,
    Field,
    Layout,
    integers,
    read_directory,
    read_header,
    reordered,
    write_directory,
)
from dino_ray.raster.tiff.tags import Tag

logger = logging.getLogger(__name__)

# Tags of a first directory that speak of the picture and not of how its pixels are stored.
_DESCRIPTIVE = (
    *(
        Tag.DOCUMENT_NAME,
        Tag.IMAGE_DESCRIPTION,
        Tag.MAKE,
        Tag.MODEL,
        Tag.PAGE_NAME,
        Tag.SOFTWARE,
        Tag.DATE_TIME,
    ),
    *(Tag.ARTIST, Tag.HOST_COMPUTER, Tag.RATING, Tag.RATING_PERCENT, Tag.COPYRIGHT, Tag.PRINT_IMAGE_MATCHING),
    *(Tag.WINDOWS_TITLE, Tag.WINDOWS_COMMENT, Tag.WINDOWS_AUTHOR, Tag.WINDOWS_KEYWORDS, Tag.WINDOWS_SUBJECT),
)
_POINTERS: dict[int, tuple[Tag, ...]] = {
    Tag.EXIF_IFD: (Tag.INTEROP_IFD,),
    Tag.GPS_IFD: (),
    Tag.INTEROP_IFD: (),
}
_UTF16_COMMENT = b"UNICODE\0"

_MAX_LONG = 2**32 - 1
# Of the values of one directory together. What is larger is no words about a picture but damage, or made to exhaust
# memory: thousands of entries may share the same bytes of a file.
_MAX_VALUE_BYTES = 16 * 2**20
# How descriptions begin that a program wrote for itself, of the number, size and order of pages: JSON of tifffile and
# Micro-Manager, XML of OME and microscopes, ImageJ, ScanImage, Aperio. Of the enlarged image they would be wrong.
_LAYOUT_DESCRIPTIONS = (
    *(b'{"', b"shape=(", b"<?xml", b"\xef\xbb\xbf<?xml", b"<OME", b"<MetaData>"),
    *(b"ImageJ=", b"state.", b"Aperio "),
)
_LONGEST_START = max(map(len, _LAYOUT_DESCRIPTIONS))


def read_tiff(file: BinaryIO) -> Metadata:
    """The blocks of a TIFF's first image, put together from its tags.

    Parameters
    ----------
    file
        A classic or a BigTIFF, seekable; of a remote one only the directories are fetched.

    Returns
    -------
    Metadata
        Empty for what is no TIFF. Left out is what is damaged, and descriptions that programs wrote of how the file
        is laid out.
    """
    source = FileBytes(file)
    try:
        layout, at = read_header(source)
        main = _without_layout_descriptions(source, read_directory(source, layout, at))
    except Damaged as error:
        logger.warning("EXIF, XMP and IPTC are left out; the TIFF's directory is damaged (%s)", error)
        return Metadata()
    fields = {
        field.tag: field
        for field in _fields(source, layout, LITTLE_ENDIAN, main, (*_DESCRIPTIVE, Tag.XMP, Tag.IPTC))
    }
    packet, records = fields.pop(Tag.XMP, None), fields.pop(Tag.IPTC, None)
    return Metadata(
        exif=_block(fields.values()) if fields else None,
        xmp=None if packet is None else packet.data,
        iptc=None if records is None else iptc.unwrap(records.data),
    )


def _without_layout_descriptions(source: Bytes, directory: Directory) -> Directory:
    def speaks_of_layout(entry: Entry) -> bool:
        if entry.tag != Tag.IMAGE_DESCRIPTION:
            return False
        try:
            start = source.read_at(entry.data_at, min(entry.size, _LONGEST_START))
        except Damaged:  # which is told where values are taken
            return False
        return start.startswith(_LAYOUT_DESCRIPTIONS)

    return replace(directory, entries=tuple(e for e in directory.entries if not speaks_of_layout(e)))


def _block(fields: Iterable[Field]) -> bytes:
    return TIFF_HEADER + write_directory(LITTLE_ENDIAN, len(TIFF_HEADER), fields)


def add_exif_to_tiff(path: str | Path, exif: bytes) -> None:
    """Give a TIFF on disk the EXIF of a block, at its end: no byte of what it has is moved.

    The first image gets a new directory of its old entries and the new ones, and the file's header points to
    that last of all. Entries that the file has stay as they are. A classic TIFF that would outgrow its 4 GiB
    is left as it is, with a warning in the log; so are damaged parts of the block.

    Parameters
    ----------
    path
        A classic or a BigTIFF in either byte order, that nobody else reads meanwhile.
    exif
        Without the ``Exif`` prefix.

    Raises
    ------
    OSError
        If the file cannot be read or written.
    """
    with open(path, "r+b") as file:
        source = FileBytes(file)
        try:
            layout, first = read_header(source)
            main = read_directory(source, layout, first)
            fields = [field for field in _exif_fields(exif, layout) if main.find(field.tag) is None]
            kept = [source.read_at(entry.at, layout.entry_bytes) for entry in main.entries]
        except Damaged as error:
            logger.warning("%s: EXIF is left out; it is damaged (%s)", path, error)
            return
        if not fields:
            return
        end = file.seek(0, os.SEEK_END)
        at = end + end % 2
        if not layout.big and at > _MAX_LONG - _room_for(kept, fields):
            logger.warning("%s: EXIF is left out; the file has no room for it below 4 GiB", path)
            return
        addition = write_directory(layout, at, fields, kept, main.following)
        file.write(b"\0" * (at - end) + addition)
        file.flush()
        file.seek(layout.first_at)
        file.write(layout.pack(layout.offset_code, at))


def _exif_fields(exif: bytes, layout: Layout) -> list[Field]:
    block = BlockBytes(exif)
    theirs, at = read_header(block)
    return _fields(block, theirs, layout, read_directory(block, theirs, at), _DESCRIPTIVE)


def _room_for(kept: Sequence[bytes], fields: Sequence[Field]) -> int:
    """Bytes that the new directory takes, wherever it stands."""
    return len(write_directory(LITTLE_ENDIAN, 0, fields, kept))


def _fields(
    source: Bytes,
    theirs: Layout,
    ours: Layout,
    directory: Directory,
    wanted: Container[int] | None = None,
    pointers: Sequence[int] = (Tag.EXIF_IFD, Tag.GPS_IFD),
) -> list[Field]:
    """What is whole of a directory's entries, in our layout: the wanted ones (None: all), and what it points to.

    Directories below it are those of `_POINTERS`, at most two deep, so this ends.
    """
    fields: dict[int, Field] = {}
    room = _MAX_VALUE_BYTES
    for entry in directory.entries:
        if entry.tag in fields:
            continue
        try:
            if entry.tag in pointers:
                below = read_directory(source, theirs, integers(source, theirs, entry)[0])
                inside = _fields(source, theirs, ours, below, pointers=_POINTERS[entry.tag])
                if inside:
                    fields[entry.tag] = Field(entry.tag, LONG, 1, b"", tuple(inside))
            elif entry.tag not in _POINTERS and (wanted is None or entry.tag in wanted):
                fields[entry.tag] = _translated(source, theirs, ours, entry, room)
                room -= entry.size
        except Damaged as error:
            logger.warning("tag %d is left out; it is damaged (%s)", entry.tag, error)
    return list(fields.values())


def _translated(source: Bytes, theirs: Layout, ours: Layout, entry: Entry, room: int) -> Field:
    """An entry with its value, of ``room`` bytes at most, in our layout; raises Damaged if that cannot be."""
    if not 0 < entry.size <= room:
        raise Damaged(f"type {entry.kind}, {entry.size:,} bytes")
    if entry.kind in (LONG8, IFD8, SIGNED_LONG8) and not ours.big:
        values = integers(source, theirs, entry)
        if max(values) > _MAX_LONG:
            raise Damaged("it takes 64 bits")
        return Field(entry.tag, LONG, entry.count, ours.pack(f"{entry.count}I", *values))
    data = source.read_at(entry.data_at, entry.size)
    if entry.tag == Tag.USER_COMMENT and data.startswith(_UTF16_COMMENT):
        # Its characters are 16-bit numbers in the block's byte order, though its type does not say so.
        whole = len(data) - len(data) % 2
        turned = reordered(data[len(_UTF16_COMMENT) : whole], SHORT, theirs, ours)
        data = _UTF16_COMMENT + turned + data[whole:]
    return Field(entry.tag, entry.kind, entry.count, reordered(data, entry.kind, theirs, ours))
