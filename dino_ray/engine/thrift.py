"""What a replica does when its models do not fit their device's memory: work on less at once, and try again.

Each measure may change the last bits of a tile, since sums over another shape may run in another order; so each is
logged, and named in the report. It stays in force for the replica's life: what did not fit once would not fit again.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from dino_ray.errors import describe_error
from dino_ray.plan.geometry import Rect

log = logging.getLogger(__name__)

A = TypeVar("A")
R = TypeVar("R")

SAYS_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""What accelerators' errors that are no ``torch.OutOfMemoryError`` say: CUDA's and HIP's own, torch's allocator of host
memory, and the status of cuBLAS and cuDNN."""

LEAST_STRIP = 64
"""canvas_px: lower strips of a base would be mostly halo."""


class OutOfMemory(Exception):
    """One tile does not fit the device's memory, with every measure in force."""


@dataclass(frozen=True)
class Shortage:
    """An attempt that ran out of memory, without the traceback, whose frames would hold what filled it."""

    reason: str


class Thrift:
    """The measures in force on one replica."""

    def __init__(self) -> None:
        self._batch: int | None = None
        self._strips = 1
        self._measures: dict[str, str] = {}

    @property
    def measures(self) -> tuple[str, ...]:
        """In words, newest last: ``batches of 2``, ``VAE tiling of 512 px``, ``base in 2 strips``."""
        return tuple(self._measures.values())

    def in_batches(
        self,
        items: Sequence[A],
        work: Callable[[Sequence[A]], Sequence[R]],
        save_memory: Callable[[], str | None],
    ) -> list[R]:
        """Work on items, as many at once as fit: all, else half of them, and so on.

        Parameters
        ----------
        work
            Makes one result of each of some items.
        save_memory
            Asked where a single item does not fit: takes a measure of the model's own and names it, or returns None.

        Raises
        ------
        OutOfMemory
            If a single item does not fit.
        """
        made: list[R] = []
        while len(made) < len(items):
            part = items[len(made) : len(made) + (self._batch or len(items))]
            results = attempt(work, part)
            if not isinstance(results, Shortage):
                made.extend(results)
            elif len(part) > 1:
                self._batch = len(part) // 2
                self._note("batch", f"batches of {self._batch}", results)
            elif measure := save_memory():
                self._note(measure, measure, results)
            else:
                raise OutOfMemory(results.reason)
        return made

    def in_strips(self, rect: Rect, make: Callable[[Rect], np.ndarray]) -> np.ndarray:
        """Make the pixels (rect.h, rect.w, ...) of ``rect`` whole, or in strips that fit one after the other.

        Raises
        ------
        OutOfMemory
            If a strip of ``LEAST_STRIP`` does not fit.
        """
        while True:
            made = attempt(_make_strips, make, rect, self._strips)
            if not isinstance(made, Shortage):
                return made
            if rect.h < 2 * self._strips * LEAST_STRIP:
                raise OutOfMemory(made.reason)
            self._strips *= 2
            self._note("strips", f"base in {self._strips} strips", made)

    def _note(self, kind: str, measure: str, shortage: Shortage) -> None:
        # A new one, for another call may be reading it; and what is new comes last.
        self._measures = {name: known for name, known in self._measures.items() if name != kind} | {
            kind: measure
        }
        log.warning("%s; from now on: %s", shortage.reason, measure)


def attempt(work: Callable[..., R], *args: object) -> R | Shortage:
    """What ``work`` returns; ``Shortage`` where it runs out of memory, all of which is free again by then."""
    try:
        return work(*args)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        shortage = Shortage(describe_error(error))
    # The error, and with it the frames of its traceback, went as the block above ended: not before can it be freed.
    free()
    return shortage


def is_out_of_memory(error: Exception) -> bool:
    """Whether a model failed for want of its device's memory."""
    torch = sys.modules.get("torch")  # not imported: nothing of its kind can have been raised
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAYS_OUT_OF_MEMORY)


def free() -> None:
    """Give back what this process no longer uses of its devices' memory."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.cuda.empty_cache()  # nothing, where CUDA is not in use


def _make_strips(make: Callable[[Rect], np.ndarray], rect: Rect, strips: int) -> np.ndarray:
    strips = max(
        1, min(strips, rect.h // LEAST_STRIP)
    )  # of an image whose tiles are lower than the one it was for
    if strips == 1:
        return make(rect)
    edges = [rect.y + rect.h * i // strips for i in range(strips + 1)]
    parts = [make(Rect(rect.x, y, rect.w, y1 - y)) for y, y1 in pairwise(edges)]
    return np.concatenate(parts)
