"""The report of one image's run, and the listener that gathers it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dino_ray.engine.protocol import (
    CellDone,
    DinoEffect,
    DriveDone,
    ImageDone,
    ImageStarted,
    JobEvent,
    ReplicaReady,
    SourceCondition,
    StageStarted,
    TilesDone,
    TilesStarted,
    Timings,
)
from dino_ray.engine.replica import peak_rss_mb
from dino_ray.fidelity.summary import Ledger, summary
from dino_ray.report.roster import Member, Roster

if TYPE_CHECKING:
    from dino_ray.config import UpscaleConfig
    from dino_ray.raster.canvas import Canvas
    from dino_ray.request import Image
    from dino_ray.settings import Settings

MODEL_STAGES = ("base", "encode", "steps", "decode", "verify")
"""The stages of a tile that are bare model time; whatever else a run costs, this system adds."""


@dataclass(frozen=True)
class Stage:
    """Calls of one name, over all workers."""

    seconds: float
    count: int


@dataclass(frozen=True)
class ReplicaReport:
    """What one replica did for an image."""

    replica: int
    """Its number, as in events and logs."""
    node: str
    """Its machine."""
    device: str
    """What its models run on; empty if it never got ready."""
    tiles: int
    """That it refined."""
    busy_s: float
    """Seconds it spent on them."""
    losses: int
    """How often its process was lost."""
    ended: str | None
    """Why it was lost and not back when the image was done; None: it was there to the end."""
    measures: tuple[str, ...] = ()
    """What it had to do to fit its device's memory, oldest first."""


