"""An EXIF block made true of another image: numbers are changed where they stand, everything else stays.

Maker notes hold offsets that only their maker knows, so nothing in a block is moved. Where an entry has to
be added, a new first directory is put at the block's end, and the values of the old one stay in place. What says
how the picture was made is kept, `Software` too: in EXIF 2.32 it is the camera's or scanner's, not the last program's.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction

from dino_ray.raster.tiff.data import BlockBytes, Damaged
from dino_ray.raster.tiff.directory import (
    LITTLE_ENDIAN,
    LONG,
    RATIONAL,
    SHORT,
    TIFF_HEADER,
    Directory,
    Entry,
    Field,
    Layout,
    integers,
    read_directory,
    read_header,
    write_directory,
)
from dino_ray.raster.tiff.tags import INCH, UPRIGHT, Tag

# Where a thumbnail's bytes are: as a JPEG, or in strips.
_THUMBNAIL_TAGS = (
    (Tag.THUMBNAIL_OFFSET, Tag.THUMBNAIL_BYTES),
    (Tag.STRIP_OFFSETS, Tag.STRIP_BYTE_COUNTS),
)

_MAX_SHORT = 2**16 - 1
# Resolutions are stored as fractions; those of real files come from a few decimals.
_MAX_DENOMINATOR = 10_000
_MAX_DPI = (2**32 - 1) // _MAX_DENOMINATOR
# Thumbnails have one directory; a few are followed, so that a ring of them comes to an end.
_MAX_THUMBNAILS = 4


def resolution_only(dpi: tuple[float, float]) -> bytes:
    """A block that says nothing but dots per inch in x and y."""
    fields = _resolution_fields(LITTLE_ENDIAN, dpi)
    return TIFF_HEADER + write_directory(LITTLE_ENDIAN, len(TIFF_HEADER), fields)


def updated(block: bytes, size: tuple[int, int], dpi: tuple[float, float] | None) -> bytes:
    """The block as it holds for an upright image of that size: without thumbnails, all else untouched.

    Parameters
    ----------
    block
        Without the ``Exif`` prefix.
    size
        Width and height in px.
    dpi
        Dots per inch in x and y; None leaves what the block says.

    Raises
    ------
    Damaged
        If one of its directories is not all there.
    """
    data = bytearray(block)
    layout, first = read_header(BlockBytes(data))
    if layout.big:
        raise Damaged("it is a BigTIFF")
    main = read_directory(BlockBytes(data), layout, first)
    photo = _pointed_to(data, layout, main, Tag.EXIF_IFD)
    others = [_pointed_to(data, layout, main, Tag.GPS_IFD), _pointed_to(data, layout, photo, Tag.INTEROP_IFD)]
    _drop_thumbnails(data, layout, main, [d for d in (main, photo, *others) if d])
    width, height = size
    values: dict[int, int] = {
        Tag.ORIENTATION: UPRIGHT,
        **dict.fromkeys((Tag.IMAGE_WIDTH, Tag.PIXEL_X_DIMENSION), width),
        **dict.fromkeys((Tag.IMAGE_LENGTH, Tag.PIXEL_Y_DIMENSION), height),
    }
    for entry in (*main.entries, *(photo.entries if photo else ())):
        if entry.tag in values:
            _set_integer(data, layout, entry, values[entry.tag])
    if dpi is not None:
        _set_resolution(data, layout, main, dpi)
    return bytes(data)


def _pointed_to(data: bytearray, layout: Layout, holder: Directory | None, tag: int) -> Directory | None:
    entry = holder and holder.find(tag)
    if not entry:
        return None
    source = BlockBytes(data)
    return read_directory(source, layout, integers(source, layout, entry)[0])


def _set_integer(data: bytearray, layout: Layout, entry: Entry, value: int) -> None:
    """Put one number into an entry, of its own type if that holds it."""
    short = entry.kind == SHORT and value <= _MAX_SHORT
    number = layout.pack("HH", value, 0) if short else layout.pack("I", value)
    data[entry.at : entry.at + 12] = layout.pack("HHI", entry.tag, SHORT if short else LONG, 1) + number


def _resolution_fields(layout: Layout, dpi: tuple[float, float]) -> list[Field]:
    x, y = (_rational(layout, value) for value in dpi)
    return [
        Field(Tag.X_RESOLUTION, RATIONAL, 1, x),
        Field(Tag.Y_RESOLUTION, RATIONAL, 1, y),
        Field(Tag.RESOLUTION_UNIT, SHORT, 1, layout.pack("H", INCH)),
    ]


def _rational(layout: Layout, value: float) -> bytes:
    fraction = Fraction(min(value, _MAX_DPI)).limit_denominator(_MAX_DENOMINATOR)
    return layout.pack("II", fraction.numerator, fraction.denominator)


def _set_resolution(data: bytearray, layout: Layout, main: Directory, dpi: tuple[float, float]) -> None:
    """In place where the entries are there and distinct; else in a new first directory at the end."""
    fields = _resolution_fields(layout, dpi)
    entries = [main.find(field.tag) for field in fields]
    x, y, unit = entries
    if x and y and unit and x.data_at != y.data_at and all(_is_rational(data, e) for e in (x, y)):
        for entry, field in zip((x, y), fields, strict=False):
            data[entry.data_at : entry.data_at + 8] = field.data
        _set_integer(data, layout, unit, INCH)
        return
    kept = [bytes(data[e.at : e.at + 12]) for e in main.entries if e not in entries]
    data += b"\0" * (len(data) % 2)
    struct.pack_into(layout.order + "I", data, layout.first_at, len(data))
    data += write_directory(layout, len(data), fields, kept)


def _is_rational(data: bytearray, entry: Entry) -> bool:
    return entry.kind == RATIONAL and entry.count == 1 and 8 <= entry.data_at <= len(data) - 8


def _drop_thumbnails(data: bytearray, layout: Layout, main: Directory, directories: list[Directory]) -> None:
    """Cut off what follows the first directory, and its bytes: at the end of the block, or to zeros.

    What overlaps with anything that stays is not touched.
    """
    if not main.following:
        return
    header = (0, layout.first_at + layout.inline_bytes)
    stays = _merged([header, *(span for directory in directories for span in _spans(layout, directory))])
    stops = [stop for _, stop in stays]

    def is_free(start: int, stop: int) -> bool:
        above = bisect_right(stops, start)
        return start < stop and (above == len(stays) or stop <= stays[above][0])

    claimed = (
        (start, min(stop, len(data))) for start, stop in _thumbnail_spans(data, layout, main.following)
    )
    free = _merged([span for span in claimed if is_free(*span)])
    data[main.next_at : main.next_at + layout.inline_bytes] = bytes(layout.inline_bytes)
    at_the_end = True
    for start, stop in reversed(free):
        at_the_end = at_the_end and stops[-1] <= start and not any(data[stop:])
        if at_the_end:
            del data[start:]
        else:
            data[start:stop] = bytes(stop - start)


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes as disjoint spans in order: a hostile block may name the same ones thousands of times."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def _thumbnail_spans(data: bytearray, layout: Layout, at: int) -> Iterator[tuple[int, int]]:
    """First and last byte (exclusive) of directories, values and pixels of thumbnails, as the block claims."""
    source = BlockBytes(data)
    for _ in range(_MAX_THUMBNAILS):
        try:
            directory = read_directory(source, layout, at)
        except Damaged:
            return
        spans = list(_spans(layout, directory))
        for offset_tag, size_tag in _THUMBNAIL_TAGS:
            offsets, sizes = directory.find(offset_tag), directory.find(size_tag)
            if offsets and sizes:
                with suppress(Damaged):
                    starts, lengths = (integers(source, layout, entry) for entry in (offsets, sizes))
                    spans += [(s, s + length) for s, length in zip(starts, lengths, strict=False)]
        yield from spans
        at = directory.following
        if not at:
            return


def _spans(layout: Layout, directory: Directory) -> Iterator[tuple[int, int]]:
    """Bytes that a directory takes: its table, and the values outside of it."""
    last = directory.next_at or directory.at + 2 + layout.entry_bytes * len(directory.entries)
    yield directory.at, last + (layout.inline_bytes if directory.next_at else 0)
    for entry in directory.entries:
        if entry.size > layout.inline_bytes:
            yield entry.data_at, entry.data_at + entry.size
