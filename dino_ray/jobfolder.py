"""The folder of a job in progress: what it was asked for, whether it may go on, and what is left of it afterwards.

::

    photo-4x.tif.dino-ray/
      job.json       the manifest: the request, and all that its pixels depend on
      source.zarr/   the ingested source, unless it is read where it lies
      canvas.zarr/   finished cells
      fidelity/      what was found of refined tiles
      lock           held while a process works here
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any, Literal

from dino_ray import places
from dino_ray.errors import DinoRayError, UsageError

SUFFIX = ".dino-ray"
"""Of the folder beside an output."""

FORMAT = 1
"""Of the manifest; a folder of another format is refused."""

Existing = Literal["resume", "must", "fresh"]
"""What becomes of a job that is there already: goes on; goes on, and has to be there; is discarded."""

_MANIFEST, _LOCK = "job.json", "lock"
CANVAS = "canvas.zarr"
"""Where, in the folder, the canvas lies."""
_SOURCE, _FIDELITY = "source.zarr", "fidelity"
_FOLDERS = (_SOURCE, CANVAS, _FIDELITY)
"""What goes once the output is in its place, and when a job starts over."""
_OURS = (*_FOLDERS, _MANIFEST, _LOCK)
"""In the order in which they are removed: the manifest goes last, so that what is half removed is still a job."""
_LONGEST_NAME = 255
"""Bytes, of a file name on the usual file systems."""


@dataclass(frozen=True)
class Manifest:
    """What a job is, as JSON in its folder.

    Attributes
    ----------
    source, output
        As they were given; relative to ``cwd``.
    config
        The options that were given, by field name.
    pixels
        All that the result's pixels depend on, by the name under which a message says it.
    devices
        Kinds of the devices that have taken part so far.
    poisoned
        Tiles that no replica could refine, with the reason.
    finished
        Once the output is in its place: its size and time, and the report.
    several
        Whether the command names other images, too.
    """

    source: str
    output: str
    cwd: str
    config: Mapping[str, Any]
    pixels: Mapping[str, Any]
    report: str | None = None
    devices: tuple[str, ...] = ()
    poisoned: Mapping[str, str] = field(default_factory=dict)
    finished: Mapping[str, Any] | None = None
    several: bool = False
    format: int = FORMAT

    def __post_init__(self) -> None:
        # It may come from a file that somebody has edited.
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds):
                raise TypeError(f"{name} is {value!r:.40}")
            if isinstance(value, str) and "\0" in value:
                raise ValueError(f"{name} holds a null character")
        if not all(tile.isdecimal() for tile in self.poisoned):
            raise ValueError("poisoned names tiles by other than their numbers")
        if self.finished is not None and not {"output", "report"} <= set(self.finished):
            raise ValueError("finished lacks a report")

    @property
    def is_anywhere(self) -> bool:
        """Whether all that it names are addresses, so that it can be gone on with in any folder of any machine."""
        return all(places.is_url(place) for place in (self.source, self.output, self.report) if place)


_KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("source", "output", "cwd"), str),
    **dict.fromkeys(("config", "pixels", "poisoned"), Mapping),
    **dict.fromkeys(("several", "format"), int),
    "report": str | None,
    "devices": list | tuple,
    "finished": Mapping | None,
}
"""What the fields of a manifest are."""


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How two manifests' ``pixels`` differ, as the end of "the job was made with"; empty if they do not."""
    then, now = _as_stored(then), _as_stored(now)
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return ", and ".join(f"{_said(name, then.get(name))}, now {_value(now.get(name))}" for name in names)


def _said(name: str, value: Any) -> str:
    return f"no {name}" if value is None else f"{name} {_value(value)}"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else repr(value) if value == "" else str(value)


def _as_stored(pixels: Mapping[str, Any]) -> dict[str, Any]:
    """After a way through JSON, which knows no tuples."""
    stored: dict[str, Any] = json.loads(json.dumps(pixels))
    return stored


def default_place(output: str) -> str:
    """The folder of an output's job: beside it, on the disk or in the store that has to hold the result anyway."""
    if places.is_url(output):
        return output + SUFFIX
    path = Path(output)
    name = path.name + SUFFIX
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32] + SUFFIX
    return os.path.abspath(path.parent / name)


