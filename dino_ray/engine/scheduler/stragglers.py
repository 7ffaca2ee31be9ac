"""Who takes over whose call.

A tile may be computed twice at once, three times if both are late: the first answer wins, and the bytes are the same
whoever gives it. Calls that only wait behind another are moved, not copied.
"""

from __future__ import annotations

from dino_ray.engine.scheduler.pool import Flight, Place, Pool
from dino_ray.engine.scheduler.work import Work

MOST_AT_ONCE = 2
"""Replicas that work on one tile."""

MOST_AT_ONCE_IF_LATE = 3
"""The same, if it is late on all of them."""

CLEAR_GAIN = 0.25
"""Of what a call takes, that a replica must save by taking it over: estimates of the time left are no better."""

LEAST_GAIN_S = 0.05
"""To be saved at least: less is lost on the way."""


def may_be_copied(flight: Flight) -> bool:
    """Whether one more replica may work on the tiles of an overdue call."""
    copies = flight.piece.flights
    if flight not in copies:  # cancelled, or lost: it is not waited for
        return False
    late = all(other.overdue for other in copies)
    return len(copies) < (MOST_AT_ONCE_IF_LATE if late else MOST_AT_ONCE)


def moves(pool: Pool, work: Work, idle: list[Place], now: float) -> list[tuple[Flight, Place]]:
    """Calls that idle replicas would end clearly earlier than those that have them.

    The call that ends last goes to the replica that is fastest, and so on.
    """
    ends = [
        (pool.ends_in(flight, now), -flight.call.number, flight)
        for place in pool
        for flight in place.flights
        if flight in flight.piece.flights and len(flight.piece.flights) < MOST_AT_ONCE
    ]
    if not ends:
        return []
    ends.sort(reverse=True, key=lambda end: end[:2])
    found = []
    for place in sorted(idle, key=lambda place: pool.would_end_in(place, 1, now)):
        for index, (end, _, flight) in enumerate(ends):
            own = pool.would_end_in(place, len(flight.call.tiles), now)
            if end - own < max(CLEAR_GAIN * own, LEAST_GAIN_S):
                break
            if place.number not in flight.piece.failed_on and not work.is_queued(flight.piece):
                found.append((flight, place))
                del ends[index]
                break
    return found
