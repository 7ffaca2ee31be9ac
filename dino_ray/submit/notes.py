"""What a job says while it runs: lines of JSON in its log, read back by whoever follows it.

Events of the job are those of ``upscale --progress json``; *notes* are what a job on a cluster has to say besides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, cast, get_args

from dino_ray.engine.protocol import ImageStarted, JobEvent, SourceCondition, TileCall, Timings
from dino_ray.fidelity.record import TileFidelity
from dino_ray.plan.geometry import Grid


@dataclass(frozen=True)
class Accepted:
    """The driver has read its order. ``images``: what the user calls the source and the result of each."""

    version: str
    images: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Standing:
    """Where the job is; said every now and then, so that the end of the log is enough to know."""

    stage: str
    images_done: int = 0
    images: int = 1
    cells_done: int = 0
    cells: int = 0
    replicas: int = 0


@dataclass(frozen=True)
class ImageFailed:
    """An image that could not be upscaled."""

    image: int | None
    """Its place in the order; None: the whole job."""
    text: str
    exit_code: int


@dataclass(frozen=True)
class ReportPiece:
    """A part of an image's report, as JSON; long lines are no friends of logs."""

    image: int
    text: str
    last: bool
    before: bool = False
    """Whether an earlier run had finished the image."""


@dataclass(frozen=True)
class Parcel:
    """A result that waits on the driver's node."""

    image: int
    name: str
    """Path below the folder of logs that Ray's dashboard serves."""
    size: int
    sha256: str
    packed: bool
    """Whether it is a tar archive of several files."""
    picture: str = ""
    """Of a picture that goes with the report, how its name ends; empty: it is the image's result."""


@dataclass(frozen=True)
class Ready:
    """What there is to fetch, and for how many hours it waits."""

    parcels: tuple[Parcel, ...]
    hours: float


@dataclass(frozen=True)
class Interrupted:
    """The job was stopped. ``text`` says what is kept."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The last note: the exit code that ``upscale`` would have had."""

    exit_code: int


Note = Accepted | Standing | ImageFailed | ReportPiece | Ready | Interrupted | Ended

_NOTES: Mapping[str, type[Any]] = {kind.__name__: kind for kind in get_args(Note)}
_EVENTS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in get_args(JobEvent)}

SAID = "dino-ray: "
"""How lines begin that are for the user, among those of other programs in the log."""

PIECE = 8000
"""Characters of a report to a line."""


@dataclass(frozen=True)
class Sizes:
    """What is known of an image's grid where only its log is."""

    width: int
    height: int
    n_tiles: int
    n_cells: int


def to_line(note: Note) -> str:
    """One line of JSON, without its end."""
    return json.dumps({"event": type(note).__name__, **asdict(note)})


def pieces(image: int, report: str, *, before: bool) -> list[ReportPiece]:
    """A report in pieces."""
    starts = range(0, len(report), PIECE)
    return [
        ReportPiece(image, report[s : s + PIECE], s + PIECE >= len(report), before=before) for s in starts
    ]


def parse(line: str) -> JobEvent | Note | None:
    """What a line of the log says; None if it is no event that is known here."""
    if not line.startswith("{"):
        return None
    try:
        raw = json.loads(line)
        kind = raw.pop("event")
        if kind in _NOTES:
            return _note(_NOTES[kind], raw)
        return _event(_EVENTS[kind], raw) if kind in _EVENTS else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _note(kind: type[Any], raw: dict[str, Any]) -> Note:
    known = {field.name: raw[field.name] for field in fields(kind) if field.name in raw}
    if kind is Ready:
        known["parcels"] = tuple(Parcel(**parcel) for parcel in known["parcels"])
    if kind is Accepted:
        known["images"] = tuple((source, target) for source, target in known["images"])
    return cast(Note, kind(**known))


def _event(kind: type[Any], raw: dict[str, Any]) -> JobEvent:
    """The inverse of ``report.progress.json_lines``, as far as that can be: results stay where they were made."""
    if kind is ImageStarted:
        grid = Sizes(raw["width"], raw["height"], raw["tiles"], raw["cells"])
        found = SourceCondition(**raw["condition"]) if "condition" in raw else None
        return ImageStarted(
            raw["name"],
            cast(Grid, grid),
            raw["replicas"],
            Timings(source=found),
            int(raw.get("cells_done", 0)),
        )
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name == "call":
            values["call"] = TileCall(raw["call"], tuple(raw["tiles"]))
        elif field.name == "timings":
            fidelity = (TileFidelity(**record) for record in raw.get("fidelity", ()))
            values["timings"] = Timings(raw.get("stages", {}), fidelity=tuple(fidelity))
        elif field.name == "pixels":
            values["pixels"] = ()
        elif field.name in raw:
            values[field.name] = raw[field.name]
        elif field.default is MISSING and field.default_factory is MISSING:
            raise KeyError(field.name)
    return cast(JobEvent, kind(**values))
