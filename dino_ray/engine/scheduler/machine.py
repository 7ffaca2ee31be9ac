"""The state machine: events in, decisions out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dino_ray.engine.protocol import (
    CellDone,
    CellLost,
    DriveDone,
    EngineEvent,
    Event,
    Fault,
    ReplicaLeaving,
    ReplicaLoading,
    ReplicaLost,
    ReplicaPlaced,
    ReplicaReady,
    TilePoisoned,
    TilesDone,
    TilesLost,
    TilesSpare,
)
from dino_ray.engine.scheduler.blame import Blame
from dino_ray.engine.scheduler.calls import Calls
from dino_ray.engine.scheduler.decisions import Decision, Merge, Stop
from dino_ray.engine.scheduler.diagnosis import diagnosis
from dino_ray.engine.scheduler.guard import Guard
from dino_ray.engine.scheduler.merges import Merges
from dino_ray.engine.scheduler.pace import Pace
from dino_ray.engine.scheduler.pool import CALLS_PER_REPLICA, Flight, Place, Pool, State
from dino_ray.engine.scheduler.pressure import Pressure
from dino_ray.engine.scheduler.stragglers import may_be_copied
from dino_ray.engine.scheduler.watch import Watch
from dino_ray.engine.scheduler.work import Piece, Work
from dino_ray.plan.geometry import Grid

TRIES = 3
"""A piece of work that raised this often, on different replicas where there are some, will always raise."""

MERGE_TRIES = 10
"""A merge is innocent of what befalls its machine, so it is tried more often; but not for ever."""

POISONED_BEFORE_DOUBT = 3
"""With so many tiles poisoned and not one refined, it is the model that does not work, not the tiles."""

LOOK_S = 1.0
"""Longest time between two looks at the clock: short enough that an interrupt is felt at once."""

LOOKS_PER_CALL = 4
"""Looks within a typical call while a replica has nothing to do."""

LEAST_LOOK_S = 0.02
"""Shortest: more often would only keep a core busy."""


class Scheduler:
    """The state of one image's work.

    It knows no engine, starts nothing and keeps no time: it hears events, and says what to do. What it decides counts
    as done.

    Parameters
    ----------
    grid
        The plan: which cell needs which tiles.
    batch
        Tiles that go in one call; see ``Grid.tile_groups``.
    cells_done
        Cells that the canvas holds already; what only they need is not computed.
    ready
        Replicas that are ready already.
    tile_bytes
        Size of one tile's pixels; 0: negligible.
    now
        Seconds, on the clock that all other times are of.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        batch: int = 1,
        cells_done: Sequence[int] = (),
        ready: Iterable[int] = (),
        tile_bytes: int = 0,
        now: float = 0.0,
    ) -> None:
        self._merges = Merges(tile_bytes)
        self._work = Work(grid, batch, cells_done, self._merges)
        self._pace = Pace()
        self._watch = Watch(self._pace)
        self._pool = Pool(self._pace, self._watch)
        self._blame = Blame()
        self._pressure = Pressure(CALLS_PER_REPLICA)
        self._guard = Guard(now)
        self._decisions: list[Decision] = []
        self._calls = Calls(self._work, self._pool, self._merges, grid.max_waiting(), batch, self._decisions)
        self._batch = batch
        self._refined = 0  # tiles
        self._retries = 0
        self._poisoned: dict[int, str] = {}
        for replica in ready:
            self._pool.enter(self._pool[replica], State.READY)

    @property
    def done(self) -> bool:
        """Whether all cells are on the canvas."""
        return not self._work.cells_left

    def summary(self) -> DriveDone:
        """What it took."""
        return DriveDone(self._calls.started, self._retries, dict(self._poisoned), self._calls.copies)

    def abandon(self) -> list[Event]:
        """What to tell of the calls that are still in flight when nobody needs them any more."""
        return [TilesSpare(flight.call, flight.place.number) for flight in self._calls.in_flight.values()]

    def describe(self, now: float) -> str:
        """Who waits for what: one line for the diagnosis of a stuck job."""
        return diagnosis(self._work, self._pool, self._merges.running(), self._merges.waiting, now)

    # ---- what happened

    def hear(self, event: EngineEvent, now: float) -> list[Event]:
        """Take note of an event; returns what listeners are to be told of it."""
        match event:
            case ReplicaPlaced(replica, node):
                self._pool[replica].node = node
                self._calls.enter(self._pool[replica], State.PENDING)
            case ReplicaLoading(replica):
                self._calls.enter(self._pool[replica], State.LOADING)
            case ReplicaReady(replica):
                self._is_ready(self._pool[replica], now)
            case ReplicaLeaving(replica, reason):
                self._is_leaving(self._pool[replica], reason)
            case ReplicaLost():
                self._is_lost(event, now)
            case TilesDone():
                return self._answer(event, now)
            case TilesLost():
                return self._no_answer(event, now)
            case CellDone(cell):
                self._guard.progress(now)
                for piece in self._work.cell_done(cell):
                    if not self._work.needs(piece):
                        self._calls.cancel_all(piece)
            case CellLost():
                self._cell_lost(event, now)
        return [event]

    def _is_ready(self, place: Place, now: float) -> None:
        if place.state in (State.READY, State.LEAVING, State.DEAD):
            return
        self._calls.enter(place, State.READY)
        place.reason = ""
        place.raised.clear()
        self._guard.progress(now, work=False)

    def _is_leaving(self, place: Place, reason: str) -> None:
        place.reason = reason
        self._calls.enter(place, State.LEAVING)
        self._calls.send_waiting_elsewhere(place)

    def _is_lost(self, lost: ReplicaLost, now: float) -> None:
        place = self._pool[lost.replica]
        place.reason = lost.reason
        place.node_gone = place.node_gone or lost.fault == "node"
        self._calls.enter(place, State.DEAD if lost.for_good else State.QUARANTINED)
        if lost.fault == "memory":
            self._pressure.shortage(now)

    def _answer(self, done: TilesDone, now: float) -> list[Event]:
        flight = self._calls.in_flight.pop(done.call.number, None)
        if flight is None:
            return [TilesSpare(done.call, done.replica)]
        place, piece = flight.place, flight.piece
        at_work, made = flight.since is not None, _tiles_made(done)
        if at_work:
            self._pool.learn(flight, made, now)
            if (
                made or not piece.refine
            ):  # flat tiles pass in no time, so no hand hits them: they are no witnesses
                self._blame.worked(piece.record)
        self._calls.land(flight, now)
        place.raised.clear()
        place.was_sick = False
        kept = self._work.finish(piece, done.pixels, place.number) if done.call.refine == piece.refine else 0
        if not kept:
            self._calls.want(piece)
            return [TilesSpare(done.call, done.replica)]
        self._guard.progress(now)
        self._blame.finished(piece.record)
        self._refined += kept if made else 0
        self._calls.cancel_all(piece)
        return [done]

    def _no_answer(self, lost: TilesLost, now: float) -> list[Event]:
        if lost.fault == "memory":
            self._pressure.shortage(now)
        flight = self._calls.in_flight.pop(lost.call.number, None)
        if flight is None:
            return [TilesSpare(lost.call, lost.replica)]
        fault = "died" if flight.hung and lost.fault != "raised" else lost.fault
        piece, at_work = flight.piece, flight.since is not None
        if fault in ("died", "memory"):
            self._process_ended(flight)
        if at_work and fault in ("died", "memory", "node"):
            self._guard.loss(lost.reason)
        self._calls.land(flight, now)
        spare = flight.cancelled or not self._work.needs(piece) or flight.call.refine != piece.refine
        told: list[Event] = [TilesSpare(lost.call, lost.replica) if spare else lost]
        self._retries += not spare
        if at_work and self._is_guilty(flight, fault, spare):
            told += self._convict(piece, lost.reason)
        self._calls.want(piece)
        return told

    def _process_ended(self, flight: Flight) -> None:
        if flight in flight.place.flights:  # and not one of a former life
            self._calls.enter(flight.place, State.QUARANTINED)

    def _is_guilty(self, flight: Flight, fault: Fault, spare: bool) -> bool:
        """Whether a piece has failed for the last time."""
        piece, place = flight.piece, flight.place
        if fault == "died":
            piece.failed_on.add(place.number)
            return self._blame.died(piece.record) and not spare
        if fault in ("raised", "cancelled"):
            self._blame.worked(piece.record)
        if fault != "raised" or spare:
            return False
        piece.failed_on.add(place.number)
        piece.raised += 1
        place.raised.append(piece.rank)
        if place.sick and self._refined:
            for waiting in place.flights:  # ended by us, so blameless
                waiting.since = None
            place.was_sick = True
            self._calls.replace(place, f"its last {len(place.raised)} calls raised")
        return piece.raised >= TRIES

    def _convict(self, piece: Piece, reason: str) -> list[Event]:
        """A piece keeps failing: find the tile that it is, or do without its refinement."""
        self._blame.convicted(piece.record)
        self._calls.cancel_all(piece)
        if len(piece.tiles) > 1:
            self._work.split(piece)
            return []
        (tile,) = piece.tiles
        if not piece.refine:
            self._stop(f"tile {tile} fails even without the model: {reason}")
            return []
        piece.refine, piece.raised = False, 0
        piece.failed_on.clear()
        self._poisoned[tile] = reason
        self._guard.found()
        doubt = min(POISONED_BEFORE_DOUBT, len(self._work.tiles_to_do))
        if not self._refined and len(self._poisoned) >= doubt:
            self._stop(f"the model fails on every tile it was given: {reason}")
        return [TilePoisoned(tile, reason)]

    def _cell_lost(self, lost: CellLost, now: float) -> None:
        if lost.fault == "memory":
            self._pressure.shortage(now)
        if lost.cell not in self._work.cells_left:
            return
        if self._merges.lost(lost.cell) >= MERGE_TRIES:
            self._stop(f"cell {lost.cell} can't be merged: {lost.reason}")
        elif lost.tiles_lost:
            for piece in self._work.redo(lost.cell, lambda replica: self._pool[replica].node_gone):
                self._retries += 1
                self._calls.want(piece)
        else:
            self._work.cell_again(lost.cell)

    # ---- what to do

    def decide(self, now: float, merges_at_once: int) -> list[Decision]:
        """What to do now.

        Parameters
        ----------
        merges_at_once
            How many merges the engine wants in flight.
        """
        self._pressure.relax(now)
        self._pool.calls_per_replica = self._pressure.calls_per_replica
        verdict = self._guard.verdict(now, self._pool.size, present=self._pool.present)
        if verdict is not None and not self.done:
            self._stop(f"{verdict}: {self.describe(now)}", stuck=True)
        self._look_after_late_calls(now)
        self._start_merges(merges_at_once, patient=bool(self._calls.in_flight))
        self._calls.start_queued(self._blame, now)
        if self._calls.held_up:
            self._start_merges(merges_at_once, patient=False)
            self._calls.start_queued(self._blame, now)
        self._calls.help_out(now)
        decisions = self._decisions.copy()
        self._decisions.clear()
        stops = [decision for decision in decisions if isinstance(decision, Stop)]
        return [stops[0]] if stops else decisions

    def patience(self, now: float) -> float:
        """Seconds until it should be asked again, if nothing happens before."""
        soonest = LOOK_S
        if (alarm := self._watch.next_in(now)) is not None:
            soonest = min(soonest, alarm)
        if self._calls.in_flight and self._pool.idle():  # somebody may come to be worth helping
            soonest = min(soonest, self._pace.typical() * self._batch / LOOKS_PER_CALL or LOOK_S)
        return max(soonest, LEAST_LOOK_S)

    def _start_merges(self, at_once: int, *, patient: bool) -> None:
        for cells, tiles in self._merges.start(self._pressure.merges(at_once), patient=patient):
            self._decisions.append(Merge(cells, self._work.pixels(tiles)))

    def _look_after_late_calls(self, now: float) -> None:
        for flight in self._watch.late(now):
            place = flight.place
            if flight.hung:
                assert flight.since is not None
                if place.state is State.READY:  # one that leaves goes anyway
                    self._calls.replace(place, f"its call has taken {now - flight.since:.0f} s")
                continue
            self._calls.send_waiting_elsewhere(place)
            if may_be_copied(flight):
                self._work.put(flight.piece)

    def _stop(self, reason: str, stuck: bool = False) -> None:
        self._decisions.append(Stop(reason, stuck))


def _tiles_made(done: TilesDone) -> int:
    """Tiles that the model made, each as often as it did; flat ones it never saw."""
    if not done.call.refine:
        return 0
    records = done.timings.fidelity
    return sum(1 + r.retries for r in records if r.action != "skipped") if records else len(done.call.tiles)