@dataclass(frozen=True)
class UpscaleReport:
    """What happened to one image. Sizes in canvas_px, times in seconds, memory in MB."""

    output: str
    source: str
    width: int
    height: int
    tiles: int
    cells: int
    workers: int
    """The most replicas there were at once."""
    wall_s: float
    """All of it: from the start of the command (or the end of the image before) to the finished output."""
    first_tile_s: float
    """The fixed cost: from the same start to the first tile on a replica."""
    model_s: float
    """Bare model time, summed over the replicas."""
    model_s_per_worker: float
    overhead: float | None
    """Time from the first tile to the finished output, over ``model_s_per_worker``; 1 is what no system can beat."""
    stages: dict[str, Stage]
    cells_resumed: int
    """Of ``cells``, those that an earlier run had finished."""
    tile_calls: int
    retries: int
    """Calls and merges that were lost and done again."""
    poisoned: dict[int, str]
    """Tiles that no replica could refine, with the reason; there the output shows the base."""
    canvas_sha256: str
    """Over the pixels in row-major order."""
    peak_rss_mb: dict[str, float]
    """The largest process of each role: driver, replica, merge."""
    model: dict[str, Any] | None
    """Facts of the diffusion model; None: the base alone."""
    dino: dict[str, Any] | None
    """The DINO model, its strength, and ``effect``: how much its tokens and guidance changed the tile ``probe_tile``,
    as the mean absolute difference in levels of 255 against the same tile without. None: neither was used."""
    config: dict[str, Any] = field(default_factory=dict)
    """Every option as given, defaults included."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Every option as used: nothing left to the model."""
    replicas: tuple[ReplicaReport, ...] = ()
    """All that took part or tried to, by number."""
    condition: dict[str, Any] | None = None
    """What the source's pixels are off by: ``noise``, and ``blocks`` that JPEG left, in levels of 255; whether it is
    ``worn``, so that the net for such made the base. None: nobody measured."""
    copies: int = 0
    """Of ``tile_calls``, those that gave overdue tiles to a second replica."""
    fidelity: dict[str, Any] | None = None
    """How true the result is to its source, and what was done for it, over all and per tile; see
    ``fidelity.summary.summary``. ``files`` names pictures of it. None: no model refined it."""

    def to_json(self) -> str:
        """All of it, as an indented JSON object."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> UpscaleReport:
        """A report from ``asdict``, which may have been through JSON."""
        stages = {name: Stage(**stage) for name, stage in record["stages"].items()}
        poisoned = {int(tile): reason for tile, reason in record["poisoned"].items()}
        replicas = tuple(
            ReplicaReport(**{**replica, "measures": tuple(replica["measures"])})
            for replica in record.get("replicas", ())
        )
        return cls(**{**record, "stages": stages, "poisoned": poisoned, "replicas": replicas})


def _as_json(record: dict[str, Any]) -> dict[str, Any]:
    """As it will be read again: JSON knows lists and no tuples."""
    read: dict[str, Any] = json.loads(json.dumps(record))
    return read


class Bookkeeper:
    """Hears all that happens to one image and sums it up.

    Parameters
    ----------
    started
        When the image's turn began, by ``time.monotonic``.
    roster
        The replicas, as the images before have left them; it hears what this one hears.
    """

    def __init__(self, started: float, roster: Roster | None = None) -> None:
        self._started = started
        self._roster = roster or Roster()
        self._before = {number: replace(member) for number, member in self._roster.members.items()}
        self._first_tile: float | None = None
        self._stage: tuple[str, float] | None = None
        self._seconds: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._peaks: dict[str, float] = {}
        self._replicas = 0
        self._grid_sizes = (0, 0)
        self._cells_before = 0
        self._condition: SourceCondition | None = None
        self._work: DriveDone | None = None
        self._dino: DinoEffect | None = None

    def hear(self, event: JobEvent) -> None:
        """Take an event in."""
        now = time.monotonic()
        self._roster.hear(event)
        match event:
            case StageStarted(stage):
                self._end_stage(now)
                self._stage = (stage, now)
            case ImageStarted(grid=grid, replicas=replicas, preparation=timings, cells_done=before):
                self._cells_before = before
                self._replicas, self._grid_sizes = replicas, (grid.n_tiles, grid.n_cells)
                self._add("replica", timings)
                self._condition = timings.source
            case TilesStarted():
                self._first_tile = self._first_tile or now
            case TilesDone(timings=timings) | ReplicaReady(timings=timings):
                self._replicas = max(self._replicas, self._roster.ready)
                self._add("replica", timings)
            case CellDone(timings=timings):
                self._add("merge", timings)
            case DriveDone():
                self._work = event
            case DinoEffect():
                self._dino = event
            case ImageDone():
                self._end_stage(now)
            case _:
                pass

    def report(
        self,
        image: Image,
        canvas: Canvas,
        config: UpscaleConfig,
        settings: Settings,
        poisoned_before: Mapping[str, str],
        ledger: Ledger,
    ) -> UpscaleReport:
        """The sum of a finished image; reads the canvas once, for its hash.

        Parameters
        ----------
        poisoned_before
            Tiles that this run or an earlier one had to give up, with the reason.
        ledger
            Records of the others; loses those of tiles that were given up since.
        """
        ended = time.monotonic()
        assert self._work is not None
        first_tile = self._first_tile or ended
        model_s = sum(self._seconds.get(stage, 0.0) for stage in MODEL_STAGES)
        per_worker = model_s / max(1, self._replicas)
        sha256 = canvas.sha256()
        self._peaks["driver"] = peak_rss_mb()
        tiles, cells = self._grid_sizes
        poisoned = {int(tile): reason for tile, reason in poisoned_before.items()} | dict(self._work.poisoned)
        ledger.forget(poisoned)
        used = _as_json({**asdict(settings), "dtype": str(settings.dtype)})
        model = used.pop("model")
        return UpscaleReport(
            output=image.output_name,
            source=image.name,
            width=canvas.width,
            height=canvas.height,
            tiles=tiles,
            cells=cells,
            workers=self._replicas,
            wall_s=round(ended - self._started, 3),
            first_tile_s=round(first_tile - self._started, 3),
            model_s=round(model_s, 3),
            model_s_per_worker=round(per_worker, 3),
            overhead=round((ended - first_tile) / per_worker, 3) if per_worker else None,
            stages={name: Stage(round(s, 3), self._counts[name]) for name, s in self._seconds.items()},
            cells_resumed=self._cells_before,
            tile_calls=self._work.tile_calls,
            retries=self._work.retries,
            poisoned=poisoned,
            canvas_sha256=sha256,
            peak_rss_mb={role: round(mb, 1) for role, mb in self._peaks.items()},
            model=model,
            dino=self._dino_report(settings),
            config=config.model_dump(mode="json"),
            settings=used,
            replicas=self.replicas(),
            condition=asdict(self._condition) if self._condition is not None else None,
            copies=self._work.copies,
            fidelity=None if settings.model is None else summary(ledger, image.grid, len(poisoned)),
        )

    def replicas(self) -> tuple[ReplicaReport, ...]:
        """Each replica less what it had done, and suffered, before this image."""
        reports = []
        for number, now in sorted(self._roster.members.items()):
            before = self._before.get(number, Member(number))
            if before.gone is not None and now.gone is not None:
                continue
            reports.append(
                ReplicaReport(
                    number,
                    now.node,
                    now.device,
                    now.tiles - before.tiles,
                    round(now.busy_s - before.busy_s, 3),
                    now.losses - before.losses,
                    now.gone,
                    tuple(now.measures),
                )
            )
        return tuple(reports)

    def _dino_report(self, settings: Settings) -> dict[str, Any] | None:
        if self._dino is None:
            return None
        return {"model": settings.dino, "strength": settings.dino_strength, **asdict(self._dino)}

    def _end_stage(self, now: float) -> None:
        if self._stage is not None:
            name, since = self._stage
            self._count(name, now - since)
            self._stage = None

    def _add(self, role: str, timings: Timings) -> None:
        for stage, seconds in timings.stages.items():
            self._count(stage, seconds)
        self._peaks[role] = max(self._peaks.get(role, 0.0), timings.peak_rss_mb)

    def _count(self, stage: str, seconds: float) -> None:
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        self._counts[stage] = self._counts.get(stage, 0) + 1
