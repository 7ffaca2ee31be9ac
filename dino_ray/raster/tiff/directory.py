"""TIFF directories: the structure that EXIF blocks, TIFF and BigTIFF files have in common.

After TIFF 6.0, EXIF 2.32 (JEITA CP-3451E) and the BigTIFF design of libtiff. A directory is a table of
entries, each a tag, a type, a count, and the value or, where it is larger than the entry's last field, the
offset of the value. Whatever is read here may be damaged or hostile: every offset is checked, nothing is
followed in a loop.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dino_ray.raster.tiff.data import Bytes, Damaged

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
SIGNED_BYTE, SIGNED_SHORT, SIGNED_LONG, SIGNED_RATIONAL, FLOAT, DOUBLE = 6, 8, 9, 10, 11, 12
IFD, LONG8, SIGNED_LONG8, IFD8 = 13, 16, 17, 18

# Of each type, the bytes of a value and of the numbers that it is made of, which is what byte order turns.
_VALUE_BYTES = {
    BYTE: 1,
    ASCII: 1,
    SHORT: 2,
    LONG: 4,
    RATIONAL: 8,
    UNDEFINED: 1,
    IFD: 4,
    LONG8: 8,
    SIGNED_LONG8: 8,
    IFD8: 8,
    SIGNED_BYTE: 1,
    SIGNED_SHORT: 2,
    SIGNED_LONG: 4,
    SIGNED_RATIONAL: 8,
    FLOAT: 4,
    DOUBLE: 8,
}
_NUMBER_BYTES = {**_VALUE_BYTES, RATIONAL: 4, SIGNED_RATIONAL: 4}
_INTEGER_CODES = {BYTE: "B", SHORT: "H", LONG: "I", IFD: "I", LONG8: "Q", IFD8: "Q"}

_CLASSIC_MAGIC, _BIG_MAGIC = 42, 43
_ORDERS = {b"II": "<", b"MM": ">"}
# More entries than any directory has; a larger number is damage, or made to exhaust memory.
_MAX_ENTRIES = 4096
# Numbers in an entry that has several, such as the strips of a thumbnail; as above.
_MAX_NUMBERS = 2**16


@dataclass(frozen=True)
class Layout:
    """How numbers and tables are laid out: byte order (``<`` or ``>``), and whether offsets have 64 bits."""

    order: str
    big: bool

    @property
    def count_code(self) -> str:
        """Of the number of entries."""
        return "Q" if self.big else "H"

    @property
    def offset_code(self) -> str:
        """Of offsets, and of an entry's count."""
        return "Q" if self.big else "I"

    @property
    def inline_bytes(self) -> int:
        """The largest value that stands in its entry."""
        return 8 if self.big else 4

    @property
    def entry_bytes(self) -> int:
        """Size of an entry."""
        return 20 if self.big else 12

    @property
    def first_at(self) -> int:
        """Where the header holds the offset of the first directory."""
        return 8 if self.big else 4

    def pack(self, code: str, *values: int) -> bytes:
        """Numbers in this byte order."""
        return struct.pack(self.order + code, *values)

    def unpack(self, code: str, data: bytes) -> tuple[int, ...]:
        """Numbers in this byte order."""
        return struct.unpack(self.order + code, data)


LITTLE_ENDIAN = Layout("<", big=False)
BIG_LITTLE_ENDIAN = Layout("<", big=True)
# Of these layouts; the first directory follows at once.
TIFF_HEADER = b"II*\0" + struct.pack("<I", 8)
BIG_TIFF_HEADER = b"II+\0" + struct.pack("<HHQ", 8, 0, 16)

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""What TIFFs and BigTIFFs begin with."""


@dataclass(frozen=True)
class Entry:
    """An entry where it stands.

    Attributes
    ----------
    tag, kind, count
        As in the file; ``kind`` is the type's number.
    at
        Offset of the entry.
    data_at, size
        Where its value stands, and its bytes; a value of unknown type has size 0.
    """

    tag: int
    kind: int
    count: int
    at: int
    data_at: int
    size: int


@dataclass(frozen=True)
class Directory:
    """A directory where it stands; ``next_at`` is the place of the offset of the next one, 0 if cut off."""

    at: int
    entries: tuple[Entry, ...]
    next_at: int
    following: int

    def find(self, tag: int) -> Entry | None:
        """The first entry of that tag."""
        return next((entry for entry in self.entries if entry.tag == tag), None)


@dataclass(frozen=True)
class Field:
    """An entry that may move: its value in some layout's byte order, or the directory that it points to."""

    tag: int
    kind: int
    count: int
    data: bytes
    directory: tuple[Field, ...] | None = None


def field(layout: Layout, tag: int, kind: int, values: Sequence[int]) -> Field:
    """A field of integers or bytes; of a rational, numerator and denominator are two of its values.

    Raises
    ------
    struct.error
        If a value needs more bits than its kind has.
    """
    if isinstance(values, bytes):  # a profile or a packet, of perhaps megabytes
        return Field(tag, kind, len(values), values)
    code = "I" if kind == RATIONAL else _INTEGER_CODES[kind]
    count = len(values) // 2 if kind == RATIONAL else len(values)
    return Field(tag, kind, count, layout.pack(f"{len(values)}{code}", *values))


