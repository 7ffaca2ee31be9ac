"""What Ray's metrics endpoint, and so Prometheus, is told of a job: a listener of its events, in the driver.

``docs/metrics.md`` says what each means and ``cluster/grafana`` draws them; a test holds the three together. Ray puts
``ray_`` before the names and ``_total`` behind those of counters.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from dino_ray.engine.protocol import (
    CellDone,
    CellLost,
    DriveDone,
    ImageStarted,
    JobEvent,
    ReplicaLost,
    ReplicaReady,
    TilePoisoned,
    TilesDone,
    TilesLost,
    TilesStarted,
    Timings,
)

JOB = "JobId"
"""Label of the job's id in its Ray. Not ``job``: that is Prometheus' own, which would rename ours."""


@dataclass(frozen=True)
class Described:
    """A metric as it is documented."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = (JOB,)


TILES_DONE = Described("dino_ray_tiles_done", "counter", "Tiles that replicas refined.")
TILES_LEFT = Described(
    "dino_ray_tiles_left",
    "gauge",
    "Tiles of the current image that are still to do; an estimate after a resume.",
)
TILES_POISONED = Described(
    "dino_ray_tiles_poisoned", "counter", "Tiles that failed on every try; the base stands in their place."
)
TILES_JUDGED = Described(
    "dino_ray_tiles_judged", "counter", "Refined tiles by what was done with them.", (JOB, "action")
)
CELLS_DONE = Described(
    "dino_ray_cells_done", "counter", "Cells that were merged and committed to the canvas."
)
RETRIES = Described("dino_ray_retries", "counter", "Calls and merges that were lost and done again.")
COPIES = Described("dino_ray_copies", "counter", "Calls that gave overdue tiles to a second replica.")
REPLICAS_READY = Described("dino_ray_replicas_ready", "gauge", "Replicas that take calls.")
REPLICAS_LOST = Described("dino_ray_replicas_lost", "counter", "Processes of replicas that were lost.")
BUSY_SECONDS = Described(
    "dino_ray_busy_seconds", "counter", "Seconds that replicas and merges spent in a stage.", (JOB, "stage")
)
STAGE_SECONDS = Described(
    "dino_ray_stage_seconds", "histogram", "How long a stage of a call or a merge took.", (JOB, "stage")
)

METRICS = (
    TILES_DONE,
    TILES_LEFT,
    TILES_POISONED,
    TILES_JUDGED,
    CELLS_DONE,
    RETRIES,
    COPIES,
    REPLICAS_READY,
    REPLICAS_LOST,
    BUSY_SECONDS,
    STAGE_SECONDS,
)

BOUNDARIES_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
"""Of the histogram: from the blend of a small cell to a large model's steps on a slow device."""

TOLD_EVERY_S = 1.0
"""Ray passes metrics on every 10 s. Telling it of each of thousands of cells a second would cost the driver more than
driving them."""

_FREQUENT = (TilesStarted, TilesDone, CellDone)
"""Events that may wait until then; of all others Ray is told at once."""


class Metrics:
    """Hears a job's events and keeps Ray's metrics of it; make one while the process is connected to a Ray.

    All are labelled with the job's id in that Ray, as its dashboard shows it, and with nothing finer: a label for
    images or replicas would make a time series for each.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._told = clock, clock()
        self._job = {JOB: ray.get_runtime_context().get_job_id()}
        self._labels: dict[tuple[str, str], dict[str, str]] = {}
        kinds = {"counter": Counter, "gauge": Gauge}
        self._metrics = {m: kinds[m.kind](m.name, m.meaning, m.labels) for m in METRICS if m.kind in kinds}
        self._seconds = Histogram(
            STAGE_SECONDS.name, STAGE_SECONDS.meaning, list(BOUNDARIES_S), STAGE_SECONDS.labels
        )
        self._owed: defaultdict[tuple[Described, str], float] = defaultdict(float)
        self._ready: set[int] = set()
        self._tiles_left = 0.0
        self._tiles_per_cell = 0.0

    def __call__(self, event: JobEvent) -> None:
        """Take an event in."""
        match event:
            case ImageStarted(grid=grid, preparation=timings, cells_done=before):
                # Which tiles an earlier run has left to do, only the plan knows; each cell stands for its share.
                self._tiles_per_cell = grid.n_tiles / grid.n_cells if before else 0.0
                self._tiles_left = grid.n_tiles - before * self._tiles_per_cell
                self._observe(timings)
            case ReplicaReady(replica, timings):
                self._ready.add(replica)
                self._observe(timings)
            case ReplicaLost(replica):
                self._ready.discard(replica)
                self._owed[REPLICAS_LOST, ""] += 1
            case TilesStarted(copy=True):
                self._owed[COPIES, ""] += 1
            case TilesDone(call, _, _, timings):
                self._owed[TILES_DONE, ""] += len(call.tiles)
                if not self._tiles_per_cell:
                    self._tiles_left -= len(call.tiles)
                for record in timings.fidelity:
                    self._owed[TILES_JUDGED, record.action] += 1
                self._observe(timings)
            case TilesLost(fault=fault) if fault != "cancelled":
                self._owed[RETRIES, ""] += 1
            case TilePoisoned():
                self._owed[TILES_POISONED, ""] += 1
            case CellDone(_, timings):
                self._owed[CELLS_DONE, ""] += 1
                self._tiles_left -= self._tiles_per_cell
                self._observe(timings)
            case CellLost():
                self._owed[RETRIES, ""] += 1
            case DriveDone():
                self._tiles_left = 0.0
            case _:
                pass
        now = self._clock()
        if now - self._told >= TOLD_EVERY_S or not isinstance(event, _FREQUENT):
            self._told = now
            self._tell()

    def close(self) -> None:
        """The job is over: nothing is left to do, and nobody ready for it."""
        self._tiles_left = 0.0
        self._ready.clear()
        self._tell()

    def _tell(self) -> None:
        for (about, value), count in self._owed.items():
            self._metrics[about].inc(count, self._labelled(value, about.labels[-1]))
        self._owed.clear()  # Ray takes no zero, so a series begins with the first time
        self._metrics[TILES_LEFT].set(max(round(self._tiles_left), 0), self._labelled(""))
        self._metrics[REPLICAS_READY].set(len(self._ready), self._labelled(""))

    def _observe(self, timings: Timings) -> None:
        for stage, seconds in timings.stages.items():
            if seconds > 0:
                self._owed[BUSY_SECONDS, stage] += seconds
            self._seconds.observe(max(seconds, 0.0), self._labelled(stage))

    def _labelled(self, value: str, label: str = "stage") -> dict[str, str]:
        labels = self._labels.get((label, value))
        if labels is None:
            labels = self._labels[label, value] = {**self._job, label: value} if value else self._job
        return labels
