"""Promises of the Ray engine on several machines, played by one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import ray
from fakes import make_task, photograph, shade
from ray.cluster_utils import Cluster

from dino_ray.engine.drive import drive
from dino_ray.engine.local import LocalEngine
from dino_ray.engine.protocol import ImageTask
from dino_ray.engine.ray import RayEngine
from dino_ray.plan.geometry import Rect
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.source import SourceInfo

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


@contextmanager
def nodes(head_cpus: int, others: int) -> Iterator[tuple[Cluster, list[Any]]]:
    """Machines, played by one, and this process on the first of them; the others carry one replica each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus})
        added = [cluster.add_node(num_cpus=1) for _ in range(others)]
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster, added
    finally:
        ray.shutdown()
        cluster.shutdown()


def large_task(folder: Path) -> ImageTask:
    """Tiles too large to travel with their answer, so that they lie, and are lost, on the node that made them."""
    folder.mkdir()
    return make_task(folder, photograph(300, 400), tile=256)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What every engine has to make of ``large_task``."""
    task = large_task(tmp_path_factory.mktemp("here") / "task")
    with LocalEngine(shade()) as local:
        drive(local, task, local.prepare(task)[0], lambda event: None)
    return task.canvas.sha256()


@dataclass(frozen=True)
class TellingCanvas(Canvas):
    """Leaves the name of the node that wrote a cell beside it."""

    def write(self, rect: Rect, pixels: Any) -> None:
        Path(f"{self.folder}.by-{ray.get_runtime_context().get_node_id()}").touch()
        super().write(rect, pixels)


@dataclass(frozen=True)
class TellingSource:
    """Leaves the name of the node that read a window in a folder."""

    source: Any
    folder: str

    @property
    def info(self) -> SourceInfo:
        return self.source.info

    def read(self, rect: Rect) -> Any:
        Path(f"{self.folder}.by-{ray.get_runtime_context().get_node_id()}").touch()
        return self.source.read(rect)


@pytest.mark.ray
@pytest.mark.slow
def test_stores_that_every_node_sees_are_read_and_written_where_the_work_is(
    tmp_path: Path, large: str
) -> None:
    """A head without CPUs, so that every replica lives on a node that is not the driver's."""

    def run(engine: RayEngine, name: str, shared: bool) -> tuple[set[str], set[str]]:
        task = large_task(tmp_path / name)
        canvas = TellingCanvas(**{f.name: getattr(task.canvas, f.name) for f in fields(task.canvas)})
        source = TellingSource(task.source, str(tmp_path / name / "source"))
        task = replace(task, canvas=canvas, source=source, shared=shared)
        drive(engine, task, engine.prepare(task)[0], lambda event: None)
        assert task.canvas.sha256() == large
        folder = tmp_path / name
        read, wrote = (
            {f.name.split(".by-")[1] for f in folder.glob(f"{of}*.by-*")} for of in ("source", "canvas")
        )
        return read, wrote

    with nodes(head_cpus=0, others=2), RayEngine(shade(), least=2, most=2) as engine:
        here = {engine._here}
        assert run(engine, "local", shared=False) == (here, here)
        there = {member.node for member in engine.members.values()}
        assert here.isdisjoint(there)
        assert len(there) == 2
        read, wrote = run(engine, "shared", shared=True)
        assert read
        assert read <= there  # one replica may be through before the other has begun
        assert wrote
        assert wrote <= there  # merges go where most of their tiles are, and there are few of them
