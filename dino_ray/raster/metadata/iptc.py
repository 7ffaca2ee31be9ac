"""IPTC-IIM records in and out of the wrapper that JPEG keeps them in.

A JPEG has them in an APP13 segment, as one of Photoshop's image resources (Adobe Photoshop File Formats
Specification, "Image Resource Blocks"); a TIFF has them as they are.
"""

from __future__ import annotations

import struct

_PHOTOSHOP = b"Photoshop 3.0\0"
_SIGNATURE = b"8BIM"
_IPTC_RESOURCE = 0x0404
_RECORD_MARK = b"\x1c"  # every IIM data set starts with it
_HEADER_BYTES = 5
_EXTENDED = 0x8000  # then the size field holds how many bytes behind it hold the size
_APPLICATION_RECORD, _PREVIEW_DATA_SETS = 2, (200, 201, 202)


def unwrap(block: bytes) -> bytes | None:
    """The IIM records in a block, wrapped or not; None where it holds none."""
    if block.startswith(_RECORD_MARK):
        return block
    if block[3:4] == _RECORD_MARK:  # stored as 32-bit numbers, and turned with them
        return b"".join(block[i : i + 4][::-1] for i in range(0, len(block), 4))
    at = len(_PHOTOSHOP) if block.startswith(_PHOTOSHOP) else 0
    while block[at : at + 4] == _SIGNATURE and at + 12 <= len(block):
        (resource,) = struct.unpack_from(">H", block, at + 4)
        name_bytes = block[at + 6] + 1
        at += 6 + name_bytes + name_bytes % 2
        if at + 4 > len(block):
            break
        (size,) = struct.unpack_from(">I", block, at)
        records = block[at + 4 : at + 4 + size]
        if resource == _IPTC_RESOURCE:
            return records if records.startswith(_RECORD_MARK) else None
        at += 4 + size + size % 2
    return None


def wrap(records: bytes) -> bytes:
    """IIM records as the content of an APP13 segment."""
    padding = b"\0" * (len(records) % 2)
    header = _SIGNATURE + struct.pack(">HHI", _IPTC_RESOURCE, 0, len(records))
    return _PHOTOSHOP + header + records + padding


def without_preview(records: bytes) -> bytes:
    """IIM records less the small picture that they may hold (IIM 4.2, data sets 2:200 to 2:202).

    What follows the first damage is left as it is.
    """
    kept, at = bytearray(), 0
    while records[at : at + 1] == _RECORD_MARK and at + _HEADER_BYTES <= len(records):
        record, data_set, size = struct.unpack_from(">xBBH", records, at)
        stop = at + _HEADER_BYTES + size
        if size & _EXTENDED:
            size_bytes = size & ~_EXTENDED
            size_at = at + _HEADER_BYTES
            size = int.from_bytes(records[size_at : size_at + size_bytes], "big")
            stop = size_at + size_bytes + size
        if record != _APPLICATION_RECORD or data_set not in _PREVIEW_DATA_SETS:
            kept += records[at:stop]
        at = stop
    return bytes(kept) + records[at:]
