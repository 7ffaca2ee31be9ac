"""Following a job: its log as events, its results brought home, its exit code."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dino_ray.engine.protocol import JobEvent, Listener
from dino_ray.errors import DinoRayError, Interrupted, JobError, UsageError, describe_error
from dino_ray.report.logs import EventLog
from dino_ray.report.run import UpscaleReport
from dino_ray.stopping import INTERRUPTED
from dino_ray.submit import notes
from dino_ray.submit.connection import Unreachable
from dino_ray.submit.dashboard import Dashboard
from dino_ray.submit.pictures import at_home
from dino_ray.submit.record import Record
from dino_ray.submit.results import fetch_all, write_report

SILENCE_S = 30.0
"""After so long without a line, the job's state is asked for: a connection may have died unnoticed."""
PATIENCE_S = 120.0
"""A dashboard that can't be reached for so long is given up; the job goes on."""
RETRY_S = 2.0
SETTLE_S, SETTLE_POLL_S = 10.0, 0.2
_KEPT_LINES = 20
"""Of the log's other lines, for a job that ends without a word."""

_NO_PACKAGE = re.compile(r"No module named '?dino_ray|cannot import name '\w+' from 'dino_ray")
_NO_PYTHON = re.compile(r"python: (command )?not found")


class Show(Protocol):
    """What a person sees of a job that is followed, besides its events."""

    def finished(self, report: Any, *, before: bool) -> None:
        """An image is done; ``before``: by an earlier run."""

    def failed(self, name: str | None, text: str) -> None:
        """An image, or the job, could not be done."""

    def said(self, text: str) -> None:
        """A message of the job to its user."""

    def fetching(self, name: str, n_bytes: int, of: int) -> None:
        """So many more bytes of a result have come."""


@dataclass
class Told:
    """What a job has told so far."""

    images: Sequence[tuple[str, str]] = ()
    """What the user calls the source and the result of each."""
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)
    failures: list[notes.ImageFailed] = field(default_factory=list)
    ready: notes.Ready | None = None
    interrupted: str | None = None
    exit_code: int | None = None
    _pieces: dict[int, str] = field(default_factory=dict)

    def take_piece(self, piece: notes.ReportPiece, report: str | None) -> dict[str, Any] | None:
        """The report, once this was its last piece, with its pictures where they go beside ``report``."""
        text = self._pieces.pop(piece.image, "") + piece.text
        if not piece.last:
            self._pieces[piece.image] = text
            return None
        self.reports[piece.image] = at_home(json.loads(text), report)
        return self.reports[piece.image]

    def name_of(self, image: int | None) -> str | None:
        return self.images[image][0] if image is not None and image < len(self.images) else None


def follow(dashboard: Dashboard, remembered: Record, listen: Listener, show: Show) -> int:
    """See a job to its end, and bring its results home.

    Parameters
    ----------
    remembered
        What is known of it here: where its results go.

    Returns
    -------
    int
        The exit code that ``upscale`` would have had.

    Raises
    ------
    UsageError, JobError
        If there is no such job, it ended without its own word, or a result can't be brought home; then it waits.
    Interrupted
        If the job was stopped.
    """
    job = remembered.job
    told, others = Told(), deque[str](maxlen=_KEPT_LINES)
    chronicle = EventLog().about({"job": job})

    def hear(event: JobEvent) -> None:
        chronicle(event)
        listen(event)

    dashboard.job(job)  # refused if there is none
    for line in lines(dashboard, job):
        event = notes.parse(line)
        if event is None:
            others.append(line)
            if line.startswith(notes.SAID):
                show.said(line.removeprefix(notes.SAID))
            continue
        _hear(event, told, hear, show, remembered.report)
        if told.exit_code is not None:
            break
    if told.exit_code is None:
        raise _silent_end(dashboard, job, list(others))
    fetch_all(dashboard, remembered, told, show)
    write_report(remembered, told)
    remembered.forget()
    _await_end(dashboard, job)
    if told.exit_code == INTERRUPTED:
        raise Interrupted(f"{job} was stopped; {told.interrupted or 'nothing of it is kept'}")
    return told.exit_code


