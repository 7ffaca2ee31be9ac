"""Promises of calls that overlap on one replica."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Shade, make_task, shade

from dino_ray.engine.protocol import Guide, ReplicaSpec, TileCall
from dino_ray.engine.replica import Cancelled, Replica
from dino_ray.engine.turns import Turns
from dino_ray.engine.watch import Stopwatch, never
from dino_ray.plan.geometry import Rect
from dino_ray.upsample import Lanczos


def test_the_device_is_one_calls_at_a_time_in_the_order_of_their_numbers() -> None:
    turns = Turns()
    had: list[int] = []
    on_it = 0

    def work(turn: Any, number: int) -> None:
        nonlocal on_it
        with turn:
            turn.take(never)
            turn.take(never)
            on_it += 1
            assert on_it == 1
            had.append(number)
            on_it -= 1

    joined = [(turns.join(number), number) for number in (3, 1, 2)]
    with ThreadPoolExecutor(3) as threads:
        for done in [threads.submit(work, *turn) for turn in joined]:
            done.result()
    assert had == [1, 2, 3]


def test_an_earlier_call_that_comes_later_does_not_take_the_device_from_another() -> None:
    turns = Turns()
    late = turns.join(5)
    with late:
        late.take(never)
        early = turns.join(1)
        asked = iter([False, False, True])
        with pytest.raises(Cancelled), early:
            early.take(lambda: next(asked))
    with turns.join(6) as after:
        after.take(never)


class Slow(Shade):
    """Does not answer before it is told to."""

    def __init__(self, entered: threading.Event, go: threading.Event) -> None:
        self._entered, self._go = entered, go

    def decode(self, latents: Any) -> Any:
        self._entered.set()
        assert self._go.wait(30)
        return super().decode(latents)


class Noted:
    """A source that tells of each reading."""

    def __init__(self, source: Any, on_read: Callable[[], None]) -> None:
        self._source, self._on_read, self.info = source, on_read, source.info

    def read(self, rect: Rect) -> np.ndarray:
        self._on_read()
        return np.asarray(self._source.read(rect))


def test_a_call_reads_its_source_while_another_has_the_device_and_the_pixels_are_the_same(
    tmp_path: Path,
) -> None:
    task = make_task(tmp_path)
    alone = [Replica(shade()).refine(task, Guide(), TileCall(1, (tile,)))[0][0] for tile in (0, 1)]
    entered, go = threading.Event(), threading.Event()
    replica = Replica(ReplicaSpec(upsampler=Lanczos, denoiser=lambda: Slow(entered, go)))
    replica.load()
    noted = replace(task, source=Noted(task.source, go.set))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(replica.refine, task, Guide(), TileCall(1, (0,)))
        assert entered.wait(30)
        # The reading of the second is what lets the first one go on.
        second = threads.submit(replica.refine, noted, Guide(), TileCall(2, (1,)))
        together = [first.result(60)[0][0], second.result(60)[0][0]]
    np.testing.assert_array_equal(together, alone)


def test_a_call_that_fails_frees_the_device(tmp_path: Path) -> None:
    class Broken(Shade):
        broken = True

        def decode(self, latents: Any) -> Any:
            if self.broken:
                raise ValueError("no")
            return super().decode(latents)

    model = Broken()
    replica = Replica(ReplicaSpec(upsampler=Lanczos, denoiser=lambda: model))
    task = make_task(tmp_path)
    with pytest.raises(ValueError, match="no"):
        replica.refine(task, Guide(), TileCall(1, (0,)))
    model.broken = False
    replica.refine(task, Guide(), TileCall(2, (0,)))


def test_stages_within_stages_and_waiting_are_counted_once_or_not_at_all() -> None:
    watch = Stopwatch()
    with watch("outer"):
        with watch("inner"):
            threading.Event().wait(0.05)
        with watch.stopped():
            threading.Event().wait(0.05)
    seconds = watch.timings().stages
    assert set(seconds) == {"outer", "inner"}
    assert seconds["outer"] < seconds["inner"]
