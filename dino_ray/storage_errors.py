"""What disks, mounts, object stores and web servers mean by their errors, and what a user can do about it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from dino_ray.errors import describe_error

_GONE = "its disk or mount is gone; bring it back"
_DENIED = "permission is denied; change its permissions or name another folder"
_DISK_REASONS = {
    errno.ENOSPC: "the disk is full; free some room",
    errno.EDQUOT: "the disk quota is used up; free some room",
    errno.EFBIG: "files may not grow this large there; raise the limit (ulimit -f)",
    errno.ENOENT: "it is not there; bring it back (is its disk mounted?)",
    errno.ENOTDIR: "a file lies where a folder must be; move it away",
    errno.EISDIR: "a folder lies where a file must be; move it away",
    errno.ESTALE: _GONE,
    errno.ENOTCONN: _GONE,
    errno.ENODEV: _GONE,
    errno.ENXIO: _GONE,
    errno.EHOSTDOWN: _GONE,
    errno.EIO: "its disk reports errors; check the disk",
    errno.EROFS: "its disk is read-only; make it writable or name another folder",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; close some",
}

# By the names of exceptions, because the libraries that raise them are optional.
_NO_CREDENTIALS = re.compile("Credential")
_REFUSED = re.compile("Token|Auth|Forbidden|AccessDenied")
_UNREACHABLE = re.compile("Connect|Endpoint|Timeout|DNS|gaierror|ServerDisconnected")

_REFUSED_STATUSES = frozenset({401, 403})
_ABSENT_STATUSES = frozenset({404, 410})
_FIRST_ERROR, _FIRST_SERVER_ERROR = 400, 500


def of_disk(error: OSError) -> str:
    """What is wrong and what to do, for example "the disk is full; free some room"."""
    known = _DISK_REASONS.get(error.errno) if error.errno is not None else None
    return known or f"{describe_error(error)}; see to that"


def of_remote(error: BaseException) -> str:
    """What is wrong at an address and what to do, whichever library raised it.

    Never in the library's own words: they may hold the credentials that an address was given with.
    """
    chain = list(_with_causes(error))
    status = _status(chain)
    names = " ".join(cls.__name__ for each in chain for cls in type(each).__mro__)
    if isinstance(error, IsADirectoryError):
        return "it is a folder; name a file"
    if status in _REFUSED_STATUSES or any(isinstance(each, PermissionError) for each in chain):
        return "access is denied; check the credentials and the link or policy"
    if _NO_CREDENTIALS.search(names):
        return "no credentials were found that open it; set them in the environment"
    if _REFUSED.search(names):
        return "access is denied; check the credentials and the link or policy"
    if status in _ABSENT_STATUSES:
        return "there is no such file or bucket; check the address"
    if status is not None:
        return f"the server answers with HTTP status {status}; try again later"
    # Ahead of the next, which is fsspec's word for whatever keeps it from looking.
    if _UNREACHABLE.search(names):
        return "its server can't be reached; check the address and the network"
    if isinstance(error, FileNotFoundError):
        return "there is no such file or bucket; check the address"
    if isinstance(error, NotImplementedError):
        return "addresses of this kind are for reading only; name a folder or a bucket"
    number = error.errno if isinstance(error, OSError) else None
    detail = f" ({os.strerror(number)})" if number is not None else ""
    return f"{type(error).__name__}{detail}; see to that"


def may_pass(error: BaseException) -> bool:
    """Whether an address's error may be gone the next time: a failing connection or server, not a refusal."""
    status = _status(_with_causes(error))
    if status is not None:
        return status >= _FIRST_SERVER_ERROR
    if isinstance(error, FileNotFoundError):  # fsspec's word for whatever keeps it from looking
        return error.__cause__ is not None
    return not isinstance(error, (PermissionError, ValueError))


def _status(chain: Iterator[BaseException] | list[BaseException]) -> int | None:
    """HTTP status in the first of aiohttp's or botocore's errors that has one."""
    for error in chain:
        status = getattr(error, "status", None)
        response = getattr(error, "response", None)
        if status is None and isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(status, int) and status >= _FIRST_ERROR:
            return status
    return None


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
