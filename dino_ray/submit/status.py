"""Where jobs are: those of a cluster, and those whose folder lies on this machine."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dino_ray import places
from dino_ray.report.progress import STAGES
from dino_ray.submit import notes
from dino_ray.submit.dashboard import Dashboard, JobState
from dino_ray.submit.standing import SAY_LINES

_TAIL_LINES = 2 * SAY_LINES
"""Of a log: within so many lines a job has said where it is."""
_STATES = {
    "PENDING": "starting",
    "RUNNING": "running",
    "SUCCEEDED": "done",
    "FAILED": "failed",
    "STOPPED": "stopped",
}
_TO_FETCH = "to fetch"
"""The state of a job whose results wait on the cluster."""
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


@dataclass(frozen=True)
class JobStatus:
    """One job of a cluster. Times in seconds."""

    job: str
    state: str
    image: str
    output: str
    stage: str
    images_done: int
    images: int
    cells_done: int
    cells: int
    replicas: int
    age_s: float
    wall_s: float
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def progress(self) -> str:
        """For a person: how far it is."""
        if self.reason:
            return self.reason
        if self.state != "running":
            return ""
        cells = f", {self.cells_done:,} of {self.cells:,} cells" if self.cells else ""
        images = f"{self.images_done} of {self.images} images, " if self.images > 1 else ""
        return f"{images}{STAGES.get(self.stage, self.stage)}{cells}"


def jobs(dashboard: Dashboard, job: str | None = None) -> list[JobStatus]:
    """The jobs of dino-ray on a cluster, newest first; or one of them.

    Raises
    ------
    UsageError
        If there is no such job.
    """
    found = [dashboard.job(job)] if job is not None else dashboard.jobs()
    now = time.time()
    return [_status(state, dashboard, now) for state in found if "dino_ray" in state.metadata]


def _status(job: JobState, dashboard: Dashboard, now: float) -> JobStatus:
    # Of those that are over, Ray's own state says all; reading every log there is would take long.
    told = (
        summary(dashboard.last_lines(job, _TAIL_LINES)) if job.state in ("RUNNING", "FAILED") else Summary()
    )
    state = _STATES[job.state]
    if job.state == "RUNNING" and told.to_fetch:
        state = _TO_FETCH
    images = _count(job.metadata.get("images", ""))
    images_done = images if job.state == "SUCCEEDED" else 0
    standing = told.standing or notes.Standing("starting", images_done, images)
    started = job.started or now
    return JobStatus(
        job=job.id,
        state=state,
        image=job.metadata.get("image", ""),
        output=job.metadata.get("output", ""),
        stage=standing.stage if state == "running" else "",
        images_done=standing.images_done,
        images=standing.images,
        cells_done=standing.cells_done,
        cells=standing.cells,
        replicas=standing.replicas if state == "running" else 0,
        age_s=round(now - started, 1),
        wall_s=round((job.ended or now) - started, 1),
        reason=(told.reason or _last_line(job.message)) if job.state == "FAILED" else "",
    )


def _count(text: str) -> int:
    """The number of images as the job's metadata have it; jobs of older clients say none."""
    return int(text) if text.isascii() and text.isdigit() else 1


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


@dataclass(frozen=True)
class Summary:
    """What the end of a log says."""

    standing: notes.Standing | None = None
    reason: str = ""
    to_fetch: bool = False
    interrupted: str = ""


def summary(lines: Sequence[str]) -> Summary:
    """Read the end of a log."""
    standing, reason, to_fetch, interrupted = None, "", False, ""
    for line in lines:
        match notes.parse(line):
            case notes.Standing() as said:
                standing = said
            case notes.ImageFailed(text=text):
                reason = text
            case notes.Ready():
                to_fetch = True
            case notes.Interrupted(text):
                interrupted = text
            case _:
                pass
    return Summary(standing, reason, to_fetch, interrupted)


def table(found: Sequence[JobStatus]) -> list[str]:
    """Lines for a terminal."""
    head = ("JOB", "STATE", "IMAGE", "REPLICAS", "AGE", "PROGRESS")
    rows = [
        (s.job, s.state, s.image, str(s.replicas or ""), _age(s.age_s), s.progress.replace("\n", " "))
        for s in found
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in [head, *rows]]


def _age(seconds: float) -> str:
    for unit, length in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


# ---- on this machine


@dataclass(frozen=True)
class FolderStatus:
    """A job's folder on this machine, or in an object store."""

    folder: str
    state: str
    """``running``: a process works there. ``interrupted``: none does; unknown in object stores, which have no locks."""
    source: str
    output: str
    cells_done: int
    cells: int | None
    poisoned: int
    resume: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        """For a person."""
        cells = f"{self.cells_done:,} of {self.cells:,} cells done" if self.cells else "no cell done yet"
        poisoned = f", {self.poisoned} tiles given up" if self.poisoned else ""
        on = f"\n  go on with: {self.resume}" if self.resume else ""
        return f"{self.folder}: {self.state}\n  {self.source} → {self.output}\n  {cells}{poisoned}{on}"


def folders(place: str) -> list[FolderStatus]:
    """The jobs in a folder: its own, or those of the folders in it.

    Raises
    ------
    UsageError
        If there is none.
    """
    import shlex

    from dino_ray.jobfolder import CANVAS, resumable
    from dino_ray.raster.canvas import Canvas

    found = []
    for folder, manifest in resumable(place):
        canvas = Canvas.find(places.join(folder, CANVAS))
        cells = (
            None
            if canvas is None
            else -(-canvas.height // canvas.cell[0]) * -(-canvas.width // canvas.cell[1])
        )
        state = "finished" if manifest.finished else _lock_state(folder)
        found.append(
            FolderStatus(
                folder=places.shown(folder),
                state=state,
                source=places.shown(manifest.source),
                output=places.shown(manifest.output),
                cells_done=0 if canvas is None else len(canvas.done()),
                cells=cells,
                poisoned=len(manifest.poisoned),
                resume=f"dino-ray resume {shlex.quote(places.shown(folder))}"
                if state == "interrupted"
                else "",
            )
        )
    return found


def _lock_state(folder: str) -> str:
    if places.is_url(folder):
        return "unfinished"
    try:
        with open(Path(folder, "lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back as the file is closed
    except BlockingIOError:
        return "running"
    except OSError:
        pass
    return "interrupted"


def is_folder(named: str) -> bool:
    """Whether what ``status`` was given is a job's folder, not a job's name."""
    return places.is_url(named) or os.sep in named or os.path.isdir(named)
