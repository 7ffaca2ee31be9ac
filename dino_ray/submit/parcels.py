"""Files through the dashboard's port, both ways, of any size, in bounded memory.

**Up.** Ray's dashboard takes packages into the cluster's key-value store, which lives in the memory of the head: up to
100 MiB each, and nobody but Ray removes them. So a file goes in parts, never more than ``WINDOW`` of them at once: the
driver takes each out as it comes, and the sender waits for that. A part that nobody takes is removed by Ray after ten
minutes (see ``Dashboard.holds``). **Down.** The dashboard serves the folder of logs of every node, and follows links
in it; results are linked there, and streamed. Either way the receiver checks the SHA-256, writes under another name,
and renames.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dino_ray.errors import JobError
from dino_ray.raster.export.place import beside, replace_file, replace_folder

PART = 8 * 2**20
"""Bytes of a part: larger ones are no faster (scripts/bench/submit.py), and make the dashboard's memory swell."""
WINDOW = 4
"""Parts in the store at once: enough that the sender rarely waits, 32 MiB of the head's memory."""
BLOCK = 2**20
"""Bytes of a result in memory at once."""
PATIENCE_S = 120.0
"""Without a part for so long, the other end is given up."""
POLL_S, LONGEST_POLL_S = 0.02, 0.5


class Store(Protocol):
    """The cluster's store of packages, from outside."""

    def put(self, name: str, content: bytes) -> None: ...

    def holds(self, name: str) -> bool: ...


class Box(Protocol):
    """The same store, from the driver's side."""

    def take(self, name: str) -> bytes | None:
        """The content under a name, which is gone from the store then; None if there is nothing (yet)."""
        ...


@dataclass(frozen=True)
class Facts:
    """What the receiver of a file must find."""

    size: int
    sha256: str


def mail(job: str, *what: str | int) -> str:
    """The name, in the store, of something that belongs to a job."""
    return ".".join(["dino-ray", job, *map(str, what), "zip"])  # Ray takes for packages what is called so


# ---- up


def send(
    path: str,
    size: int,
    store: Store,
    name: Callable[[str | int], str],
    *,
    check: Callable[[], bool],
    sent: Callable[[int], None] = lambda n_bytes: None,
) -> None:
    """Put a file into the store, part by part, as fast as they are taken out.

    Parameters
    ----------
    size
        Bytes that the receiver has been told.
    name
        Part number, or ``end``, to the name under which it is stored.
    check
        Called while waiting; says whether whoever takes the parts is still on its way, so that waiting is no bad sign,
        and raises once there is nobody to wait for.
    sent
        Told the bytes of each part that is on its way.

    Raises
    ------
    JobError
        If the file can't be read, or has another size by now, or nobody takes the parts.
    """
    digest, before, waiting = hashlib.sha256(), 0, deque[str]()

    def put(key: str, content: bytes) -> None:
        while len(waiting) >= WINDOW:
            _wait(
                lambda: not store.holds(waiting[0]), check, f"{path}: the cluster takes none of it any more"
            )
            waiting.popleft()
        store.holds(key)  # asked for first, so that Ray removes it should nobody take it
        store.put(key, content)
        waiting.append(key)

    try:
        with open(path, "rb") as file:
            for number in range(n_parts(size)):
                part = file.read(PART)
                digest.update(part)
                before += len(part)
                put(name(number), part)
                sent(len(part))
            changed = before != size or bool(file.read(1))
    except OSError as error:
        raise JobError(f"{path}: can't be read any more ({error.strerror})") from error
    if changed:
        raise JobError(f"{path}: changed while it was sent; submit again")
    put(name("end"), json.dumps({"size": size, "sha256": digest.hexdigest()}).encode())