def read_manifest(place: str) -> Manifest | None:
    """The manifest in a folder, or None where there is none.

    Raises
    ------
    UsageError
        If there is one that can't be read.
    """
    path = places.join(place, _MANIFEST)
    if not places.exists(path):
        return None
    try:
        stored = json.loads(places.read_bytes(path))
        known = {entry.name for entry in fields(Manifest)}
        manifest = Manifest(**{name: value for name, value in stored.items() if name in known})
        manifest = replace(manifest, devices=tuple(manifest.devices))
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{places.shown(place)}: its {_MANIFEST} can't be read ({error}); start over with --fresh"
        ) from error
    if manifest.format != FORMAT:
        raise UsageError(
            f"{places.shown(place)}: was made by another version of dino-ray; start over with --fresh"
        )
    return manifest


def resumable(place: str) -> list[tuple[str, Manifest]]:
    """The jobs in a folder: its own, or those of the folders in it.

    Raises
    ------
    UsageError
        If there is none.
    """
    found = {place: read_manifest(place)}
    names = places.list_names(place) if places.is_folder(place) else set()
    folders = [places.join(place, name) for name in sorted(names) if name.endswith(SUFFIX)]
    found |= {folder: read_manifest(folder) for folder in folders}
    # One that is finished, but was killed before all was cleared up, is taken only if it is named itself.
    jobs = [(folder, job) for folder, job in found.items() if job and (not job.finished or folder == place)]
    if not jobs:
        raise UsageError(
            f"{places.shown(place)}: holds no unfinished job; name the folder that an interrupted job has left"
        )
    return jobs


def check_owner(place: str) -> None:
    """Refuse a job that another user has written: it says what is read, written and connected to.

    As git does with repositories. Object stores have no owners; whoever may write there is trusted.

    Raises
    ------
    UsageError
        If its manifest belongs to another user.
    """
    if places.is_url(place):
        return
    owner = os.stat(places.join(place, _MANIFEST)).st_uid
    if owner != os.geteuid():
        raise UsageError(
            f"{place}: its {_MANIFEST} belongs to another user (number {owner}), and says which files are read and "
            "written; give the whole command again to go on"
        )


