"""Runs of the command, watched through their JSON progress, and the events that befell them."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

READ_S = 60.0
"""What an ended run had to say has been read by then, unless something that it started holds its stderr."""

STARTED = time.monotonic()
"""When the bench began."""


def elapsed_s() -> float:
    """Since then."""
    return time.monotonic() - STARTED


@dataclass
class Event:
    """Something that was done to a job, and what came of it."""

    kind: str
    whom: str
    at_s: float
    """Since the bench began."""
    tiles_done: int
    """Of the job, when it happened."""
    stalled_s: float | None = None
    """Until the next tile or cell was done; None if the job had none left."""
    started_again: set[int] = field(default_factory=set)
    """Tiles that had been started before and were started anew between this event and the next."""


class Job:
    """What the runs of one job have told, through their JSON progress."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.started: Counter[int] = Counter()
        self.tiles_done: set[int] = set()
        self.cells_done: set[int] = set()
        self.committed_twice = 0
        self.last_progress = time.monotonic()
        self.lock = threading.Lock()

    def hear(self, told: Mapping[str, Any]) -> None:
        """One line of progress."""
        kind = told["event"]
        with self.lock:
            if kind == "TilesStarted" and not told["copy"]:
                again = {tile for tile in told["tiles"] if self.started[tile]}
                self.started.update(told["tiles"])
                if self.events:
                    self.events[-1].started_again |= again
            elif kind == "TilesDone":
                self.tiles_done.update(told["tiles"])
                self._progress()
            elif kind == "CellDone":
                self.committed_twice += told["cell"] in self.cells_done
                self.cells_done.add(told["cell"])
                self._progress()

    def _progress(self) -> None:
        self.last_progress = time.monotonic()
        for event in reversed(self.events):
            if event.stalled_s is not None:
                break
            event.stalled_s = elapsed_s() - event.at_s

    def note(self, event: Event) -> None:
        with self.lock:
            self.events.append(event)


class Run:
    """One run of the command."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], job: Job) -> None:
        self._job = job
        job.last_progress = time.monotonic()
        self.process = subprocess.Popen(
            [*command, "--progress", "json"], stderr=subprocess.PIPE, text=True, env=dict(environment)
        )
        assert self.process.stderr is not None
        self._said: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            try:
                self._job.hear(json.loads(line))
            except ValueError:
                self._said.append(line)

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> int:
        code = self.process.wait()
        self._reader.join(timeout=READ_S)
        return code

    def said(self) -> str:
        return "".join(self._said)[-2000:]