def receive(target: Path, size: int, box: Box, name: Callable[[str | int], str]) -> None:
    """Write a file from its parts as they come.

    Raises
    ------
    JobError
        If they stop coming, or are not what was sent.
    OSError
        If the disk does not take it.
    """
    digest, before = hashlib.sha256(), 0
    with beside(str(target)) as partial:
        with open(partial, "xb") as file:
            for number in range(n_parts(size)):
                part = _awaited(box, name(number), target.name)
                digest.update(part)
                before += len(part)
                file.write(part)
        end = json.loads(_awaited(box, name("end"), target.name))
        if Facts(before, digest.hexdigest()) != Facts(**end) or before != size:
            raise JobError(f"{target.name}: did not arrive as it was sent; submit again")
        replace_file(partial, str(target))


def n_parts(size: int) -> int:
    """Parts of a file of so many bytes."""
    return -(-size // PART)


def _awaited(box: Box, name: str, what: str) -> bytes:
    found: list[bytes] = []

    def arrived() -> bool:
        content = box.take(name)
        if content is not None:
            found.append(content)
        return content is not None

    _wait(arrived, lambda: False, f"{what}: the machine that sends it went silent; submit again")
    return found[0]


def _wait(done: Callable[[], bool], check: Callable[[], bool], otherwise: str) -> None:
    """Ask until it is so, ever more rarely.

    Raises
    ------
    JobError
        With ``otherwise``, if it does not become so within ``PATIENCE_S``, counted from the last "yes" of ``check``.
    """
    deadline, pause = time.monotonic() + PATIENCE_S, POLL_S
    while not done():
        if time.monotonic() > deadline:
            raise JobError(otherwise)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_POLL_S)
        if pause == LONGEST_POLL_S and check():
            deadline = time.monotonic() + PATIENCE_S


# ---- down


def fetch(blocks: Iterator[bytes], facts: Facts, target: Path, *, packed: bool) -> None:
    """Write a result from its blocks; whole, or not at all.

    Parameters
    ----------
    packed
        Whether they are an archive, of the target and of what lies beside it (Deep Zoom's folder of tiles).

    Raises
    ------
    JobError
        If the blocks are not what was promised, or the archive holds anything but the result.
    OSError
        If the disk does not take it.
    """
    with beside(str(target)) as partial:
        digest, before = hashlib.sha256(), 0
        with open(partial, "xb") as file:
            for block in blocks:
                digest.update(block)
                before += len(block)
                file.write(block)
        if Facts(before, digest.hexdigest()) != facts:
            raise JobError(f"{target}: did not arrive as it was made ({before:,} of {facts.size:,} bytes)")
        if packed:
            _unpack(partial, target)
        else:
            replace_file(partial, str(target))


def pack(folder: Path, names: list[str], archive: Path) -> None:
    """Files and folders of a folder as one archive, not compressed: images are already."""
    with tarfile.open(archive, "w") as tar:
        for name in names:
            tar.add(folder / name, arcname=name)


def _unpack(archive: str, target: Path) -> None:
    """Take a result out of its archive."""

    def extract(folder: str) -> None:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")  # refuses whatever would land elsewhere
        except tarfile.TarError as error:
            raise JobError(f"{target}: the archive of the result is not valid ({error})") from error

    install(extract, target)


def install(bring: Callable[[str], None], target: Path) -> None:
    """Put a result in its place that may be several files, of which the one with its name comes last.

    Parameters
    ----------
    bring
        Given an empty folder beside the place, fills it.

    Raises
    ------
    JobError
        If it brings anything but a result of that name.
    """
    with beside(str(target), "unpacked") as folder:
        os.mkdir(folder)
        bring(folder)
        names = sorted(os.listdir(folder), key=lambda name: name == target.name)
        if target.name not in names or any(not name.startswith(target.stem) for name in names):
            raise JobError(f"{target}: what came is something else ({', '.join(names)[:200]})")
        for name in names:
            made, place = os.path.join(folder, name), str(target.parent / name)
            (replace_folder if os.path.isdir(made) else replace_file)(made, place)


def sha256_of(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
