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


class Made(Lanczos):
    """Tells of each base."""

    def __init__(self, on_base: Callable[[], None]) -> None:
        super().__init__()
        self._on_base = on_base

    def __call__(self, *args: Any) -> Any:
        made = super().__call__(*args)
        self._on_base()
        return made


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas take themselves for such as have their models on one."""
    monkeypatch.setattr(Replica, "overlaps", True)


def test_a_gpu_does_not_wait_for_the_next_calls_bases(on_a_gpu: None, tmp_path: Path) -> None:
    task = make_task(tmp_path)
    alone = [Replica(shade()).refine(task, Guide(), TileCall(1, (tile,)))[0][0] for tile in (0, 1)]
    entered, go = threading.Event(), threading.Event()
    bases: list[int] = []

    def on_base() -> None:
        bases.append(1)
        if len(bases) == 2:  # the second call's, which is what lets the first one's model go on
            assert entered.is_set()
            go.set()

    replica = Replica(ReplicaSpec(upsampler=lambda: Made(on_base), denoiser=lambda: Slow(entered, go)))
    replica.load()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(replica.refine, task, Guide(), TileCall(1, (0,)))
        assert entered.wait(30)
        second = threads.submit(replica.refine, task, Guide(), TileCall(2, (1,)))
        together = [first.result(60)[0][0], second.result(60)[0][0]]
    np.testing.assert_array_equal(together, alone)


def test_a_gpu_does_not_wait_for_pixels_to_arrive(
    on_a_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(tmp_path)
    begun, entered = threading.Event(), threading.Event()
    fetched: list[int] = []

    def fetch(tensor: Any) -> Callable[[], np.ndarray]:
        number = len(fetched)
        fetched.append(number)

        def arrived() -> np.ndarray:
            if number == 0:  # the first call's pixels arrive once the second one has the device
                begun.set()
                assert entered.wait(30)
            return np.asarray(tensor.numpy())

        return arrived

    monkeypatch.setattr("dino_ray.engine.verifying.fetch", fetch)

    class Second(Shade):
        def encode(self, pixels: Any) -> Any:
            if fetched:
                entered.set()
            return super().encode(pixels)

    replica = Replica(ReplicaSpec(upsampler=Lanczos, denoiser=Second))
    replica.load()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(replica.refine, task, Guide(), TileCall(1, (0,)))
        assert begun.wait(30)
        second = threads.submit(replica.refine, task, Guide(), TileCall(2, (1,)))
        assert first.result(60)
        assert second.result(60)


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
