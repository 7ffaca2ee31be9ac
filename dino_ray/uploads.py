"""Files and folders that are sent to an address: whole under their name, or not there.

Object stores show an object once all of it has come. Elsewhere (SFTP, SMB, HDFS) a file is sent under another name
and then renamed, as on a local disk. A folder can't be renamed in an object store; its index, without which no reader
finds the rest, comes last.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from dino_ray import places
from dino_ray.errors import JobError

_WHOLE_AT_THE_END = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
"""Protocols whose libraries commit an upload in its last request."""

_PART_BYTES = 16 * 2**20
_PARTS_AT_ONCE = 4
"""Of an upload to S3; their product is what it holds in memory, which with the library's own numbers is 500 MB."""
_MOST_PARTS = 10_000
"""S3's limit."""

_FILES_AT_ONCE = 32
_FILES_PER_BATCH = 1024
"""How many names of a folder with millions of tiles are in memory."""


def check_writable(place: str) -> None:
    """Find out, before any work, whether a file can be written beside one that will be; leaves nothing.

    Raises
    ------
    JobError
        If it can't.
    UsageError
        If nothing installed knows addresses of that kind.
    """
    probe = f"{place}.{secrets.token_hex(8)}{places.PARTIAL}"
    with places.explained(place, "written"):
        files, path = places.filesystem(probe)
        _make_parents(files, path)
        files.pipe_file(path, b"dino-ray looks whether it may write here")
        # Whoever may add files and not remove any can still be given a result.
        with contextlib.suppress(PermissionError):
            files.rm_file(path)


def put_file(path: str | Path, place: str) -> None:
    """Send a file; an older one of that name is replaced once all of this one is there.

    Raises
    ------
    JobError
        If it can't be sent; what was there before still is.
    """
    with places.explained(place, "written"):
        files, target = places.filesystem(place)
        if _is_whole_at_the_end(files):
            files.put_file(str(path), target, **_how(files, os.path.getsize(path)))
            _check_all_came(files, path, target, place)
        else:
            folder, _, name = target.rpartition("/")
            partial = f"{folder}/.{name[:64]}.{secrets.token_hex(8)}{places.PARTIAL}"
            _make_parents(files, target)
            try:
                files.put_file(str(path), partial)
                _check_all_came(files, path, partial, place)
                files.mv(partial, target)
            except BaseException:
                with contextlib.suppress(Exception):
                    files.rm_file(partial)
                raise


def _check_all_came(files: Any, path: str | Path, sent: str, place: str) -> None:
    here, there = os.path.getsize(path), files.size(sent)
    if here != there:
        raise JobError(
            f"{places.shown(place)}: has {there:,} bytes there and {here:,} here; something else writes to "
            "that name, or the store loses data; see to that, then resume"
        )


def put_folder(folder: str | Path, place: str, index: tuple[str, str]) -> None:
    """Send a folder's files, replacing an older one's; while they come, there is no index, so it does not look whole.

    Parameters
    ----------
    folder
        Local; with its folders.
    place
        What becomes of it. All that was there is removed.
    index
        The file that a reader begins with, and its place; it is sent last. It may lie in the folder.

    Raises
    ------
    JobError
        If something can't be removed or sent.
    """
    places.remove(index[1])
    places.remove_tree(place)
    try:
        _send_all(folder, place, index)
        put_file(*index)
    except Exception:
        with contextlib.suppress(Exception):  # what is wrong with the store may keep us from it
            places.remove_tree(place)
        raise


def _send_all(folder: str | Path, place: str, index: tuple[str, str]) -> None:
    with places.explained(place, "written"):
        files, target = places.filesystem(place)
        paths = (path for path in _walk(str(folder)) if path != os.fspath(index[0]))
        for batch in iter(lambda: list(islice(paths, _FILES_PER_BATCH)), []):
            there = [f"{target}/{os.path.relpath(path, folder).replace(os.sep, '/')}" for path in batch]
            if not _is_whole_at_the_end(files):
                for parent in {name.rpartition("/")[0] for name in there}:
                    files.makedirs(parent, exist_ok=True)
            if files.async_impl:
                files.put(batch, there, batch_size=_FILES_AT_ONCE)
                continue
            for path, name in zip(batch, there, strict=True):
                files.put_file(path, name)


def _walk(folder: str) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        yield from (os.path.join(parent, name) for name in sorted(names))


def _is_whole_at_the_end(files: Any) -> bool:
    return not _WHOLE_AT_THE_END.isdisjoint(_protocols(files))


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)


def _how(files: Any, size: int) -> dict[str, int]:
    if "s3" not in _protocols(files):
        return {}
    part = max(_PART_BYTES, math.ceil(size / _MOST_PARTS))
    return {"chunksize": part, "max_concurrency": _PARTS_AT_ONCE}


def _make_parents(files: Any, path: str) -> None:
    if not _is_whole_at_the_end(files):
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
