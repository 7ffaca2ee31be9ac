"""Where a job is, summed up from its events, so that the end of its log is enough to know."""

from __future__ import annotations

from dataclasses import replace

from dino_ray.engine.protocol import (
    CellDone,
    ImageDone,
    ImageStarted,
    ReplicaLost,
    ReplicaReady,
    StageStarted,
)
from dino_ray.submit.notes import ImageFailed, Standing, parse

SAY_S = 2.0
SAY_LINES = 100
"""After so long, or so many lines of the log, the job says where it is: whoever asks reads no more than its end."""


class Tracker:
    """Hears the lines of a log; says now and then where the job is.

    Parameters
    ----------
    images
        How many the job has.
    """

    def __init__(self, images: int) -> None:
        self.standing = Standing("starting", images=images)
        self._ready: set[int] = set()
        self._said: Standing | None = None
        self._said_at = float("-inf")
        self._lines = 0

    def __call__(self, line: str, now: float) -> Standing | None:
        """Take the next line of the log; returns what is to be said after it, if anything is."""
        self._take(line)
        self._lines += 1
        if self.standing == self._said:
            return None
        same_stage = self._said is not None and self._said.stage == self.standing.stage
        if same_stage and now - self._said_at < SAY_S and self._lines < SAY_LINES:
            return None
        self._said, self._said_at, self._lines = self.standing, now, 0
        return self.standing

    def _take(self, line: str) -> None:
        at = self.standing
        match parse(line):
            case StageStarted(stage):
                self.standing = replace(at, stage=stage)
            case ImageStarted(grid=grid, cells_done=before):
                self.standing = replace(at, cells=grid.n_cells, cells_done=before)
            case CellDone():
                self.standing = replace(at, cells_done=at.cells_done + 1)
            case ReplicaReady(replica):
                self._ready.add(replica)
                self.standing = replace(at, replicas=len(self._ready))
            case ReplicaLost(replica):
                self._ready.discard(replica)
                self.standing = replace(at, replicas=len(self._ready))
            case ImageDone() | ImageFailed(image=int()):
                self.standing = replace(at, images_done=at.images_done + 1, cells=0, cells_done=0)
            case _:
                pass
