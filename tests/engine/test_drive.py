"""Promises of the loop between scheduler and engine, with an engine that follows a script."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import make_task

from dino_ray.engine.drive import drive
from dino_ray.engine.protocol import (
    CellDone,
    DriveDone,
    EngineEvent,
    Handle,
    ImageTask,
    JobEvent,
    ReplicaLoading,
    ReplicaLost,
    ReplicaPlaced,
    ReplicaReady,
    TileCall,
    TilePoisoned,
    TilesDone,
    TilesLost,
    TilesSpare,
    TilesStarted,
)
from dino_ray.errors import JobError


class Script:
    """Replicas that answer at once, but for ``silent`` ones. Time passes only in ``wait``."""

    def __init__(self, replicas: int = 2, silent: Collection[int] = (), raises: Collection[int] = ()) -> None:
        self.replicas = replicas
        self.ready: Collection[int] = range(replicas)
        self.hopeless: str | None = None
        self.last_words: str | None = None
        """Why there is no hope, from the moment that a replica is lost."""
        self.merges_at_once = 2
        self.silent, self.raises = silent, raises
        self.now = 0.0
        self.pending: deque[EngineEvent] = deque()
        self.held: list[tuple[TileCall, int]] = []
        self.cancelled: list[TileCall] = []
        self.replaced: list[int] = []
        self.merged: dict[int, set[Handle]] = {}
        self.settled = 0

    def clock(self) -> float:
        return self.now

    def share(self, task: ImageTask) -> Handle:
        self.grid = task.grid
        return task

    def submit_tiles(self, task: Handle, guide: Handle, call: TileCall, replica: int) -> None:
        if replica in self.silent:
            self.held.append((call, replica))
        elif call.refine and set(self.raises).intersection(call.tiles):
            self.pending.append(TilesLost(call, replica, "too bright", "raised"))
        else:
            self.pending.append(
                TilesDone(call, replica, tuple(f"{tile} by {replica}" for tile in call.tiles))
            )

    def cancel(self, call: TileCall, replica: int) -> None:
        self.cancelled.append(call)

    def replace(self, replica: int, reason: str) -> None:
        self.replaced.append(replica)

    def submit_merge(self, task: Handle, cells: Sequence[int], tiles: Sequence[tuple[int, Handle]]) -> None:
        assert {number for number, _ in tiles} == {t for cell in cells for t in self.grid.cell_tiles(cell)}
        assert all(str(pixels).startswith(f"{number} by") for number, pixels in tiles)
        for cell in cells:
            self.merged[cell] = {pixels for _, pixels in tiles}
            self.pending.append(CellDone(cell))

    def wait(self, timeout: float) -> list[EngineEvent]:
        assert 0 <= timeout <= 1.0, "an interrupt is to be felt at once"
        self.now += 0.1 if self.pending else timeout
        events = [self.pending.popleft() for _ in range(min(len(self.pending), 1 if timeout else 100))]
        if any(isinstance(event, ReplicaLost) for event in events):
            self.hopeless = self.last_words
        return events

    def describe(self) -> str:
        return "two machines, nobody home"

    def settle(self) -> None:
        self.settled += 1


def run(engine: Script, folder: Path, **options: Any) -> tuple[DriveDone, list[JobEvent]]:
    events: list[JobEvent] = []
    summary = drive(engine, make_task(folder), None, events.append, clock=engine.clock, **options)  # type: ignore[arg-type]
    return summary, events


def test_every_cell_is_merged_and_every_call_ends_for_listeners(tmp_path: Path) -> None:
    engine = Script()
    summary, events = run(engine, tmp_path)
    assert set(engine.merged) == set(range(engine.grid.n_cells))
    started = [event.call for event in events if isinstance(event, TilesStarted)]
    ended = [event.call for event in events if isinstance(event, TilesDone | TilesLost | TilesSpare)]
    assert sorted(call.number for call in started) == sorted(call.number for call in ended)
    assert (summary.tile_calls, summary.retries, summary.poisoned) == (len(started), 0, {})
    assert engine.settled == 1


def test_how_ready_replicas_came_to_be_so_costs_no_call(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain, _ = run(Script(), tmp_path / "plain")
    engine = Script()
    for replica in engine.ready:
        engine.pending += [ReplicaPlaced(replica, "here"), ReplicaLoading(replica), ReplicaReady(replica)]
    summary, events = run(engine, tmp_path)
    assert summary.tile_calls == plain.tile_calls
    assert sum(isinstance(event, ReplicaPlaced) for event in events) == 2


def test_what_a_replica_that_is_late_has_is_done_by_another_and_its_answer_is_spare(tmp_path: Path) -> None:
    engine = Script(silent={0})
    summary, events = run(engine, tmp_path)
    late = [call for call, _ in engine.held]
    assert late
    assert set(late) <= set(engine.cancelled)
    assert set(engine.merged) == set(range(engine.grid.n_cells))
    spare = [event.call for event in events if isinstance(event, TilesSpare)]
    assert set(late) <= set(spare)
    assert summary.retries == 0
    assert summary.copies == sum(isinstance(event, TilesStarted) and event.copy for event in events) > 0
    assert not any("by 0" in str(pixels) for cell in engine.merged.values() for pixels in cell)


def test_a_poisoned_tile_is_told_and_its_base_merged(tmp_path: Path) -> None:
    engine = Script(raises={2})
    summary, events = run(engine, tmp_path)
    assert [event for event in events if isinstance(event, TilePoisoned)] == [TilePoisoned(2, "too bright")]
    assert summary.poisoned == {2: "too bright"}
    assert summary.retries == 3
    assert [e.call.refine for e in events if isinstance(e, TilesDone) and e.call.tiles == (2,)] == [False]


def test_cells_that_are_done_are_left_alone(tmp_path: Path) -> None:
    engine = Script()
    run(engine, tmp_path, cells_done=range(1, 10_000))
    assert set(engine.merged) == {0}


def test_a_stuck_job_says_what_the_engine_says_of_itself(tmp_path: Path) -> None:
    engine = Script(silent={0, 1})
    with pytest.raises(
        JobError, match=r"nothing got done for .*replica 0: tile 0 for .*; two machines, nobody home$"
    ):
        run(engine, tmp_path)
    assert engine.settled == 1


def test_an_engine_without_hope_ends_the_job_at_once(tmp_path: Path) -> None:
    engine = Script(replicas=0)
    engine.last_words = "no such weights"
    engine.pending.append(ReplicaLost(0, "no such weights", for_good=True))
    with pytest.raises(JobError, match=r"no replica is left: no such weights"):
        run(engine, tmp_path)


def test_replicas_that_come_late_are_used(tmp_path: Path) -> None:
    engine = Script(replicas=0)
    engine.pending.append(ReplicaReady(7))
    run(engine, tmp_path)
    assert set(engine.merged) == set(range(engine.grid.n_cells))
