"""How long calls take, learnt from those that ended; and from when on one is late."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

UNKNOWN_S = 60.0
"""What a call is taken to last before any has ended: of the order of a tile of a large model. Only guesses that
compare replicas with one another use it; nothing is called late before a call has ended somewhere."""

RECENT = 9
"""Calls of a replica whose median is its pace: enough to ignore an outlier or two, few enough to follow a GPU that
gets hot or a neighbour that moves in."""

RECENT_OF_POOL = 63
"""Calls of all replicas whose median is the pool's pace: some from each replica of a usual pool."""

OVERDUE_FACTOR = 3.0
"""A call that takes this many times what is expected is late. Tiles of one image differ by less, as they are all of
one size, but for those that the model makes three times; a copy that was made too early costs a call that somebody
else's tile has to wait for."""

OVERDUE_LEAST_S = 0.5
"""No call is late before: shorter delays are those of machines that do other things, too."""

HUNG_FACTOR = 10.0
"""A call that takes this many times what is expected does not come back: the replica is ended and starts anew, which
costs it the loading of its models."""

HUNG_LEAST_S = 60.0
"""No replica is given up before: to load models anew takes about as long."""

HUNG_FIRST_S = 600.0
"""Nor before this in the first call after loading, in which kernels are compiled, benchmarked and cached."""


def _median(values: deque[float]) -> float:
    return sorted(values)[len(values) // 2]


@dataclass
class _Replica:
    first: float = 0.0
    """Seconds per tile of its latest first call after loading; 0: none has ended."""
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    """Seconds per tile of the calls after it."""
    median: float = 0.0


class Pace:
    """Seconds per tile, of each replica and of the pool's typical one.

    First calls after loading are kept apart, since they warm up. Of a replica that has shown nothing but its first
    call, the pool's experience says how much of that was warming up.
    """

    def __init__(self) -> None:
        self._replicas: dict[int, _Replica] = {}
        self._firsts: deque[float] = deque(maxlen=RECENT_OF_POOL)
        self._recent: deque[float] = deque(maxlen=RECENT_OF_POOL)
        self._typical_first = 0.0
        self._typical = 0.0

    def learn(self, replica: int, seconds: float, tiles: int, *, first: bool) -> None:
        """A call ended in which a model made ``tiles`` tiles, and that was at work for ``seconds``."""
        per_tile = seconds / tiles
        if per_tile <= 0:  # heard of in one breath with the call before it: nobody knows
            return
        own = self._replicas.setdefault(replica, _Replica())
        if first:
            own.first = per_tile
            self._firsts.append(per_tile)
            self._typical_first = _median(self._firsts)
        else:
            own.recent.append(per_tile)
            own.median = _median(own.recent)
            self._recent.append(per_tile)
            self._typical = _median(self._recent)

    def typical(self, *, first: bool = False) -> float:
        """Seconds per tile of the pool's typical replica; 0 where nothing is known."""
        if first:
            return self._typical_first or self._typical
        return self._typical or self._typical_first

    def of(self, replica: int, *, first: bool = False) -> float:
        """Seconds per tile expected of a replica; 0 where nothing is known of any."""
        own = self._replicas.get(replica)
        typical = self.typical(first=first)
        if own is None:
            return typical
        if own.median:
            slowness = own.median / self._typical
        elif own.first:
            slowness = own.first / self._typical_first
        else:
            return typical
        return slowness * typical

    def guess(self, replica: int, tiles: int, *, first: bool = False) -> float:
        """Seconds that a call is expected to take, or to be compared with if nothing is known."""
        return self.of(replica, first=first) * tiles or UNKNOWN_S

    def overdue_after(self, replica: int, tiles: int, *, first: bool) -> float | None:
        """Seconds at work after which a call is late; None: nobody knows."""
        longest = self._longest(replica, first) * tiles
        return max(OVERDUE_FACTOR * longest, OVERDUE_LEAST_S) if longest else None

    def hung_after(self, replica: int, tiles: int, *, first: bool) -> float | None:
        """Seconds at work after which a call won't come back; None: nobody knows."""
        longest = self._longest(replica, first) * tiles
        return max(HUNG_FACTOR * longest, HUNG_FIRST_S if first else HUNG_LEAST_S) if longest else None

    def _longest(self, replica: int, first: bool) -> float:
        return max(self.of(replica, first=first), self.typical(first=first))
