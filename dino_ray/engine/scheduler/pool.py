"""Replicas, and the calls in flight on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from dino_ray.engine.protocol import TileCall
from dino_ray.engine.scheduler.pace import Pace
from dino_ray.engine.scheduler.watch import Watch
from dino_ray.engine.scheduler.work import Piece

CALLS_PER_REPLICA = 2
"""One runs, one waits beside it, so that a replica never idles for the driver's round trip."""

LOOK_AHEAD = 2.0
"""A second call goes to a replica whose first one ends within this many of the pool's typical calls: sooner, on a slow
replica, it would only wait there while others could have done it."""

SICK_AFTER = 3
"""A replica that raised this often in a row, on different pieces, while the model works elsewhere, is ended and
starts anew: errors of a GPU often stay until its process ends, and a replica that fails at once draws all work."""


class State(Enum):
    """Of a replica. A ready one is busy while calls are in flight on it."""

    PENDING = "pending"
    LOADING = "loading"
    READY = "ready"
    QUARANTINED = "quarantined"
    LEAVING = "leaving"
    DEAD = "dead"


@dataclass(eq=False, slots=True)
class Flight:
    """A call on its way."""

    call: TileCall
    place: Place
    piece: Piece
    since: float | None = None
    """When it came to be at work, as far as can be told from here; None: it waits behind another."""
    first: bool = False
    """At work on a replica whose model has made no tile since it loaded."""
    cancelled: bool = False
    """Its end was asked for."""
    overdue: bool = False
    hung: bool = False
    """Its replica was given up for it."""


@dataclass(eq=False, slots=True)
class Place:
    """A replica."""

    number: int
    state: State = State.PENDING
    node: str = ""
    reason: str = ""
    """Why it was lost, or leaves."""
    node_gone: bool = False
    """Its machine was lost, with what lay in its store."""
    flights: deque[Flight] = field(default_factory=deque)
    """Oldest, which is the one at work, first."""
    warm: bool = False
    """Its model has made a tile since it loaded."""
    raised: list[int] = field(default_factory=list)
    """Ranks of the pieces that raised in a row."""
    was_sick: bool = False
    """It was replaced for raising, and has done nothing since: a second time would not help."""

    @property
    def blocked(self) -> bool:
        """Whether the call at work takes longer than it should."""
        return bool(self.flights) and self.flights[0].overdue

    @property
    def sick(self) -> bool:
        """Whether it seems to be the replica that fails, not what it works on."""
        return not self.was_sick and len(self.raised) >= SICK_AFTER and len(set(self.raised)) > 1


PRESENT = (State.PENDING, State.LOADING, State.READY)
"""States that lead to work."""


