"""When a job gets nowhere, and ends."""

from __future__ import annotations

NO_PROGRESS_S = 1800.0
"""Nothing got done for this long: longer than any model takes to load or any tile to refine."""

NOBODY_S = 600.0
"""No replica works, and none is starting: machines that were taken away may come back, but not for ever."""

LOSSES_AT_FIRST = 30
"""Calls lost at work, with their process or its machine, before any was done: no hand from outside is as quick as
that. What every call needs may be lost, or every tile may end its process."""

LOSSES_IN_A_ROW = 100
"""Of a job that got something done before. More, since the last tiles may be several that kill; to tell them from a
storm takes some deaths of each."""

ROUNDS_OF_LOSSES = 3
"""In a large pool, this many for each replica: when a whole machine room loses power, they end all at once."""


class Guard:
    """Time, and calls lost, since something was done.

    Parameters
    ----------
    now
        When the job begins.
    """

    def __init__(self, now: float) -> None:
        self._progress = now
        self._somebody = now
        self._losses = 0
        self._most_losses = LOSSES_AT_FIRST
        self._last_loss = ""

    def progress(self, now: float, *, work: bool = True) -> None:
        """Something got done; with ``work``, more than that a replica is ready."""
        self._progress = now
        if work:
            self._losses = 0
            self._most_losses = LOSSES_IN_A_ROW

    def found(self) -> None:
        """A tile was found that calls were lost by."""
        self._losses = 0

    def loss(self, reason: str) -> None:
        """A call was lost at work, and not by its own error."""
        self._losses += 1
        self._last_loss = reason

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
        if self._losses > max(self._most_losses, ROUNDS_OF_LOSSES * replicas):
            return f"{self._losses} calls were lost in a row, the last one as {self._last_loss}"
        if now - self._progress > NO_PROGRESS_S:
            return f"nothing got done for {now - self._progress:.0f} s"
        if now - self._somebody > NOBODY_S:
            return f"no replica was ready or loading for {now - self._somebody:.0f} s"
        return None
