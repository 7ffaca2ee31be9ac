"""How many replicas a job asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

MOST_WORKERS = 4096
"""Far more than any cluster has GPUs; what is above is a slip of the keyboard."""


@dataclass(frozen=True)
class Workers:
    """How many replicas a job has: ``least`` at its start, up to ``most`` where machines have room, now or later."""

    SYNTAX: ClassVar[str] = "N|MIN:MAX|auto"
    """What to type."""

    least: int = 1
    most: int | None = None
    """None: as many as there is room for, from one on."""

    def __post_init__(self) -> None:
        assert 1 <= self.least <= (self.most or 1) <= MOST_WORKERS

    @classmethod
    def parse(cls, value: Any) -> Workers:
        """``4``, ``"4"``, ``"2:16"`` or ``"auto"``.

        Raises
        ------
        ValueError
            If it is none of these, or out of range.
        """
        if isinstance(value, cls):
            return value
        if value == "auto":
            return cls()
        if isinstance(value, bool) or not (
            match := re.fullmatch(r"(\d+)(?::(\d+))?", str(value).strip(), re.ASCII)
        ):
            raise ValueError("neither a number nor a range")
        least = int(match[1])
        most = int(match[2] or least)
        if not 1 <= least <= most <= MOST_WORKERS:
            raise ValueError("out of range")
        return cls(least, most)

    @property
    def plain(self) -> int | str:
        """As `parse` takes it: what files of options hold."""
        if self.most is None:
            return "auto"
        return self.least if self.most == self.least else f"{self.least}:{self.most}"

    def __str__(self) -> str:
        return str(self.plain)

    def bounds(self, tiles: int) -> tuple[int, int]:
        """The least and the most replicas for images of up to so many tiles, beyond which they would idle.

        What was asked for outright is kept: ``least`` of them, however few tiles there are.
        """
        most = tiles if self.most is None else min(self.most, tiles)
        return self.least, max(self.least, most)
