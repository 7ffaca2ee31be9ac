"""When to end a job that gets nowhere."""

from __future__ import annotations

NO_PROGRESS_S = 1800.0
"""Nothing got done for this long: longer than any model takes to load or any tile to refine."""

NOBODY_S = 600.0
"""No replica works, and none is starting: machines that were taken away may come back, but not for ever."""

DEATHS_IN_A_ROW = 30
"""Processes that ended at work with nothing done between them: no hand from outside is as quick as that."""

ROUNDS_OF_DEATHS = 3
"""In a large pool, this many for each replica: when a whole machine room loses power, they end all at once."""


class Guard:
    """Time and deaths since something was done.

    Parameters
    ----------
    now
        When the job begins.
    """

    def __init__(self, now: float) -> None:
        self._progress = now
        self._somebody = now
        self._deaths = 0

    def progress(self, now: float, *, work: bool = True) -> None:
        """Something got done; with ``work``, more than that a replica is ready."""
        self._progress = now
        if work:
            self._deaths = 0

    def death(self) -> None:
        """A process ended at work."""
        self._deaths += 1

    def verdict(self, now: float, replicas: int, *, present: bool) -> str | None:
        """Why the job ends now, if it does.

        Parameters
        ----------
        replicas
            In the pool, alive or to be.
        present
            Whether one of them works, or is about to.
        """
        if present:
            self._somebody = now
        if self._deaths > max(DEATHS_IN_A_ROW, ROUNDS_OF_DEATHS * replicas):
            return f"replicas ended at work {self._deaths} times in a row, and nothing got done between"
        if now - self._progress > NO_PROGRESS_S:
            return f"nothing got done for {now - self._progress:.0f} s"
        if now - self._somebody > NOBODY_S:
            return f"no replica was ready or loading for {now - self._somebody:.0f} s"
        return None