def read_header(source: Bytes) -> tuple[Layout, int]:
    """Layout, and offset of the first directory.

    Raises
    ------
    Damaged
        If this is no TIFF structure.
    """
    head = source.read_at(0, 8)
    order = _ORDERS.get(head[:2])
    if order is None:
        raise Damaged("it starts with neither II nor MM")
    magic, first = struct.unpack(order + "HI", head[2:8])
    if magic == _CLASSIC_MAGIC:
        return Layout(order, big=False), first
    if magic == _BIG_MAGIC:
        layout = Layout(order, big=True)
        return layout, layout.unpack("Q", source.read_at(8, 8))[0]
    raise Damaged(f"its magic number is {magic}")


def read_directory(source: Bytes, layout: Layout, at: int) -> Directory:
    """The directory at an offset; values are not looked at.

    Raises
    ------
    Damaged
        If its table is not all there.
    """
    if at < layout.first_at:
        raise Damaged(f"a directory at {at}")
    count_bytes = struct.calcsize(layout.count_code)
    (count,) = layout.unpack(layout.count_code, source.read_at(at, count_bytes))
    if count > _MAX_ENTRIES:
        raise Damaged(f"{count:,} entries")
    table = source.read_at(at + count_bytes, count * layout.entry_bytes)
    entries = [
        _entry(layout, table, place, at + count_bytes + place)
        for place in range(0, len(table), layout.entry_bytes)
    ]
    next_at = at + count_bytes + len(table)
    try:
        (following,) = layout.unpack(layout.offset_code, source.read_at(next_at, layout.inline_bytes))
    except Damaged:  # Some programs leave it out at the end of a block.
        return Directory(at, tuple(entries), 0, 0)
    return Directory(at, tuple(entries), next_at, following)


def _entry(layout: Layout, table: bytes, place: int, at: int) -> Entry:
    code = f"{layout.order}HH{layout.offset_code}"
    tag, kind, count = struct.unpack_from(code, table, place)
    size = _VALUE_BYTES.get(kind, 0) * count
    data_at = at + struct.calcsize(code)
    if size > layout.inline_bytes:
        (data_at,) = struct.unpack_from(layout.order + layout.offset_code, table, place + data_at - at)
    return Entry(tag, kind, count, at, data_at, size)


def integers(source: Bytes, layout: Layout, entry: Entry) -> tuple[int, ...]:
    """Values of an entry of unsigned integers, or of offsets.

    Raises
    ------
    Damaged
        If it is of another type, not all there, or of more values than make sense.
    """
    code = _INTEGER_CODES.get(entry.kind)
    if code is None or not 0 < entry.count <= _MAX_NUMBERS:
        raise Damaged(f"tag {entry.tag}: {entry.count:,} values of type {entry.kind} are no numbers")
    return layout.unpack(f"{entry.count}{code}", source.read_at(entry.data_at, entry.size))


def reordered(data: bytes, kind: int, source: Layout, target: Layout) -> bytes:
    """A value in another byte order."""
    width = _NUMBER_BYTES[kind]
    if source.order == target.order or width == 1:
        return data
    return b"".join(data[i : i + width][::-1] for i in range(0, len(data), width))


def write_directory(
    layout: Layout, at: int, fields: Iterable[Field], kept: Sequence[bytes] = (), following: int | None = 0
) -> bytes:
    """A directory for the offset ``at``, and behind it the values and directories of its fields.

    Parameters
    ----------
    at
        Even.
    fields
        In ``layout``'s byte order.
    kept
        Entries taken over as they are: their values stay where they were.
    following
        Offset of the next directory; 0 for the last one, None for one that will come right behind this.
    """
    fields = list(fields)
    head = struct.calcsize(layout.order + layout.count_code)
    behind_at = at + head + layout.entry_bytes * (len(fields) + len(kept)) + layout.inline_bytes
    behind = bytearray()
    entries = list(kept)
    for field in fields:
        place = behind_at + len(behind)
        if field.directory is not None:
            behind += write_directory(layout, place, field.directory)
            kind, count, value = LONG8 if layout.big else LONG, 1, layout.pack(layout.offset_code, place)
        elif len(field.data) > layout.inline_bytes:
            behind += field.data
            kind, count, value = field.kind, field.count, layout.pack(layout.offset_code, place)
        else:
            kind, count, value = field.kind, field.count, field.data.ljust(layout.inline_bytes, b"\0")
        behind += b"\0" * (len(behind) % 2)
        entries.append(layout.pack("HH" + layout.offset_code, field.tag, kind, count) + value)
    entries.sort(key=lambda entry: layout.unpack("H", entry[:2]))
    table = layout.pack(layout.count_code, len(entries)) + b"".join(entries)
    if following is None:
        following = behind_at + len(behind)
    return table + layout.pack(layout.offset_code, following) + bytes(behind)