class JobFolder:
    """An open job folder, held by this process alone.

    Make one by ``open`` or ``temporary``; end it by ``finish`` or ``leave``.
    """

    def __init__(
        self, place: str, manifest: Manifest, *, resumed: bool, made: bool, lock: IO[str] | None
    ) -> None:
        self.place, self.manifest, self.resumed = place, manifest, resumed
        self._made, self._lock = made, lock
        self._temporary = False

    @classmethod
    def open(cls, place: str, manifest: Manifest, existing: Existing) -> JobFolder:
        """Begin a job in ``place``, or go on with the one that is there.

        Raises
        ------
        UsageError
            If the folder can't be made or holds something else, another process works in it, or its job's pixels
            depend on something that has changed since.
        """
        there = places.exists(place)
        names = places.list_names(place) if there else set()
        strangers = {name for name in names - set(_OURS) if not name.startswith(f".{_MANIFEST}.")}
        if strangers and _MANIFEST not in names:
            raise UsageError(
                f"--job-dir {places.shown(place)}: holds other files, such as {min(strangers)}; "
                "name an empty or a new folder"
            )
        if not there and existing == "must":
            raise UsageError(
                f"{places.shown(place)}: there is no job to resume; leave --resume out to start one"
            )
        made = not there or bool(names)  # by us, if anything of ours is there: an earlier run was killed
        # A URL may hold a password or a signature, which the manifest needs, and nobody else.
        lock = _locked(place, private=any(map(_holds_secrets, (manifest.source, manifest.output))))
        try:
            before = None if existing == "fresh" else read_manifest(place)
            if existing == "must" and before is None:
                raise UsageError(
                    f"{places.shown(place)}: there is no job to resume; leave --resume out to start one"
                )
            if before is not None:
                _check_same(place, before, manifest)
                return cls(place, replace(before, config=manifest.config), resumed=True, made=True, lock=lock)
            folder = cls(place, manifest, resumed=False, made=made, lock=lock)
            folder._clear(*_FOLDERS)
            places.remove_leftovers(place)  # of a process that was killed while it wrote the manifest
            folder.update()
        except BaseException:
            _unlock(lock)
            raise
        return folder

    @classmethod
    def temporary(cls, manifest: Manifest) -> JobFolder:
        """A folder for a job that is not to be resumed."""
        folder = cls(tempfile.mkdtemp(prefix="dino-ray-"), manifest, resumed=False, made=True, lock=None)
        folder._temporary = True
        return folder

    @property
    def source(self) -> str:
        """Where the ingested source goes."""
        return places.join(self.place, _SOURCE)

    @property
    def canvas(self) -> str:
        """Where the canvas goes."""
        return places.join(self.place, CANVAS)

    @property
    def fidelity(self) -> str:
        """Where the records of refined tiles go."""
        return places.join(self.place, _FIDELITY)

    @property
    def keeps(self) -> bool:
        """Whether what is done here can be gone on with."""
        return not self._temporary

    def update(self, **changes: Any) -> None:
        """Change the manifest, on disk at once and whole."""
        self.manifest = replace(self.manifest, **changes)
        if self._temporary:
            return
        # Escaped, so that file names that are no valid Unicode survive.
        body = json.dumps(asdict(self.manifest), indent=2) + "\n"
        places.write_bytes_whole(places.join(self.place, _MANIFEST), body.encode())

    def finish(self, note: Mapping[str, Any], *, keep_note: bool) -> None:
        """The output is in its place: give the room back.

        Parameters
        ----------
        note
            What tells whoever comes to this folder again that there is nothing left to do.
        keep_note
            Whether it stays: the same command passes this image over while others are not finished.
        """
        # First, so that a process that is killed below has not lost a finished job.
        self.update(finished=note)
        self._clear(*_FOLDERS)
        if keep_note:
            _unlock(self._lock)
        else:
            self.remove()

    def leave(self, *, worth_keeping: bool) -> None:
        """Stop here. What is worth nothing, and what can't be gone on with, is removed."""
        if worth_keeping and self.keeps:
            _unlock(self._lock)
        else:
            self.remove()

    def remove(self) -> None:
        """Remove all that this job has put here, nothing else, and the folder if it was made for it."""
        with contextlib.suppress(OSError, DinoRayError):
            self._clear(*_OURS)
            if self._made and not places.is_url(self.place):
                os.rmdir(self.place)
        _unlock(self._lock)

    def _clear(self, *names: str) -> None:
        for name in names:
            remove = places.remove_tree if name in _FOLDERS else places.remove
            remove(places.join(self.place, name))


def forget(place: str) -> None:
    """Remove what ``finish`` has left of a job."""
    with contextlib.suppress(OSError, DinoRayError):
        manifest = read_manifest(place)
        if manifest is not None and manifest.finished is not None:
            JobFolder(place, manifest, resumed=True, made=True, lock=None).remove()


def _check_same(place: str, then: Manifest, now: Manifest) -> None:
    said = difference(then.pixels, now.pixels)
    if said:
        raise UsageError(
            f"the job in {places.shown(place)} was made with {said}; give the same again to go on, "
            "or --fresh to start over"
        )
    if then.output and now.output and _absolute(then) != _absolute(now):
        raise UsageError(
            f"the job in {places.shown(place)} writes {places.shown(_absolute(then))}, "
            f"now {places.shown(_absolute(now))}; "
            "name another --job-dir, or --fresh to start over"
        )


def _holds_secrets(place: str) -> bool:
    return places.shown(place) != place


def _absolute(manifest: Manifest) -> str:
    if places.is_url(manifest.output):
        return manifest.output
    return os.path.realpath(os.path.join(manifest.cwd, manifest.output))


def _locked(place: str, *, private: bool) -> IO[str] | None:
    """The lock of a local folder, which is made if need be; it is let go when this process ends, however it ends."""
    if places.is_url(place):
        return None
    try:
        os.makedirs(os.path.dirname(place) or ".", exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(place, 0o700 if private else 0o777)
        lock = open(os.path.join(place, _LOCK), "a+")  # noqa: SIM115  held until the job ends
    except OSError as error:
        raise UsageError(
            f"{place}: can't be written ({error.strerror}); name another folder with --job-dir"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise UsageError(
            f"{place}: another dino-ray works there (process {owner}); wait for it, or name another --job-dir"
        ) from error
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _unlock(lock: IO[str] | None) -> None:
    if lock is not None and not lock.closed:
        lock.close()
