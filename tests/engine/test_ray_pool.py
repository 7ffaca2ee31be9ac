"""Promises of the Ray engine about replicas that are killed, hang, are called back or never start."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from fakes import make_task, photograph, shade
from ray.exceptions import RayError
from ray_fakes import run, slow

from dino_ray.engine.local import LocalEngine
from dino_ray.engine.protocol import (
    EngineEvent,
    ImageTask,
    JobEvent,
    ReplicaLoading,
    ReplicaLost,
    ReplicaPlaced,
    ReplicaReady,
    ReplicaSpec,
    TileCall,
    TilesDone,
    TilesLost,
)
from dino_ray.engine.ray import RayEngine
from dino_ray.engine.ray.faults import Failure
from dino_ray.engine.ray.inflight import Copy, Entry, Pixels, Ref, Store
from dino_ray.engine.ray.member import Member, Standing
from dino_ray.engine.ray.nodes import Lookout
from dino_ray.engine.ray.placement import Node, Resources, Share
from dino_ray.engine.ray.pool import RECREATIONS, Pool
from dino_ray.engine.ray.traffic import Traffic
from dino_ray.engine.ray.workers import light
from dino_ray.errors import JobError
from dino_ray.upsample import Lanczos

pytestmark = [pytest.mark.ray]

PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for the module: engines join the one that runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def wait_for(engine: RayEngine, condition: Callable[[list[EngineEvent]], bool]) -> list[EngineEvent]:
    """All events until they meet a condition."""
    events: list[EngineEvent] = []
    end = time.monotonic() + PATIENCE_S
    while not condition(events):
        assert time.monotonic() < end, f"{events}; {engine.describe()}"
        events += engine.wait(0.2)
    return events


def prepared(engine: RayEngine, task: ImageTask) -> tuple[Any, Any, list[EngineEvent]]:
    """Task and guide as handles, with all replicas ready."""
    guide, _ = engine.prepare(task)
    events = wait_for(engine, lambda events: len(engine.ready) == engine.replicas)
    return engine.share(task), guide, events


def ended(events: list[EngineEvent]) -> list[int]:
    return [event.call.number for event in events if isinstance(event, TilesDone | TilesLost)]


def pid_of(engine: RayEngine, replica: int) -> int:
    return int(ray.get(engine.members[replica].actor.pid.remote()))


@pytest.mark.slow
def test_replicas_killed_twenty_times_cost_time_and_no_pixel(ray_here: None, tmp_path: Path) -> None:
    plain = ReplicaSpec(upsampler=Lanczos, torch=False)  # starts in a second, and it does twenty times
    (tmp_path / "here").mkdir()
    expected = make_task(tmp_path / "here", photograph(200, 300))
    with LocalEngine(plain) as local:
        run(local, expected)
    task = make_task(tmp_path, photograph(200, 300))
    killed: list[int] = []
    with RayEngine(plain, least=2, most=2) as engine:

        def kill(event: JobEvent) -> None:
            if isinstance(event, TilesDone) and len(killed) < 20 and event.replica in engine.ready:
                with suppress(RayError):  # of one that was killed just now
                    pid = pid_of(engine, event.replica)
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

        events, done = run(engine, task, kill)
    assert len(killed) == 20
    assert len([event for event in events if isinstance(event, ReplicaLost)]) == 20
    assert not done.poisoned
    assert task.canvas.sha256() == expected.canvas.sha256()


def test_a_call_that_is_called_back_ends_within_a_step_and_those_behind_it_at_once(
    ray_here: None, tmp_path: Path
) -> None:
    steps = 30
    with RayEngine(slow(0.2, tmp_path), least=1, most=1) as engine:
        task, guide, _ = prepared(engine, replace(make_task(tmp_path), steps=steps))
        at_work, waiting = TileCall(1, (0,)), TileCall(2, (1, 2))
        for call in (at_work, waiting):
            engine.submit_tiles(task, guide, call, 0)
        wait_for(engine, lambda events: bool(list(tmp_path.glob("step-*"))))
        engine.cancel(waiting, 0)
        (lost,) = engine.wait(0)
        assert lost == TilesLost(waiting, 0, "cancelled", "cancelled")
        engine.cancel(at_work, 0)
        (lost,) = wait_for(engine, bool)
        assert isinstance(lost, TilesLost)
        assert (lost.call, lost.fault) == (at_work, "cancelled")
        assert len(list(tmp_path.glob("step-*"))) < steps
        engine.submit_tiles(task, guide, TileCall(3, (3,)), 0)
        engine.cancel(at_work, 0)  # has ended: nothing happens
        assert ended(wait_for(engine, bool)) == [3]


def test_a_replica_that_does_not_answer_is_replaced_and_its_calls_come_back(
    ray_here: None, tmp_path: Path
) -> None:
    with RayEngine(slow(1000), least=1, most=1) as engine:
        task, guide, _ = prepared(engine, make_task(tmp_path))
        hung = pid_of(engine, 0)
        for number in (1, 2):
            engine.submit_tiles(task, guide, TileCall(number, (number,)), 0)
        engine.replace(0, "silent")
        first, second, lost, placed, *_ = engine.wait(0)
        assert [(type(e), e.call.number, e.fault) for e in (first, second)] == [  # type: ignore[union-attr]
            (TilesLost, 1, "died"),
            (TilesLost, 2, "cancelled"),
        ]
        assert lost == ReplicaLost(0, "silent")
        assert isinstance(placed, ReplicaPlaced)
        assert not engine.ready
        events = wait_for(engine, lambda events: any(isinstance(e, ReplicaReady) for e in events))
        assert [type(event) for event in events] == [ReplicaLoading, ReplicaReady]
        assert pid_of(engine, 0) != hung


def test_a_replica_still_at_a_former_images_call_is_ready_when_that_has_ended(
    ray_here: None, tmp_path: Path
) -> None:
    with RayEngine(slow(0.3, tmp_path), least=1, most=1) as engine:
        task, guide, _ = prepared(engine, make_task(tmp_path))
        for number in (1, 2):
            engine.submit_tiles(task, guide, TileCall(number, (number,)), 0)
        wait_for(engine, lambda events: bool(list(tmp_path.glob("step-*"))))
        engine.settle()
        assert not engine.ready
        engine.submit_tiles(task, guide, TileCall(3, (3,)), 0)  # too early
        events = wait_for(engine, lambda events: bool(engine.ready))
        assert [type(event) for event in events] == [TilesLost, ReplicaReady]
        assert ended(events) == [3]


def test_actors_have_names_that_people_can_read(ray_here: None) -> None:
    with RayEngine(shade(), least=2, most=2) as engine:
        wait_for(engine, lambda events: sum(isinstance(e, ReplicaLoading) for e in events) == 1)
        assert re.match(r"machines: 1; replicas: .*(1 starting|1 preparing the image)", engine.describe())
        job = ray.get_runtime_context().get_job_id()
        for replica in engine.members:
            ray.get_actor(f"dino-ray/{job}/replica {replica}", namespace="dino-ray")


def member(number: int, node: str, standing: Standing) -> Member:
    return Member(number, node, node, None, held=False, standing=standing)


def test_there_is_hope_while_a_lost_machine_may_be_trusted_again(ray_here: None) -> None:
    bare, well = (Node(name, name, Resources(cpus=1, gpus=0)) for name in ("bare", "well"))
    pool = Pool(shade(), Share(gpus=0, cpus=1), 1, 2, "1", {}, grows=False)
    pool.see([bare, well])
    pool.members = {0: member(0, "bare", Standing.LOADING), 1: member(1, "well", Standing.READY)}
    pool.fall(1, Failure("node", "it does not answer"))
    pool.fall(0, Failure("raised", "no such weights"))
    assert pool.hopeless is None
    pool.see([bare])
    assert pool.hopeless == "bare: no such weights"


def test_a_machine_on_which_no_replica_comes_to_run_is_named_with_the_likely_reason(ray_here: None) -> None:
    pool = Pool(shade(), Share(gpus=0, cpus=1), 1, 1, "1", {}, grows=False)
    here = ray.get_runtime_context().get_node_id()
    pool.see([Node(here, "bare", Resources(cpus=1, gpus=0))])
    pool.members = {0: replace(member(0, here, Standing.STARTING), place="bare")}
    for _ in range(RECREATIONS + 1):
        assert pool.hopeless is None
        pool.fall(0, Failure("died", "it ended", process_lost=True))
    assert pool.hopeless is not None
    assert re.match(r"bare: .* dino-ray is missing .*doctor.*: it ended", pool.hopeless)


def lose() -> None:
    os._exit(1)


def test_a_tile_whose_copy_failed_is_where_it_was(ray_here: None) -> None:
    original, copy = ray.put("pixels"), light(lose, "rescue").remote()
    pixels = Pixels(copy, "here")
    pending: dict[Ref, Entry] = {copy: Copy("there", pixels, original)}
    lookout = Lookout()
    pool = Pool(shade(), Share(gpus=0, cpus=1), 1, 1, "1", pending, grows=False)
    traffic = Traffic(pool, pending, Store("here"), lookout)
    assert traffic.gather_until(lambda: not pending, PATIENCE_S)
    lookout.close()
    assert (pixels.ref, pixels.node) == (original, "there")


@ray.remote(num_cpus=2)
class Neighbour:
    def sits(self) -> None:
        pass


def test_who_waits_for_others_resources_is_told_and_does_not_wait_for_ever(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    neighbour = Neighbour.remote()
    ray.get(neighbour.sits.remote())
    monkeypatch.setattr("dino_ray.engine.ray.engine.TOLD_S", 0.1)
    monkeypatch.setattr("dino_ray.engine.ray.engine.PLACEMENT_S", 1.0)
    try:
        with (
            caplog.at_level("INFO", logger="dino_ray"),
            RayEngine(shade()) as engine,
            pytest.raises(JobError, match="others hold this Ray's resources"),
        ):
            engine.prepare(make_task(tmp_path))
    finally:
        ray.kill(neighbour)
    assert "waiting for a first replica" in caplog.text
