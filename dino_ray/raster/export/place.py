"""Putting a finished output where an older one may be: whole, or not at all.

What goes to an address is made in the folder for temporary files, for most formats are written out of order.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dino_ray import uploads
from dino_ray.places import base_name, is_url

_REMOVALS, _REMOVAL_PAUSE_S = 5, 0.1


def scratch_folder() -> str:
    """Where outputs are made that are sent to an address."""
    return tempfile.gettempdir()


@contextmanager
def making(target: str) -> Iterator[str]:
    """A name to write an output under before it is put in its place; what is left there in the end is removed."""
    if not is_url(target):
        with beside(target) as partial:
            yield partial
        return
    with beside(os.path.join(scratch_folder(), target.replace("/", "_"))) as folder:
        os.mkdir(folder, 0o700)  # others read the folder for temporary files, too
        yield os.path.join(folder, base_name(target))


@contextmanager
def beside(target: str, kind: str = "partial") -> Iterator[str]:
    """A name in the target's folder to write under; what is left there in the end is removed.

    So is what processes of this machine that were killed have left there for the same target.
    """
    # Of fixed length: the target's own may be as long as the file system allows.
    ours = f".dino-ray-{_short(os.path.basename(target))}-{_short(platform.node())}-"
    folder = os.path.dirname(target)
    with suppress(OSError):
        for name in os.listdir(folder or "."):
            if name.startswith(ours) and name.endswith(f".{kind}") and not _alive(name.removeprefix(ours)):
                remove(os.path.join(folder, name))
    partial = os.path.join(folder, f"{ours}{os.getpid()}.{kind}")
    try:
        yield partial
    finally:
        remove(partial)


def _short(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]


def _alive(suffixed_pid: str) -> bool:
    """Whether the process of ``123.partial`` may still write it; this one has not begun."""
    digits = suffixed_pid.partition(".")[0]
    if not digits.isdecimal() or int(digits) == os.getpid():
        return not digits.isdecimal()
    try:
        os.kill(int(digits), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


def replace_file(partial: str, target: str) -> None:
    """Give a finished file its name, in one step."""
    if is_url(target):
        uploads.put_file(partial, target)
        return
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
    with beside(target, "old") as old:
        os.rename(target, old)
        try:
            os.rename(partial, target)
        except BaseException:
            os.rename(old, target)
            raise


def remove(path: str) -> None:
    """Delete a file or a folder that we made, if it is there."""
    if not os.path.isdir(path) or os.path.islink(path):
        with suppress(FileNotFoundError):
            os.unlink(path)
        return
    # After an error zarr's threads may still write what they have begun, into folders that are being emptied.
    for _ in range(_REMOVALS):
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return
        time.sleep(_REMOVAL_PAUSE_S)
