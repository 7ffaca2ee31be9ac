"""Output files: whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from dino_ray.errors import UsageError


def write_whole(path: Path, content: bytes, option: str) -> None:
    """Write a small file beside its place, then rename it there.

    Raises
    ------
    UsageError
        If the folder is missing or can't be written; names ``option``.
    """
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UsageError(f"{option} {path}: can't be written ({error.strerror})") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(beside, 0o666 & ~_umask())
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise UsageError(f"{option} {path}: can't be written ({error.strerror})") from error


def check_writable(path: Path, option: str) -> None:
    """Refuse, before any work, a file that could not be written after it.

    Raises
    ------
    UsageError
        If ``path`` is a folder, or its folder is missing or can't be written.
    """
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{option} {path}: the folder {path.parent} can't be written")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
