"""Output files, on a disk or behind an address: whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from dino_ray.errors import UsageError
from dino_ray.places import WEB, filesystem, is_folder, is_url, shown, write_bytes_whole, write_local


def write_whole(path: str | Path, content: bytes, option: str) -> None:
    """Write a small file beside its place, then rename it there; one behind an address in one request.

    Raises
    ------
    UsageError
        If the folder is missing or can't be written; names ``option``.
    JobError
        If the address can't be written.
    """
    if is_url(path):
        write_bytes_whole(path, content)
        return
    try:
        write_local(Path(os.path.realpath(path)), content)  # a link stays a link
    except OSError as error:
        raise UsageError(f"{option} {path}: can't be written ({error.strerror})") from error


def check_place(path: str | Path, option: str = "") -> None:
    """Refuse, before any work, a file that could not be written after it.

    Parameters
    ----------
    option
        What named the file, for the message.

    Raises
    ------
    UsageError
        If it is a folder or a device, is write-protected, or its folder is missing or can't be written; if it is an
        address that can only be read.
    """
    named = f"{option} {shown(path)}".strip()
    if is_url(path):
        _check_address(str(path), named)
        return
    target = Path(os.path.realpath(path))
    try:
        target.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"{named}: is no usable name ({error.strerror}); name another") from error
    if target.is_symlink():
        raise UsageError(f"{named}: is a link that leads to itself; name another file")
    if target.is_dir():
        raise UsageError(f"{named}: is a folder; name a file in it")
    if target.exists() and not target.is_file():
        raise UsageError(f"{named}: is not a regular file; name one")
    if not target.parent.is_dir():
        raise UsageError(f"{named}: the folder {target.parent} does not exist; create it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{named}: the folder {target.parent} may not be written to; name another")
    if target.exists() and not os.access(target, os.W_OK):
        raise UsageError(f"{named}: exists and is write-protected; name another file")


def _check_address(url: str, named: str) -> None:
    if "::" in url:
        raise UsageError(f"{named}: addresses in a chain can only be read; name the place itself")
    if url.startswith(WEB):
        raise UsageError(
            f"{named}: web servers can only be read; name a bucket (s3://, gs://) or a local file"
        )
    filesystem(url)  # refuses kinds that nothing knows
    if is_folder(url):
        raise UsageError(f"{named}: is a folder; name a file in it")