def lines(dashboard: Dashboard, job: str) -> Iterator[str]:
    """The whole lines of a job's log, from the first, as they come, until the job is over.

    A connection that breaks is made anew, and what was read is passed over.
    """
    read, since = 0, time.monotonic()
    while True:
        seen, rest = 0, ""
        try:
            for text in _texts(dashboard, job):
                since = time.monotonic()
                *whole, rest = (rest + text).split("\n")
                for line in whole:
                    seen += 1
                    if seen > read:
                        read = seen
                        yield line
            if dashboard.job(job).over:
                if rest and seen >= read:
                    yield rest
                return
        except Unreachable as error:
            if time.monotonic() - since > PATIENCE_S:
                raise JobError(
                    f"{error}; the job may go on: come back to it with 'dino-ray submit --follow {job}'"
                ) from error
        time.sleep(RETRY_S)


def _texts(dashboard: Dashboard, job: str) -> Iterator[str]:
    """Pieces of the log, until the connection ends; whatever breaks it is ``Unreachable``."""
    with asyncio.Runner() as runner:
        tail = dashboard.tail(job)
        following: asyncio.Task[str] | None = None

        async def next_text() -> str | None:
            nonlocal following
            following = following or asyncio.ensure_future(anext(tail))
            done, _ = await asyncio.wait({following}, timeout=SILENCE_S)
            if not done:
                return None
            task, following = following, None
            return task.result()

        while True:
            try:
                text = runner.run(next_text())
            except StopAsyncIteration:
                return
            except (DinoRayError, KeyboardInterrupt):
                raise
            except Exception as error:
                raise Unreachable(
                    f"{dashboard.address}: the connection broke ({describe_error(error)})"
                ) from error
            if text is not None:
                yield text
            elif dashboard.job(job).over:
                return


def _hear(
    event: JobEvent | notes.Note, told: Told, listen: Listener, show: Show, report_place: str | None
) -> None:
    match event:
        case notes.Accepted(images=images):
            told.images = images
        case notes.ReportPiece(before=before):
            report = told.take_piece(event, report_place)
            if report is not None:
                show.finished(UpscaleReport.from_dict(report), before=before)
        case notes.ImageFailed(image=image, text=text):
            told.failures.append(event)
            show.failed(told.name_of(image), text)
        case notes.Ready():
            told.ready = event
        case notes.Interrupted(text):
            told.interrupted = text
        case notes.Ended(code):
            told.exit_code = code
        case notes.Standing():
            pass
        case _:
            listen(event)


def _silent_end(dashboard: Dashboard, job: str, others: Sequence[str]) -> BaseException:
    """Why a job is over that has not said so itself."""
    state, text = dashboard.job(job), "\n".join(others)
    if state.state == "STOPPED":
        return Interrupted(f"{job} was stopped before it began; nothing of it is kept")
    if _NO_PACKAGE.search(text):
        return UsageError(
            "the cluster's Python has no dino_ray that knows submitted jobs; install this one on every node, or send "
            "its code with --ship"
        )
    if _NO_PYTHON.search(text):
        return UsageError(
            "the cluster's head finds no 'python' on its PATH; start Ray from within its environment"
        )
    last = [line for line in (others or state.message.splitlines()) if line.strip()] or ["it left no word"]
    return JobError(f"{job}: the job's driver ended before its time ({last[-1].strip()[:300]})")


def _await_end(dashboard: Dashboard, job: str) -> None:
    """Give the driver the time to clear up: when the command ends, nothing of it is left."""
    deadline = time.monotonic() + SETTLE_S
    while not dashboard.job(job).over and time.monotonic() < deadline:
        time.sleep(SETTLE_POLL_S)
