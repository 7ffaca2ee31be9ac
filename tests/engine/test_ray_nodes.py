"""Promises of the Ray engine about machines that come and go, played by one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from fakes import make_task, photograph, shade
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from ray_fakes import cluster_of, long_text, machines, picky, run, slow

from dino_ray.engine.drive import drive
from dino_ray.engine.local import LocalEngine
from dino_ray.engine.protocol import (
    ImageTask,
    JobEvent,
    ReplicaLeaving,
    ReplicaLost,
    ReplicaPlaced,
    TilesDone,
    TilesStarted,
)
from dino_ray.engine.ray import RayEngine

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NOTICE_S = 60


def large_task(folder: Path) -> ImageTask:
    """Tiles too large to travel with their answer, so that they lie, and are lost, on the node that made them."""
    folder.mkdir(exist_ok=True)
    return make_task(folder, photograph(450, 600), tile=256)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What every engine has to make of ``large_task``."""
    task = large_task(tmp_path_factory.mktemp("here"))
    with LocalEngine(shade()) as local:
        drive(local, task, local.prepare(task)[0], lambda event: None)
    return task.canvas.sha256()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, so that every replica lives on a node that is not the driver's."""
    with cluster_of(head_cpus=0) as (cluster, _):
        yield cluster


def tiles_of(events: list[JobEvent], kind: type, replicas: set[int] | None = None) -> list[int]:
    """Tiles of all events of a kind, of some replicas."""
    return [
        tile
        for event in events
        if isinstance(event, kind) and (replicas is None or event.replica in replicas)  # type: ignore[attr-defined]
        for tile in event.call.tiles  # type: ignore[attr-defined]
    ]


def lives_on(engine: RayEngine, replica: int, node: Any) -> bool:
    member = engine.members.get(replica)
    return member is not None and bool(member.node == node.node_id)


def test_a_node_that_dies_with_no_spare_costs_its_own_tiles_and_no_pixel(
    cluster: Cluster, tmp_path: Path, large: str
) -> None:
    task = large_task(tmp_path)
    lost: set[int] = set()
    with machines(cluster, 3) as (doomed, *_), RayEngine(slow(0.15), least=3, most=3) as engine:

        def kill(event: JobEvent) -> None:
            if isinstance(event, TilesDone) and lives_on(engine, event.replica, doomed) and not lost:
                lost.add(event.replica)
                cluster.remove_node(doomed, allow_graceful=False)

        events, _ = run(engine, task, kill)
    assert task.canvas.sha256() == large
    (gone,) = [event for event in events if isinstance(event, ReplicaLost)]
    assert gone.for_good
    assert gone.fault == "node"
    done = tiles_of(events, TilesDone)
    again = {tile for tile in done if done.count(tile) > 1}
    assert again <= set(tiles_of(events, TilesStarted, lost))


def test_a_machine_that_joins_a_job_takes_work(cluster: Cluster, tmp_path: Path, large: str) -> None:
    task = large_task(tmp_path)
    joined: list[tuple[Any, float]] = []
    with machines(cluster, 1), RayEngine(slow(1.0), least=1, most=2) as engine:

        def join(event: JobEvent) -> None:
            if isinstance(event, TilesDone) and not joined:
                joined.append((cluster.add_node(num_cpus=1), time.monotonic()))

        events, _ = run(engine, task, join)
        placed = [event for event in events if isinstance(event, ReplicaPlaced)]
        newcomer = max(event.replica for event in placed)
        assert engine.members[newcomer].node == joined[0][0].node_id
    cluster.remove_node(joined[0][0], allow_graceful=False)
    assert tiles_of(events, TilesDone, {newcomer})
    assert task.canvas.sha256() == large


def test_a_machine_that_is_drained_costs_no_tile_twice(cluster: Cluster, tmp_path: Path, large: str) -> None:
    task = large_task(tmp_path)
    drained: list[int] = []
    with machines(cluster, 2) as (leaver, _), RayEngine(slow(0.3), least=2, most=2) as engine:

        def drain(event: JobEvent) -> None:
            if isinstance(event, TilesDone) and lives_on(engine, event.replica, leaver) and not drained:
                drained.append(event.replica)
                accepted, why = ray._raylet.GcsClient(address=cluster.address).drain_node(
                    leaver.node_id,
                    autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
                    "spot",
                    time.time_ns() // 10**6 + NOTICE_S * 1000,
                )
                assert accepted, why

        events, _ = run(engine, task, drain)
        assert all(member.node != leaver.node_id for member in engine.members.values())
    assert task.canvas.sha256() == large
    assert [event.replica for event in events if isinstance(event, ReplicaLeaving)] == drained
    (lost,) = [event for event in events if isinstance(event, ReplicaLost)]
    assert (lost.replica, lost.for_good, lost.fault) == (drained[0], True, "node")
    finished = tiles_of(events, TilesDone)
    assert sorted(finished) == list(range(task.grid.n_tiles))


def test_a_model_that_is_missing_on_one_machine_costs_only_that(
    cluster: Cluster, tmp_path: Path, large: str
) -> None:
    task = large_task(tmp_path / "task")
    with machines(cluster, 2) as (bare, _):
        (tmp_path / "nodes").write_text(bare.node_id)
        with RayEngine(picky(tmp_path / "nodes"), least=1, most=2) as engine:
            events, _ = run(engine, task)
            assert engine.hopeless is None
    assert task.canvas.sha256() == large
    reasons = [event.reason for event in events if isinstance(event, ReplicaLost) and event.for_good]
    assert len(reasons) == 1
    assert bare.node_id[:6] in reasons[0]
    assert "no such weights" in reasons[0]


def test_the_guide_outlives_the_machine_that_made_it(cluster: Cluster, tmp_path: Path) -> None:
    task = large_task(tmp_path)
    spec = replace(slow(0), text=long_text)
    with machines(cluster, 2), RayEngine(spec, least=2, most=2) as engine:
        guide, _ = engine.prepare(task)
        home = engine.members[min(engine.members)].node
        (dead,) = [node for node in cluster.worker_nodes if node.node_id == home]
        cluster.remove_node(dead, allow_graceful=False)
        drive(engine, task, guide, lambda event: None)
