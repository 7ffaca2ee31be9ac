"""What is asked of the machines' memory, less after each time that it ran out."""

from __future__ import annotations

INCIDENT_S = 5.0
"""Losses within this time of the first are one shortage: a process that is ended takes its calls with it, and the
kernel or Ray may end several before there is room."""

CALM_S = 120.0
"""Without a shortage for this long, twice as much is dared again: some merges and tiles have passed by then."""

LOWEST = 6
"""No more than this many halvings, so that the way back up is not endless."""


class Pressure:
    """How much may be in flight.

    Parameters
    ----------
    calls_per_replica
        In flight on one replica while there is no shortage; under one, a single one.
    """

    def __init__(self, calls_per_replica: int) -> None:
        self._calls = calls_per_replica
        self._level = 0
        self._since = 0.0
        """When the level was last changed."""

    def shortage(self, now: float) -> None:
        """A process was ended because its machine had no memory left."""
        if self._level == 0 or now - self._since > INCIDENT_S:
            self._level = min(self._level + 1, LOWEST)
            self._since = now

    def relax(self, now: float) -> None:
        """Recover, if there was no shortage for long enough."""
        if self._level > 0 and now - self._since >= CALM_S:
            self._level -= 1
            self._since = now

    @property
    def calls_per_replica(self) -> int:
        return self._calls if self._level == 0 else 1

    def merges(self, at_once: int) -> int:
        """How many merges may be in flight, of ``at_once`` without a shortage."""
        return max(1, at_once >> self._level)
