"""Putting a finished output where an older one may be: whole, or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def beside(target: str) -> Iterator[str]:
    """A free name in the target's folder to write under; what is left there in the end is removed."""
    # Names may be as long as the file system allows, so this one is not derived from the target's.
    partial = os.path.join(os.path.dirname(target), f".dino-ray-{uuid.uuid4().hex}.partial")
    try:
        yield partial
    finally:
        remove(partial)


def replace_file(partial: str, target: str) -> None:
    """Give a finished file its name, in one step."""
    flush(partial)
    os.replace(partial, target)


def flush(path: str) -> None:
    """Put a file's bytes on the disk: a power cut must not leave a new name with nothing behind it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(partial: str, target: str) -> None:
    """Give a finished folder its name; an older one is moved aside, and gone once the new one is in place."""
    os.sync()  # as `flush`, for thousands of files at once
    if not os.path.lexists(target):
        os.rename(partial, target)
        return
    with beside(target) as old:
        os.rename(target, old)
        try:
            os.rename(partial, target)
        except BaseException:
            os.rename(old, target)
            raise


def remove(path: str) -> None:
    """Delete a file or a folder that we made, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)