class Pool:
    """All replicas that were ever heard of."""

    def __init__(self, pace: Pace, watch: Watch) -> None:
        self._pace, self._watch = pace, watch
        self._places: dict[int, Place] = {}
        self._vacant: dict[int, Place] = {}  # ready ones with room for a call
        self._dead = 0
        self.calls_per_replica = CALLS_PER_REPLICA
        """In flight on one replica, at most."""

    def __getitem__(self, replica: int) -> Place:
        """A replica; one that is heard of for the first time has no place yet."""
        place = self._places.get(replica)
        if place is None:
            place = self._places[replica] = Place(replica)
        return place

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places.values())

    @property
    def size(self) -> int:
        """Replicas that work, or may come to."""
        return len(self._places) - self._dead

    @property
    def present(self) -> bool:
        """Whether some replica works, or is about to."""
        return any(place.state in PRESENT or place.flights for place in self)

    # ---- what happens to replicas and calls

    def enter(self, place: Place, state: State) -> list[Flight]:
        """Change the state of a replica; returns the calls that are lost by it."""
        self._dead += (state is State.DEAD) - (place.state is State.DEAD)
        place.state = state
        lost: list[Flight] = []
        if state not in (State.READY, State.LEAVING):
            lost = list(place.flights)
            place.flights.clear()
            place.warm = False
        self._note_room(place)
        return lost

    def launch(self, place: Place, call: TileCall, piece: Piece, now: float) -> Flight:
        """A call goes to a replica."""
        flight = Flight(call, place, piece)
        place.flights.append(flight)
        piece.flights.append(flight)
        if len(place.flights) == 1:
            self._begin(flight, now)
        self._note_room(place)
        return flight

    def land(self, flight: Flight, now: float) -> None:
        """A call ended, somehow; the next one of its replica is at work now."""
        place = flight.place
        if flight not in place.flights:  # lost with its replica before
            return
        was_at_work = place.flights[0] is flight
        place.flights.remove(flight)
        if was_at_work and place.flights:
            self._begin(place.flights[0], now)
        self._note_room(place)

    def learn(self, flight: Flight, made: int, now: float) -> None:
        """A call that was at work ended well: remember how long it took.

        Parameters
        ----------
        made
            Tiles that the model made in it; one that it made three times counts as three.
        """
        if not made:  # what takes no model says nothing of what tiles take, nor does it warm one up
            return
        if flight.since is not None:
            self._pace.learn(flight.place.number, now - flight.since, made, first=flight.first)
        flight.place.warm = flight.place.warm or flight in flight.place.flights  # or it is of a former life

    # ---- when calls end

    def ends_in(self, flight: Flight, now: float) -> float:
        """Seconds until a call is expected to end.

        One that takes longer than expected is expected to go on for as long as it is late already.
        """
        total = 0.0
        for ahead in flight.place.flights:
            total += self._takes(ahead, now)
            if ahead is flight:
                break
        return total

    def would_end_in(self, place: Place, tiles: int, now: float) -> float:
        """Seconds until a call of so many tiles would end if it were sent to a replica now."""
        first = not place.warm and not place.flights
        takes = self._pace.guess(place.number, tiles, first=first)
        return takes + sum(self._takes(flight, now) for flight in place.flights)

    def _takes(self, flight: Flight, now: float) -> float:
        if flight.cancelled:
            return 0.0
        expected = self._pace.guess(flight.place.number, len(flight.call.tiles), first=flight.first)
        return expected if flight.since is None else abs(expected - (now - flight.since))

    # ---- who takes the next call

    def open(self, now: float) -> list[Place]:
        """Replicas that may be sent a call."""
        return [place for place in self._vacant.values() if self._may_take(place, now)]

    def idle(self) -> list[Place]:
        """Replicas with nothing to do."""
        return [place for place in self._vacant.values() if not place.flights]

    def choose(self, places: list[Place], piece: Piece, now: float) -> Place | None:
        """Of some replicas, the one that would end a piece first.

        None where the piece has to wait for another: it is in flight on these, or failed on them, and there are
        others.
        """
        held = {flight.place.number for flight in piece.flights}
        avoided = held | piece.failed_on
        if avoided:
            others = [place for place in places if place.number not in avoided]
            if not others and not any(self._may_come_free(place, avoided) for place in self):
                others = [place for place in places if place.number not in held]
            places = others
        if len(places) < 2:
            return places[0] if places else None
        tiles = len(piece.tiles)
        return min(places, key=lambda place: (self.would_end_in(place, tiles, now), place.number))

    def _may_take(self, place: Place, now: float) -> bool:
        if not place.flights:
            return True
        if len(place.flights) >= self.calls_per_replica or place.blocked:
            return False
        at_work = place.flights[0]
        typical = self._pace.typical() * len(at_work.call.tiles)
        return not typical or self._takes(at_work, now) <= LOOK_AHEAD * typical

    def _may_come_free(self, place: Place, avoided: set[int]) -> bool:
        return place.state is State.READY and place.number not in avoided and not place.blocked

    # ---- inside

    def _begin(self, flight: Flight, now: float) -> None:
        flight.since, flight.first = now, not flight.place.warm
        self._watch.begin(flight, now)

    def _note_room(self, place: Place) -> None:
        if place.state is State.READY and len(place.flights) < CALLS_PER_REPLICA:
            self._vacant[place.number] = place
        else:
            self._vacant.pop(place.number, None)
