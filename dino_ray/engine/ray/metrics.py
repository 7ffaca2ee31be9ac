"""What Ray's metrics endpoint, and so Prometheus, is told of a job: a listener of its events, in the driver.

``docs/metrics.md`` says what each means and ``cluster/grafana`` draws them; a test holds the three together. Ray puts
``ray_`` before the names and ``_total`` behind those of counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

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


class Metrics:
    """Hears a job's events and keeps Ray's metrics of it; make one while the process is connected to a Ray.

    All are labelled with the job's id in that Ray, as its dashboard shows it, and with nothing finer: a label for
    images or replicas would make a time series for each.
    """

    def __init__(self) -> None:
        self._job = {JOB: ray.get_runtime_context().get_job_id()}
        self._counters: dict[Described, Any] = {}
        self._gauges: dict[Described, Any] = {}
        for about in METRICS:
            if about.kind == "counter":
                self._counters[about] = Counter(about.name, about.meaning, about.labels)
            elif about.kind == "gauge":
                self._gauges[about] = Gauge(about.name, about.meaning, about.labels)
                self._set(about, 0)
        self._seconds = Histogram(
            STAGE_SECONDS.name, STAGE_SECONDS.meaning, list(BOUNDARIES_S), STAGE_SECONDS.labels
        )
        self._ready: set[int] = set()
        self._tiles_left = 0.0
        self._tiles_per_cell = 0.0

    def __call__(self, event: JobEvent) -> None:
        """Take an event in."""
        match event:
            case ImageStarted(grid=grid, preparation=timings, cells_done=before):
                # Which tiles an earlier run has left to do, only the plan knows; each cell stands for its share.
                self._tiles_per_cell = grid.n_tiles / grid.n_cells if before else 0.0
                self._set_tiles_left(grid.n_tiles - before * self._tiles_per_cell)
                self._observe(timings)
            case ReplicaReady(replica, timings):
                self._ready.add(replica)
                self._set(REPLICAS_READY, len(self._ready))
                self._observe(timings)
            case ReplicaLost(replica):
                self._ready.discard(replica)
                self._set(REPLICAS_READY, len(self._ready))
                self._count(REPLICAS_LOST)
            case TilesStarted(copy=True):
                self._count(COPIES)
            case TilesDone(call, _, _, timings):
                self._count(TILES_DONE, len(call.tiles))
                if not self._tiles_per_cell:
                    self._set_tiles_left(self._tiles_left - len(call.tiles))
                self._observe(timings)
            case TilesLost(fault=fault) if fault != "cancelled":
                self._count(RETRIES)
            case TilePoisoned():
                self._count(TILES_POISONED)
            case CellDone(_, timings):
                self._count(CELLS_DONE)
                self._set_tiles_left(self._tiles_left - self._tiles_per_cell)
                self._observe(timings)
            case CellLost():
                self._count(RETRIES)
            case DriveDone():
                self._set_tiles_left(0)
            case _:
                pass

    def close(self) -> None:
        """The job is over: nothing is left to do, and nobody ready for it."""
        for about in self._gauges:
            self._set(about, 0)

    def _observe(self, timings: Timings) -> None:
        for stage, seconds in timings.stages.items():
            labels = {**self._job, "stage": stage}
            self._seconds.observe(max(seconds, 0.0), labels)
            if seconds > 0:
                self._counters[BUSY_SECONDS].inc(seconds, labels)

    def _set_tiles_left(self, count: float) -> None:
        self._tiles_left = max(count, 0.0)
        self._set(TILES_LEFT, round(self._tiles_left))

    def _count(self, about: Described, by: int = 1) -> None:
        """Count what happened; Ray takes no zero, so a series begins with the first time."""
        self._counters[about].inc(by, self._job)

    def _set(self, about: Described, value: int) -> None:
        self._gauges[about].set(value, self._job)
