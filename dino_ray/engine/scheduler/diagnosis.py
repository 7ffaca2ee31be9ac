"""Who waits for what, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dino_ray.engine.scheduler.pool import Flight, Place, Pool, State
from dino_ray.engine.scheduler.work import Work

SHOWN = 8
"""Replicas, tiles and cells that are named one by one; of more, only how many."""


def diagnosis(work: Work, pool: Pool, merging: Sequence[int], merges_waiting: int, now: float) -> str:
    """One line: the queue, the calls in flight on each replica and for how long, the replicas, the merges."""
    parts = [f"{len(work.cells_left)} cells left, {work.queued} calls queued{_first(work)}"]
    busy = [place for place in pool if place.flights]
    busy.sort(key=lambda place: place.flights[0].since or now)
    parts.append("in flight: " + (_some([_calls(place, now) for place in busy], "; ") or "nothing"))
    parts.append("replicas: " + (_states(pool) or "none was heard of"))
    merges = f"merging: {_some([f'cell {cell}' for cell in merging]) or 'nothing'}"
    parts.append(merges + (f", {merges_waiting} merges wait" if merges_waiting else ""))
    return "; ".join(parts)


def _first(work: Work) -> str:
    piece = work.earliest()
    return "" if piece is None else f" (first: {_tiles(piece.tiles)})"


def _calls(place: Place, now: float) -> str:
    return f"replica {place.number}: " + ", ".join(_call(flight, now) for flight in place.flights)


def _call(flight: Flight, now: float) -> str:
    what = _tiles(flight.call.tiles) + (" (cancelled)" if flight.cancelled else "")
    return f"{what} waiting" if flight.since is None else f"{what} for {now - flight.since:.0f} s"


def _states(pool: Pool) -> str:
    counts = Counter(
        "busy" if place.state is State.READY and place.flights else place.state.value for place in pool
    )
    said = ", ".join(f"{count} {state}" for state, count in counts.items())
    lost = [f"replica {p.number}: {p.reason}" for p in pool if p.reason and p.state is not State.READY]
    return said + (f" ({_some(lost, '; ')})" if lost else "")


def _tiles(tiles: Sequence[int]) -> str:
    return ("tile " if len(tiles) == 1 else "tiles ") + _some([str(tile) for tile in tiles])


def _some(items: Sequence[str], separator: str = ", ") -> str:
    more = [f"{len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return separator.join([*items[:SHOWN], *more])
