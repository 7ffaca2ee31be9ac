"""Image files that lie elsewhere: read through fsspec block by block, never downloaded first."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote, urlsplit

import pyvips

from dino_ray import places, storage_errors
from dino_ray.errors import DinoRayError, JobError, UsageError
from dino_ray.raster import image_file

T = TypeVar("T")

logger = logging.getLogger(__name__)

# One request fetches this much: few requests for a gigabyte, little waste for a header. Some blocks are kept
# because TIFFs are read in several places at once (directory, planes).
_BLOCK_BYTES = 4 * 2**20
_KEPT_BLOCKS = 8

_ATTEMPTS = 3  # per block: a download of hours should not end with the first lost packet
_PAUSE_S = 0.5  # before the second attempt; doubled before the third


def _file_name(url: str) -> str:
    """Of chained addresses the first that has one; a scheme alone, as in simplecache::s3://b/k, has none."""
    paths = (urlsplit(link).path for link in url.split("::") if "://" in link)
    return next((unquote(name) for path in paths if (name := path.rpartition("/")[2])), url)


class RemoteFile:
    """A file behind an fsspec URL.

    Blocks are fetched as they are asked for and forgotten soon. A server that cannot serve parts of a file is
    read as one stream, anew for every reader.

    Raises
    ------
    UsageError
        If the URL's kind is unknown here, or the file is missing, refused, empty or out of reach.
    """

    def __init__(self, url: str) -> None:
        self.shown = places.shown(url)
        self.name = _file_name(self.shown)
        self._lock = threading.Lock()
        self._error: DinoRayError | None = None
        self._streams: list[Any] = []
        self._file: Any = None
        self._system, self._path = places.filesystem(url)
        try:
            self._open()
        except DinoRayError:
            raise
        except Exception as error:
            raise UsageError(f"{self.shown}: cannot be read: {storage_errors.of_remote(error)}") from None

    def vips_source(self) -> pyvips.Source:
        """The bytes for libvips, from their beginning."""
        return image_file.vips_source(self._reader(), self._failed)

    def stream(self) -> BinaryIO:
        """The bytes as a file that can seek, if the server can."""
        return cast(BinaryIO, self._reader())

    def failure(self) -> DinoRayError | None:
        """Why bytes did not come."""
        return self._error

    def close(self) -> None:
        """Let go of connections and blocks; pyvips keeps callbacks, and so this object, for good."""
        with self._lock:
            for file in (self._file, *self._streams):
                if file is not None:
                    file.close()
            self._file, self._streams = None, []

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes of a file that can be read in parts.

        Raises
        ------
        JobError
            If they cannot be had.
        """
        try:
            return self._fetched(offset, length)
        except Exception as error:
            raise self._lost(error) from None

    def _fetched(self, offset: int, length: int) -> bytes:
        def fetch() -> bytes:
            self._file.seek(offset)
            return cast(bytes, self._file.read(length))

        with self._lock:
            return self._patiently(fetch)

    def _lost(self, error: Exception) -> JobError:
        return JobError(f"{self.shown}: could not be read to its end: {storage_errors.of_remote(error)}")

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask again if the connection fails, not if the answer is no."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return ask()
            except Exception as error:
                if attempt == _ATTEMPTS or not storage_errors.may_pass(error):
                    raise
                logger.info("%s: reading failed, trying again (%s)", self.shown, type(error).__name__)
                time.sleep(_PAUSE_S * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")

    def _open(self) -> None:
        facts = self._patiently(lambda: self._system.info(self._path))
        if facts.get("type") == "directory":
            raise IsADirectoryError
        self.size: int | None = facts.get("size")
        if self.size == 0:
            raise UsageError(f"{self.shown}: is empty (0 bytes); name an image file")
        if self.size is None or facts.get("partial") is False:
            return
        self._file = self._patiently(
            lambda: self._system.open(
                self._path,
                "rb",
                block_size=_BLOCK_BYTES,
                cache_type="blockcache",
                cache_options={"maxblocks": _KEPT_BLOCKS},
                size=self.size,
            )
        )
        if not self._file.seekable() or not self._in_parts():
            self._file.close()
            self._file = None

    def _in_parts(self) -> bool:
        """Whether the server sends what is asked for, and not always the whole file."""
        if self.size is None or self.size <= _BLOCK_BYTES or not self.shown.startswith(places.WEB):
            return True
        try:
            self._fetched(self.size - 1, 1)
        except ValueError:  # fsspec's word for it
            return False
        return True

    def _reader(self) -> io.RawIOBase:
        if self._file is not None and self.size is not None:
            return image_file.Cursor(self.read_at, self.size)
        stream = self._system.open(self._path, "rb", block_size=0)
        self._streams.append(stream)
        return _Stream(stream)

    def _failed(self, error: Exception) -> None:
        self._error = self._error or (error if isinstance(error, DinoRayError) else self._lost(error))


class _Stream(io.RawIOBase):
    """A reader of a server that only sends whole files."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
