"""What disks, mounts and object stores mean by their errors, and what a user can do about it."""

from __future__ import annotations

import errno
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

# By name, because the libraries that raise them are optional.
_NO_CREDENTIALS = re.compile(r"Credential|Token|Auth|Forbidden")
_NO_CONNECTION = re.compile(r"Connect|Timeout|Endpoint|ServerDisconnected|DNS")


def reason(error: BaseException, remote: bool) -> str:
    """What is wrong and what to do, for example "the disk is full; free some room".

    Parameters
    ----------
    remote
        Whether an object store raised it, or a disk.
    """
    known = _remote_reason(error) if remote else None
    if known is None and isinstance(error, OSError) and error.errno is not None:
        known = _DISK_REASONS.get(error.errno)
    return known or f"{describe_error(error)}; see to that"


def _remote_reason(error: BaseException) -> str | None:
    """What an object store's error means, whichever library raised it."""
    names = " ".join(type(each).__name__ for each in _with_causes(error))
    if isinstance(error, FileNotFoundError):
        return "it or its bucket is not there; check the address"
    if isinstance(error, PermissionError) or _NO_CREDENTIALS.search(names):
        return "access is denied; check the credentials and the bucket's policy"
    if isinstance(error, ConnectionError | TimeoutError) or _NO_CONNECTION.search(names):
        return "it can't be reached; check the network and the endpoint"
    if isinstance(error, NotImplementedError):
        return "addresses of this kind are for reading only; name a folder or a bucket"
    return None


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
