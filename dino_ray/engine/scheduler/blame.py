"""Whether it is a tile that ends processes, or somebody else.

A process that ended may have been killed by the tile it worked on, or by a hand from outside: one death looks like
the other. They differ in number. Let deaths from outside come at some rate per call at work. That rate is estimated
from all *other* tiles; a tile is guilty when it died at least three times and, at that rate, would have died as often
within its own calls with a probability below one in ten thousand (a one-sided Poisson test).

Two things keep the estimate honest. A tile that died and then was finished is innocent, so all of its deaths came
from outside. Of a tile whose case is open only the first two deaths count: else ten tiles that always kill would
vouch for one another for ever. And half a death is added, so that a calm world does not have the rate 0.

In a large job in which nothing else dies, a tile is guilty after its third death; one that is alone in the world,
after its sixth. Twenty deaths by a random hand, spread over the tiles at work, raise the rate along with every count.

Exposure is counted in calls that were at work, ended or not, rather than in seconds: a death at the first moment of a
call is then no stronger evidence than one at its last, and nothing depends on clocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAST_DEATHS = 3
"""Fewer deaths never make a tile guilty, however calm the world."""

CHANCE = 1e-4
"""Of blaming an innocent tile, for each tile that died often enough to be asked about: small against the number of
such tiles in any job."""

OPEN_DEATHS = 2
"""Deaths of a tile whose case is open that count as evidence of killing from outside."""

PRIOR_DEATHS = 0.5
"""Added to the deaths of others: nobody having died yet is no proof that nobody will."""


@dataclass(slots=True)
class Record:
    """What is known against one piece of work."""

    deaths: int = 0
    calls: int = 0
    """At work, whether they ended well, were lost, or ended their process."""


class Blame:
    """The deaths of one job, and who is to blame for them."""

    def __init__(self) -> None:
        self._calls = 0
        self._deaths = 0
        """That count as the world's; see the module."""

    def worked(self, record: Record) -> None:
        """A call was at work and its process lived on."""
        record.calls += 1
        self._calls += 1

    def died(self, record: Record) -> bool:
        """A process ended while it worked on this piece; returns whether the piece is guilty of it."""
        record.calls += 1
        record.deaths += 1
        self._calls += 1
        self._deaths += record.deaths <= OPEN_DEATHS
        return record.deaths >= LEAST_DEATHS and self._chance(record) < CHANCE

    def finished(self, record: Record) -> None:
        """The piece was done at last, so what ended its processes came from outside."""
        self._deaths += max(0, record.deaths - OPEN_DEATHS)
        record.deaths = 0

    def convicted(self, record: Record) -> None:
        """The piece is guilty; the world was calmer than it looked."""
        self._calls -= record.calls
        self._deaths -= min(record.deaths, OPEN_DEATHS)
        record.deaths = record.calls = 0

    def _chance(self, record: Record) -> float:
        """Of as many deaths within as many calls, at the rate of the others."""
        others = self._deaths - min(record.deaths, OPEN_DEATHS)
        return poisson_tail(record.deaths, (others + PRIOR_DEATHS) / self._calls * record.calls)


def poisson_tail(k: int, mean: float) -> float:
    """Probability of ``k`` events or more where ``mean`` are expected."""
    return max(0.0, 1.0 - sum(math.exp(i * math.log(mean) - mean - math.lgamma(i + 1)) for i in range(k)))
