"""Promises of the Ray engine on several machines, played by one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray
from fakes import make_task, photograph, shade
from ray.cluster_utils import Cluster

from dino_ray.engine.drive import drive
from dino_ray.engine.local import LocalEngine
from dino_ray.engine.protocol import CellLost, Engine, ImageTask, JobEvent, ReplicaLost, TileDone
from dino_ray.engine.ray import RayEngine


def digest_of(engine: Engine, folder: Path) -> str:
    folder.mkdir()
    task = make_task(folder)
    guide, _ = engine.prepare(task)
    drive(engine, task, guide, lambda event: None)
    return task.canvas.sha256()


LISTENERS = """
import psutil
from dino_ray.engine.ray.cluster import connect
connect("local")
family = [psutil.Process(), *psutil.Process().children(recursive=True)]
sockets = [c for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
assert sockets
print([f"{c.laddr.ip}:{c.laddr.port}" for c in sockets if c.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")])
"""


@pytest.mark.ray
def test_a_ray_that_is_started_here_listens_on_loopback_only() -> None:
    done = subprocess.run([sys.executable, "-c", LISTENERS], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.ray
@pytest.mark.slow
def test_replicas_on_other_machines_read_the_source_through_the_store(tmp_path: Path) -> None:
    """A head without CPUs, so that every replica lives on a node that is not the driver's."""
    with LocalEngine(shade()) as engine:
        expected = digest_of(engine, tmp_path / "here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        cluster.add_node(num_cpus=1)
        cluster.add_node(num_cpus=1)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        with RayEngine(shade(), workers=2) as engine:
            assert digest_of(engine, tmp_path / "there") == expected
            assert engine._here not in engine._nodes
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_dies_with_finished_tiles_costs_no_pixel(tmp_path: Path) -> None:
    """Tiles too large to travel with their answer, so that they lie, and are lost, on the node that made them."""
    photo = photograph(300, 400)

    def task_in(name: str) -> ImageTask:
        (tmp_path / name).mkdir()
        return make_task(tmp_path / name, photo, tile=256)

    with LocalEngine(shade()) as local:
        expected = task_in("here")
        drive(local, expected, local.prepare(expected)[0], lambda event: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        doomed = cluster.add_node(num_cpus=1)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        with RayEngine(shade(), workers=2) as engine:
            task = task_in("there")
            guide, _ = engine.prepare(task)
            events: list[JobEvent] = []

            def listen(event: JobEvent) -> None:
                events.append(event)
                far = isinstance(event, TileDone) and engine._nodes[event.replica] != engine._here
                if (
                    far
                    and not any(isinstance(e, ReplicaLost) for e in events)
                    and doomed in cluster.worker_nodes
                ):
                    cluster.remove_node(doomed, allow_graceful=False)

            drive(engine, task, guide, listen)
            assert any(isinstance(e, ReplicaLost | CellLost) for e in events)
            assert task.canvas.sha256() == expected.canvas.sha256()
    finally:
        ray.shutdown()
        cluster.shutdown()
