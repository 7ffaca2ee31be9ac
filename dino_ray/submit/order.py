"""What is asked of the cluster: images by the names they have there, and options. Travels as JSON.

It may come from anybody who can write to the cluster's store, so whoever reads it takes nothing for granted: names of
files that are made for it are single names, never paths.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from dino_ray import __version__
from dino_ray.errors import UsageError
from dino_ray.jobfolder import Existing

FORMAT = 1
"""Of an order; both ends must know the same."""

_FOLDER = re.compile(r"[0-9a-f]{8,64}")
_EXISTING: tuple[Existing, ...] = ("resume", "must", "fresh")


@dataclass(frozen=True)
class Source:
    """An input, as the cluster gets at it.

    Attributes
    ----------
    place
        What is opened there: a path or an address; of one that is sent, its file name alone.
    shown
        What the user called it, for messages and reports.
    size
        In bytes, of one that is sent through the dashboard's port; None: it is opened where it lies.
    """

    place: str
    shown: str
    size: int | None = None

    def __post_init__(self) -> None:
        _check_kinds(self, place=str, shown=str, size=int | None)
        if self.size is not None:
            _check_name(self.place)


@dataclass(frozen=True)
class Target:
    """A result, as the cluster leaves it.

    Attributes
    ----------
    place
        What is written there; of one that is fetched through the dashboard's port, its file name alone.
    shown
        What the user called it.
    sent
        Whether it waits on the driver's node to be fetched.
    """

    place: str
    shown: str
    sent: bool = False

    def __post_init__(self) -> None:
        _check_kinds(self, place=str, shown=str, sent=bool)
        if self.sent:
            _check_name(self.place)


@dataclass(frozen=True)
class Order:
    """One command, for the cluster.

    Attributes
    ----------
    folder
        Name of the folder that is made for it on the driver's node. The same command has the same one where its work
        is kept (``--job-dir``), since a job that is gone on with has to write the same output.
    config
        Options that were given, by field name.
    staged
        Folder of an object store where the client has put sources, and from which it fetches results.
    pictures
        Whether the client writes a report, and wants the pictures that go with it.
    """

    folder: str
    images: tuple[tuple[Source, Target], ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    existing: Existing = "resume"
    strict: bool = False
    staged: str | None = None
    pictures: bool = False
    version: str = __version__
    format: int = FORMAT

    def __post_init__(self) -> None:
        _check_kinds(self, folder=str, config=Mapping, strict=bool, staged=str | None, pictures=bool)
        if not _FOLDER.fullmatch(self.folder) or self.existing not in _EXISTING or not self.images:
            raise ValueError("its folder, images or what becomes of an older job are not valid")

    @property
    def keeps(self) -> bool:
        """Whether what is done of it outlives it, so that the same command can go on."""
        job_dir = self.config.get("job_dir")
        if job_dir is not None:
            return self.staged is None or not str(job_dir).startswith(f"{self.staged}/")
        return not any(target.sent for _, target in self.images)

    def pairs(self, folder: str) -> list[tuple[str, str]]:
        """Source and output of each image, once what is sent lies in a folder."""
        return [
            (
                source.place if source.size is None else os.path.join(folder, "in", str(n), source.place),
                os.path.join(folder, "out", str(n), target.place) if target.sent else target.place,
            )
            for n, (source, target) in enumerate(self.images)
        ]

    def to_json(self) -> str:
        """As one line; safe to print, since what is no valid Unicode is escaped."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Order:
        """Read an order.

        Raises
        ------
        UsageError
            If it is none, or of a version of dino-ray that speaks another format.
        """
        try:
            raw = json.loads(text)
            if raw.get("format") != FORMAT:
                raise UsageError(
                    f"the cluster runs dino-ray {__version__}, this machine {raw.get('version')}, and they don't fit; "
                    "install the same on both, or send this one's code with --ship"
                )
            known = {entry.name for entry in fields(cls)}
            images = tuple((Source(**source), Target(**target)) for source, target in raw.pop("images"))
            return cls(images=images, **{name: value for name, value in raw.items() if name in known})
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise UsageError(
                f"what was submitted is no order of dino-ray's ({error}); submit again"
            ) from error


def _check_kinds(record: object, **kinds: Any) -> None:
    for name, kind in kinds.items():
        value = getattr(record, name)
        if not isinstance(value, kind):
            raise TypeError(f"{name} is {value!r:.40}")
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{name} holds a null character")


def _check_name(name: str) -> None:
    """Refuse what would lead out of the folder it is put in."""
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"{name!r:.80} is no name of a file")
