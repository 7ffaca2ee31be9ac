"""Which calls take too long. An alarm is set for each call when it comes to be at work; few ever ring."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from dino_ray.engine.scheduler.pace import Pace

if TYPE_CHECKING:
    from dino_ray.engine.scheduler.pool import Flight

LOOK_AGAIN_S = 5.0
"""How soon to ask again whether a call is late, where no call has ended yet that would tell."""


class Watch:
    """Alarms by the time at which they are due."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._alarms: list[tuple[float, int, Flight]] = []

    def begin(self, flight: Flight, now: float) -> None:
        """A call is at work from now on."""
        self._set(flight, now)

    def late(self, now: float) -> list[Flight]:
        """Calls that have just become overdue, or hung."""
        late = []
        while self._alarms and self._alarms[0][0] <= now:
            _, _, flight = heapq.heappop(self._alarms)
            if not _is_at_work(flight):
                continue
            assert flight.since is not None
            limit = self._limit(flight)
            if (
                limit is None or flight.since + limit > now
            ):  # what is expected has changed since the alarm was set
                self._set(flight, now)
                continue
            late.append(flight)
            if flight.overdue:
                flight.hung = True
            else:
                flight.overdue = True
                self._set(flight, now)
        return late

    def next_in(self, now: float) -> float | None:
        """Seconds until a call may become late; None: never."""
        while self._alarms and not _is_at_work(self._alarms[0][2]):
            heapq.heappop(self._alarms)
        return self._alarms[0][0] - now if self._alarms else None

    def _set(self, flight: Flight, now: float) -> None:
        limit = self._limit(flight)
        assert flight.since is not None
        due = now + LOOK_AGAIN_S if limit is None else flight.since + limit
        heapq.heappush(self._alarms, (due, flight.call.number, flight))

    def _limit(self, flight: Flight) -> float | None:
        after = self._pace.hung_after if flight.overdue else self._pace.overdue_after
        return after(flight.place.number, len(flight.call.tiles), first=flight.first)


def _is_at_work(flight: Flight) -> bool:
    return bool(flight.place.flights) and flight.place.flights[0] is flight
