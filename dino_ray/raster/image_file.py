"""Where an image's bytes come from: a file of this machine or, through fsspec, one that lies elsewhere."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyvips

from dino_ray import places
from dino_ray.errors import DinoRayError, UsageError
from dino_ray.places import shown

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class ImageFile(Protocol):
    """Bytes that can be read more than once.

    Attributes
    ----------
    shown
        How messages call it: on one line, without credentials.
    name
        File name without its folder.
    size
        In bytes; None where a server does not say.
    """

    @property
    def shown(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int | None: ...

    def vips_source(self) -> pyvips.Source:
        """The bytes for libvips, from their beginning."""

    def stream(self) -> BinaryIO:
        """The bytes as a file that can seek; the caller closes it."""

    def failure(self) -> DinoRayError | None:
        """Why bytes did not come, if that is what went wrong: libvips only knows that they did not."""

    def close(self) -> None:
        """Let go of connections."""


def open_file(path: str | Path) -> ImageFile:
    """Find the bytes of an image.

    Raises
    ------
    UsageError
        If they are missing, not a file, empty, or may not be read.
    """
    if places.is_url(path):
        from dino_ray.raster.remote import RemoteFile

        return RemoteFile(str(path))
    return LocalFile(places.local_path(path))


class LocalFile:
    """A file of this machine: there, regular, readable, not empty.

    Raises
    ------
    UsageError
        If it is not.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.shown, self.name = path, shown(path), path.name
        self.size: int | None = self._check()

    def vips_source(self) -> pyvips.Source:
        """As a source, because libvips takes "[...]" at the end of a file name for options."""
        return pyvips.Source.new_from_file(os.fsencode(self.path))

    def stream(self) -> BinaryIO:
        """The file, opened."""
        return open(self.path, "rb")

    def failure(self) -> None:
        """Nothing that libvips would not say itself."""
        return

    def close(self) -> None:
        """Nothing to let go of."""

    def _check(self) -> int:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            if self.path.is_symlink():
                target = shown(os.readlink(self.path))
                raise UsageError(
                    f"{self.shown}: is a link to {target}, which does not exist; mend it"
                ) from None
            raise UsageError(f"{self.shown}: no such file") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"{self.shown}: cannot be read ({reason}); name an image file") from error
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{self.shown}: is a folder; name an image file")
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")
            raise UsageError(f"{self.shown}: is {kind}; save the image to a regular file first")
        if not os.access(self.path, os.R_OK):
            raise UsageError(f"{self.shown}: may not be read; check its permissions")
        if status.st_size == 0:
            raise UsageError(f"{self.shown}: is empty (0 bytes); name an image file")
        return status.st_size


class Cursor(io.RawIOBase):
    """A place of its own in bytes that are read by offset.

    Parameters
    ----------
    read_at
        Gives up to so many bytes from an offset on; fewer at the end.
    size
        In bytes.
    """

    def __init__(self, read_at: Callable[[int, int], bytes], size: int) -> None:
        self._read_at, self._size, self._at = read_at, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.IOBase.seek`."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError("a place before the file's beginning")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase.readinto`."""
        wanted = min(len(buffer), max(0, self._size - self._at))
        data = self._read_at(self._at, wanted) if wanted else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def vips_source(file: io.RawIOBase, failed: Callable[[Exception], None]) -> pyvips.Source:
    """A file object for libvips to read; what it raises goes to ``failed``.

    libvips calls from C, where an exception would be printed and lost.
    """
    source = pyvips.SourceCustom()

    def read(length: int) -> bytes | None:
        try:
            return file.read(length)
        except Exception as error:
            failed(error)
            return None

    def seek(offset: int, whence: int) -> int:
        try:
            return file.seek(offset, whence)
        except Exception as error:
            failed(error)
            return -1

    source.on_read(read)
    if file.seekable():
        source.on_seek(seek)
    return source
