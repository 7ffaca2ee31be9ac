"""What is found of an image's tiles, kept in its job folder as it is found, so that whoever goes on knows it.

In a local folder a record is appended to one file before any cell of its tile is merged, so that a job that is killed
leaves a record of every tile that need not be refined again. Behind an address, where nothing can be appended, what
came within a minute becomes a file: a job that is killed there loses the last of it, and its report counts so many
tiles as unrecorded.
"""

from __future__ import annotations

import errno
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from dino_ray import places
from dino_ray.errors import DinoRayError
from dino_ray.fidelity.record import TileFidelity
from dino_ray.fidelity.summary import Ledger
from dino_ray.jobfolder import JobFolder

log = logging.getLogger(__name__)

_FILE = "records.jsonl"
_PART_S = 60.0
"""Between two files behind an address: a day's job leaves some thousand, which are read in seconds."""
_PARTS_AT_ONCE = 64
"""Read together; a store far away has its price per request."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Findings:
    """The records of an image's tiles: those that earlier runs have left, and those that come.

    Records are not worth a job: where they can't be read or written, that is said once, and tiles are unrecorded. A
    full disk ends the job as it does elsewhere. A context manager: an early end writes what is still to be written.

    Parameters
    ----------
    folder
        Open; one that keeps nothing is left alone.
    n_tiles
        Tiles of the image.

    Attributes
    ----------
    ledger
        All of them.
    """

    def __init__(self, folder: JobFolder, n_tiles: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.ledger = Ledger(n_tiles)
        self._place, self._keeps = folder.fidelity, folder.keeps
        self._remote = places.is_url(folder.place)
        self._clock, self._written = clock, clock()
        self._waiting: list[bytes] = []
        self._made = self._warned = False
        if folder.resumed:
            self._read()

    def __enter__(self) -> Findings:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is not None:  # else the folder goes anyway
            self._write()

    def add(self, records: Sequence[TileFidelity]) -> None:
        """Take the records of a call in.

        Raises
        ------
        JobError
            If the disk is full.
        """
        for record in records:
            self.ledger.note(record)
        if not records or not self._keeps:
            return
        # Each begins a line, rather than ending one: so none is spoilt by what a killed run has left half written.
        self._waiting += [b"\n" + json.dumps(record.to_dict()).encode() for record in records]
        if not self._remote or self._clock() - self._written >= _PART_S:
            self._write()

    def _write(self) -> None:
        if not self._waiting:
            return
        self._written = self._clock()
        try:
            with places.explained(self._place, "written"):
                self._put(b"".join(self._waiting))
        except DinoRayError as error:
            if getattr(error.__cause__, "errno", None) in _FULL and not self._remote:
                raise
            self._warn(error)
            return  # what waits is tried again with what comes next
        self._waiting.clear()

    def _put(self, lines: bytes) -> None:
        if not self._made:
            places.make_folder(self._place)
            self._made = True
        if self._remote:
            places.write_bytes_whole(places.join(self._place, f"{secrets.token_hex(8)}.jsonl"), lines)
            return
        with open(places.join(self._place, _FILE), "ab", buffering=0) as file:
            rest = memoryview(lines)
            while rest:  # a disk that is nearly full takes a part of it first
                rest = rest[file.write(rest) :]

    def _read(self) -> None:
        try:
            for line in self._lines():
                try:
                    self.ledger.note(TileFidelity.from_dict(json.loads(line)))
                except (ValueError, TypeError, KeyError, OverflowError):
                    continue  # torn, or of another version
        except DinoRayError as error:
            self._warn(error)

    def _lines(self) -> Iterator[bytes]:
        names = sorted(places.list_files(self._place))
        with places.explained(self._place, "read"):
            if not self._remote:
                for name in names:
                    with open(places.join(self._place, name), "rb") as file:
                        yield from file
                return
            files, root = places.filesystem(self._place)
            for start in range(0, len(names), _PARTS_AT_ONCE):
                found = files.cat([f"{root}/{name}" for name in names[start : start + _PARTS_AT_ONCE]])
                for part in found.values() if isinstance(found, dict) else [found]:
                    yield from part.splitlines()

    def _warn(self, error: DinoRayError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s; the job goes on, its report may not know the fidelity of every tile", error)
