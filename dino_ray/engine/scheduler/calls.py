"""Calls: sent to replicas, taken back from them, and what becomes of their pieces."""

from __future__ import annotations

from dino_ray.engine.protocol import TileCall
from dino_ray.engine.scheduler.blame import WITNESSES, Blame
from dino_ray.engine.scheduler.decisions import Cancel, Decision, Replace, Start
from dino_ray.engine.scheduler.merges import Merges
from dino_ray.engine.scheduler.pool import Flight, Place, Pool, State
from dino_ray.engine.scheduler.stragglers import moves
from dino_ray.engine.scheduler.work import Piece, Work

FULL_MERGES = 2
"""So many may be full of tiles, one under way and one that gathers, beside those that the plan's order and the
replicas need."""

MERGES_BEHIND = 1
"""Tiles per replica that may wait for a merge, beside those that fill one, before no more are started: a store full of
tiles that merges are too slow for helps nobody."""


class Calls:
    """All calls of one image, and what is decided about them.

    Parameters
    ----------
    max_waiting
        Tiles that may have to wait for their neighbours; see ``Grid.max_waiting``.
    batch
        Tiles of a call.
    decisions
        Where decisions go.
    """

    def __init__(
        self, work: Work, pool: Pool, merges: Merges, max_waiting: int, batch: int, decisions: list[Decision]
    ) -> None:
        self._work, self._pool, self._merges = work, pool, merges
        self._max_waiting, self._batch = max_waiting, batch
        self._decisions = decisions
        self.in_flight: dict[int, Flight] = {}
        """By the number of their call, until they are heard of."""
        self.started = 0
        self.copies = 0
        self.held_up = False
        """Whether a replica has room for a call that waits for merges."""

    # ---- sent

    def start_queued(self, blame: Blame, now: float) -> None:
        """Start what is queued: earliest tiles first, each on the replica that would end it first."""
        passed: list[Piece] = []
        suspects: list[Piece] = []
        self.held_up = False
        while places := self._pool.open(now):
            piece = self._work.earliest()
            room = WITNESSES if suspects else 0  # else a small layout would soon have none
            if piece is None:
                break
            if not piece.started and self._has_enough_alive(piece, room):
                self.held_up = True
                break
            self._work.take()
            if blame.waits_for_witnesses(piece.record):
                suspects.append(piece)
            elif not self._start_on_best(piece, places, now):
                passed.append(piece)
        for piece in suspects:  # there is nothing else to do
            if not self._start_on_best(piece, self._pool.open(now), now):
                passed.append(piece)
        for piece in passed:
            self._work.put(piece)

    def help_out(self, now: float) -> None:
        """Have replicas that have nothing to do take over calls that they would end much earlier."""
        idle = self._pool.idle()
        if not idle:
            return
        for flight, place in moves(self._pool, self._work, idle, now):
            if flight.since is None:
                self._cancel(flight)
            self._start(flight.piece, place, now)

    def _has_enough_alive(self, piece: Piece, room: int) -> bool:
        replicas = max(1, self._pool.size)
        # As many tiles as must wait for their neighbours in the best order, those in flight, and those that are being
        # merged: fewer could stand still, more would only fill the store.
        full = self._merges.most_tiles
        limit = self._max_waiting + self._pool.calls_per_replica * replicas * self._batch + room
        too_many = self._work.alive + len(piece.tiles) > limit + FULL_MERGES * full
        return too_many or self._merges.tiles_waiting > full + MERGES_BEHIND * replicas

    def _start_on_best(self, piece: Piece, places: list[Place], now: float) -> bool:
        place = self._pool.choose(places, piece, now)
        if place is not None:
            self._start(piece, place, now)
        return place is not None

    def _start(self, piece: Piece, place: Place, now: float) -> None:
        copy = bool(piece.flights)
        self.started += 1
        self.copies += copy
        self._work.start(piece)
        call = TileCall(self.started, piece.tiles, piece.refine)
        self.in_flight[call.number] = self._pool.launch(place, call, piece, now)
        self._decisions.append(Start(call, place.number, copy))

    # ---- taken back

    def land(self, flight: Flight, now: float) -> None:
        """A call ended, somehow."""
        self._pool.land(flight, now)
        self._forget(flight)

    def want(self, piece: Piece) -> None:
        """Queue a piece, if it is needed and nobody works on it."""
        if not piece.flights and self._work.needs(piece):
            self._work.put(piece)

    def cancel_all(self, piece: Piece) -> None:
        """End whatever is in flight of a piece."""
        for flight in list(piece.flights):
            self._cancel(flight)

    def send_waiting_elsewhere(self, place: Place) -> None:
        """Take back the calls that wait behind the one at work."""
        for flight in list(place.flights):
            if flight.since is None and not flight.cancelled:
                self._cancel(flight)
                self.want(flight.piece)

    def enter(self, place: Place, state: State) -> None:
        """Change a replica's state; somebody else has to do what it loses by that."""
        if place.state is State.DEAD:
            return
        for flight in self._pool.enter(place, state):
            self._forget(flight)
            self.want(flight.piece)

    def replace(self, place: Place, reason: str) -> None:
        """Give a replica up."""
        place.reason = reason
        self._decisions.append(Replace(place.number, reason))
        self.enter(place, State.QUARANTINED)

    def _cancel(self, flight: Flight) -> None:
        flight.cancelled = True
        self._forget(flight)
        self._decisions.append(Cancel(flight.call, flight.place.number))

    def _forget(self, flight: Flight) -> None:
        """Its answer is not awaited any more."""
        if flight in flight.piece.flights:
            flight.piece.flights.remove(flight)
