"""What a call cost on the worker that ran it, and whether it is still wanted."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from dino_ray.engine.protocol import Timings

Stop = Callable[[], bool]
"""Whether a call is to end before it is done; asked often."""


class Cancelled(Exception):
    """A call ended because its ``Stop`` said so."""


def never() -> bool:
    """A ``Stop`` that never says so."""
    return False


def heed(stop: Stop) -> None:
    """Go on, unless ``stop`` says no.

    Raises
    ------
    Cancelled
    """
    if stop():
        raise Cancelled("asked to stop")


class Stopwatch:
    """Seconds per named stage of one call; those of a stage within another count for that one alone."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._within = 0.0  # seconds of stages that have ended within the one that is under way

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        with self._measured(stage):
            yield

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time that counts for no stage: something is waited for."""
        with self._measured(None):
            yield

    @contextmanager
    def _measured(self, stage: str | None) -> Iterator[None]:
        around, self._within = self._within, 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - start
            if stage is not None:
                self._seconds[stage] = self._seconds.get(stage, 0.0) + taken - self._within
            self._within = around + taken

    def timings(self, measures: tuple[str, ...] = ()) -> Timings:
        return Timings(self._seconds, peak_rss_mb(), measures)


def peak_rss_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    counted = _counted_rss_mb()
    # The cheap count starts with what the process had that this one was started from, which is not its own.
    return counted if counted > _inherited_rss_mb() else _own_rss_mb() or counted


@cache
def _inherited_rss_mb() -> float:
    own, counted = _own_rss_mb(), _counted_rss_mb()
    return counted if own is not None and counted - own > COUNTS_DIFFER_MB else 0.0


COUNTS_DIFFER_MB = 1.0
"""Linux adds up what its processors have counted at different moments."""


def _counted_rss_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _own_rss_mb() -> float | None:
    """As Linux knows it, which takes a twelfth of a millisecond to say; None elsewhere."""
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None
