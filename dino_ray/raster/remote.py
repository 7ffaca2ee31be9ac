"""Image files that lie elsewhere: read through fsspec block by block, never downloaded first."""

from __future__ import annotations

import io
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote, urlsplit

import fsspec
import pyvips

from dino_ray.errors import DinoRayError, JobError, UsageError
from dino_ray.raster import inputs

T = TypeVar("T")

logger = logging.getLogger(__name__)

# One request fetches this much: few requests for a gigabyte, little waste for a header. Some blocks are kept
# because TIFFs are read in several places at once (directory, planes).
_BLOCK_BYTES = 4 * 2**20
_KEPT_BLOCKS = 8

_ATTEMPTS = 3  # per block: a download of hours should not end with the first lost packet
_PAUSE_S = 0.5  # before the second attempt; doubled before the third

_USER_INFO = re.compile(r"//[^/@\s]*@")
_QUERY = re.compile(r"[?#][^:\s]*(?:(?!::):[^:\s]*)*")
_WEB = ("http://", "https://")
_INSTALL = "pip install 'dino-ray[remote]'"

_NOT_FOUND = frozenset({404, 410})
_REFUSED = frozenset({401, 403})
_SERVER_ERROR = 500
_UNREACHABLE = re.compile("Connect|Endpoint|Timeout|DNS|gaierror|ServerDisconnected", re.IGNORECASE)


def redacted(url: str) -> str:
    """A URL that may be shown: without user, password, query and fragment, where credentials and tokens live."""
    return inputs.shown(_QUERY.sub("", _USER_INFO.sub("//", url)))


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
        self.shown = redacted(url)
        self.name = unquote(urlsplit(self.shown.split("::")[0]).path.rpartition("/")[2]) or self.shown
        self._lock = threading.Lock()
        self._error: DinoRayError | None = None
        self._streams: list[Any] = []
        self._file: Any = None
        try:
            # As with every other client, proxies and .netrc of the environment count.
            options = {"client_kwargs": {"trust_env": True}} if url.startswith(_WEB) else {}
            self._system, self._path = fsspec.url_to_fs(url, **options)
        except ImportError as error:
            raise UsageError(
                f"{self.shown}: reading it needs another package ({error.name or 'see fsspec'}); {_INSTALL}"
            ) from error
        except ValueError as error:
            raise UsageError(
                f"{self.shown}: is of a kind that is not known here; use s3://, https:// or a local file"
            ) from error
        try:
            self._open()
        except Exception as error:
            raise UsageError(f"{self.shown}: {explained(error)}") from None

    def vips_source(self) -> pyvips.Source:
        """The bytes for libvips, from their beginning."""
        return inputs.vips_source(self._reader(), self._failed)

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
        return JobError(f"{self.shown}: could not be read to its end: {explained(error)}")

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask again if the connection fails, not if the answer is no."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return ask()
            except Exception as error:
                if attempt == _ATTEMPTS or not _passes(error):
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
            raise EOFError
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
        if self.size is None or self.size <= _BLOCK_BYTES or not self.shown.startswith(_WEB):
            return True
        try:
            self._fetched(self.size - 1, 1)
        except ValueError:  # fsspec's word for it
            return False
        return True

    def _reader(self) -> io.RawIOBase:
        if self._file is not None and self.size is not None:
            return inputs.Cursor(self.read_at, self.size)
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


def explained(error: BaseException) -> str:
    """Why a remote file cannot be had, for a user: never the libraries' own words, which may hold credentials."""
    chain = list(_chain(error))
    status = next((s for s in (_status(e) for e in chain) if s is not None), None)
    names = [cls.__name__ for e in chain for cls in type(e).__mro__]
    if isinstance(error, IsADirectoryError):
        return "is a folder; name an image file"
    if isinstance(error, EOFError):
        return "is empty (0 bytes); name an image file"
    if status in _REFUSED or any(isinstance(e, PermissionError) for e in chain):
        return "access is refused; check the credentials and the link"
    if any("Credentials" in name for name in names):
        return "no credentials were found that open it; set them in the environment"
    if status in _NOT_FOUND:
        return "no such file"
    if status is not None:
        return f"the server answers with HTTP status {status}; try again later"
    if any(_UNREACHABLE.search(name) for name in names):
        return "its server cannot be reached; check the address and the network"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return f"cannot be read ({type(error).__name__}); check the address"


def _passes(error: BaseException) -> bool:
    """Whether an error may be gone the next time: a failing connection or server, not a refusal."""
    statuses = [status for each in _chain(error) if (status := _status(each)) is not None]
    if statuses:
        return statuses[0] >= _SERVER_ERROR
    if isinstance(error, FileNotFoundError):  # fsspec's word for whatever keeps it from looking
        return error.__cause__ is not None
    return not isinstance(error, (PermissionError, ValueError))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """HTTP status in aiohttp's or botocore's error."""
    status = getattr(error, "status", None)
    if status is None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) and status >= 400 else None
