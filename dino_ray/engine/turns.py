"""Calls that overlap on one replica: one has the device; the next reads its source, the last sends its pixels."""

from __future__ import annotations

import threading
from types import TracebackType

from dino_ray.engine.watch import Stop, heed

ASK_S = 0.1
"""How often a call that waits asks whether it is still wanted."""


class Turns:
    """The calls that are on a replica, and who of them has the device."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.here: list[Turn] = []
        self.holder: Turn | None = None

    def join(self, number: int) -> Turn:
        """A call comes; those with smaller numbers that wait go first."""
        turn = Turn(self, number)
        with self.changed:
            self.here.append(turn)
        return turn


class Turn:
    """One call's turn: a context manager, at whose end the device is free for the next."""

    def __init__(self, turns: Turns, number: int) -> None:
        self._turns, self._number = turns, number

    def take(self, stop: Stop) -> None:
        """Wait until the device is this call's; from then on, it costs nothing.

        Raises
        ------
        Cancelled
            Once ``stop`` says so.
        """
        if self._turns.holder is self:
            return
        while True:
            with self._turns.changed:
                if self._turns.changed.wait_for(self._is_next, ASK_S):
                    self._turns.holder = self
                    return
            heed(stop)

    def _is_next(self) -> bool:
        turns = self._turns
        return turns.holder is None and min(turns.here, key=lambda turn: turn._number) is self

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        turns = self._turns
        with turns.changed:
            turns.here.remove(self)
            if turns.holder is self:
                turns.holder = None
            turns.changed.notify_all()
