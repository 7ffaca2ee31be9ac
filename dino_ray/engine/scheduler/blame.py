"""Whether it is a tile that ends processes, or somebody else.

A process that ended may have been killed by the tile it worked on, or by a hand from outside: one death looks like
the other. They differ in number. Let deaths from outside come at some rate per call at work, and take that rate from
all *other* tiles. A tile is guilty when it died at least three times, and at that rate would have died as often within
its own calls with a probability below one in a hundred thousand (a one-sided Poisson test).

Three things keep the estimate honest. A tile that died and then was finished is innocent, so all of its deaths came
from outside. Of a tile whose case is open only the first two deaths count: else ten tiles that always kill would
vouch for one another for ever. And half a death is added: that nobody died yet is no proof that nobody will.

No experiment, no verdict: where nothing else gets done, a storm of kills and a tile that kills look the same. So a tile
that died twice lets others go first, as far as there are any, until enough of them came through for a third death to
tell. In a large job in which nothing else dies, a tile is then guilty after its third death, in a small one or at the
end after its fifth.

Exposure is counted in calls that were at work, ended or not, rather than in seconds: a death at the first moment of a
call is then no stronger evidence than one at its last, and nothing depends on clocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAST_DEATHS = 3
"""Fewer deaths never make a tile guilty, however calm the world."""

LEAST_DEATHS_ALONE = 5
"""Nor do fewer where little else came through before the last one, as in a small job or at a job's end: there a random
hand has little else to hit."""

FEW_WITNESSES = 3
"""Calls that came through; fewer are little. A tile that waits holds its neighbours back, so that in a small pool soon
nothing but itself may be started."""

CHANCE = 1e-5
"""Of blaming an innocent tile, for each tile that died often enough to be asked about. So small because kills are not
quite random: the last tile of a job is the only one left to be hit."""

OPEN_DEATHS = 2
"""Deaths of a tile whose case is open that count as evidence of killing from outside; after them it is a suspect."""

PRIOR_DEATHS = 0.5
"""Added to the deaths of others."""

WITNESSES = 40
"""Calls that have to come through before a suspect is tried again while there is other work. After so many, all of
them without a death, a third death convicts: Poisson's P(3 or more | 3 * 0.5 / 40) is 9e-6."""


@dataclass(slots=True)
class Record:
    """What is known against one piece of work."""

    deaths: int = 0
    calls: int = 0
    """At work, whether they ended well, were lost, or ended their process."""
    witnessed: int = 0
    """How many calls of the job had come through when it last died."""

    @property
    def uncounted(self) -> int:
        """Deaths that say nothing of the world while the case is open."""
        return max(0, self.deaths - OPEN_DEATHS)


class Blame:
    """The deaths of one job, and who is to blame for them."""

    def __init__(self) -> None:
        self._calls = 0
        self._deaths = 0  # both without those that are not counted
        self._came_through = 0

    def worked(self, record: Record) -> None:
        """A call was at work and its process lived on."""
        record.calls += 1
        self._calls += 1
        self._came_through += 1

    def died(self, record: Record) -> bool:
        """A process ended while it worked on this piece; returns whether the piece is guilty of it."""
        alone = record.deaths >= OPEN_DEATHS and self._came_through < record.witnessed + FEW_WITNESSES
        least = LEAST_DEATHS_ALONE if alone else LEAST_DEATHS
        record.calls += 1
        record.deaths += 1
        record.witnessed = self._came_through
        if not record.uncounted:
            self._calls += 1
            self._deaths += 1
        return record.deaths >= least and self._chance(record) < CHANCE

    def finished(self, record: Record) -> None:
        """The piece was done at last, so what ended its processes came from outside."""
        self._calls += record.uncounted
        self._deaths += record.uncounted
        record.deaths = 0

    def convicted(self, record: Record) -> None:
        """The piece is guilty; the world was calmer than it looked."""
        self._calls -= record.calls - record.uncounted
        self._deaths -= record.deaths - record.uncounted
        record.deaths = record.calls = 0

    def waits_for_witnesses(self, record: Record) -> bool:
        """Whether a piece should let others go first, so that its next death tells something."""
        return record.deaths >= OPEN_DEATHS and self._came_through < record.witnessed + WITNESSES

    def _chance(self, record: Record) -> float:
        """Of as many deaths within as many calls, at the rate of the others."""
        calls = self._calls - (record.calls - record.uncounted)
        deaths = self._deaths - (record.deaths - record.uncounted)
        return (
            poisson_tail(record.deaths, (deaths + PRIOR_DEATHS) / calls * record.calls) if calls > 0 else 1.0
        )


def poisson_tail(k: int, mean: float) -> float:
    """Probability of ``k`` events or more where ``mean`` are expected."""
    return max(0.0, 1.0 - sum(math.exp(i * math.log(mean) - mean - math.lgamma(i + 1)) for i in range(k)))
