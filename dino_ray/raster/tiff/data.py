"""Bytes by place, of a block or of a file, where what is not there is damage."""

from __future__ import annotations

from typing import BinaryIO, Protocol


class Damaged(ValueError):
    """A structure that contradicts itself or points outside of its bytes."""


class Bytes(Protocol):
    """What directories are read from."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes; raises `Damaged` where there are fewer."""


class BlockBytes:
    """A block in memory."""

    def __init__(self, block: bytes | bytearray) -> None:
        self._block = block

    def read_at(self, offset: int, size: int) -> bytes:
        """See `Bytes`."""
        if offset + size > len(self._block):
            raise Damaged(f"bytes {offset:,} to {offset + size:,} of {len(self._block):,}")
        return bytes(self._block[offset : offset + size])


class FileBytes:
    """An open, seekable file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, 2)

    def read_at(self, offset: int, size: int) -> bytes:
        """See `Bytes`."""
        if offset + size > self._size:
            raise Damaged(f"bytes {offset:,} to {offset + size:,} of {self._size:,}")
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) < size:
            raise Damaged(f"bytes {offset:,} to {offset + size:,} cannot be read")
        return data
