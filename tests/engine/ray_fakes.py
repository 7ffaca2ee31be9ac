"""Models and machines for tests of the Ray engine. Importable by Ray's workers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from fakes import Shade
from ray.cluster_utils import Cluster
from torch import Tensor

from dino_ray.diffusion.denoiser import Conditioning
from dino_ray.engine.drive import drive
from dino_ray.engine.protocol import DriveDone, Engine, ImageTask, JobEvent, Listener, ReplicaSpec
from dino_ray.upsample import Lanczos

QUICK_TO_SEE_DEATHS = {
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 500,
    "health_check_initial_delay_ms": 0,
}


@dataclass
class Slow(Shade):
    """Takes so many seconds for each step, and says in ``folder`` when a step begins."""

    seconds: float
    folder: Path | None = None

    def predict(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        if self.folder is not None:
            (self.folder / f"step-{time.time_ns()}-{os.getpid()}").touch()
        time.sleep(self.seconds)
        return super().predict(x, sigma, conditioning)


def slow(seconds: float, folder: Path | None = None) -> ReplicaSpec:
    return ReplicaSpec(upsampler=Lanczos, denoiser=partial(Slow, seconds, folder))


def load_except_on(node_file: Path) -> Shade:
    """A model that is missing on the machine that a file names."""
    if ray.get_runtime_context().get_node_id() in node_file.read_text():
        raise FileNotFoundError("no such weights")
    return Shade()


def long_text(prompts: Sequence[str], picture: object) -> dict[str, dict[str, np.ndarray]]:
    """Embeddings too large to travel with an answer."""
    return {prompt: {"embeddings": np.ones(10**6, np.float32)} for prompt in prompts}


def picky(node_file: Path) -> ReplicaSpec:
    return ReplicaSpec(upsampler=Lanczos, denoiser=partial(load_except_on, node_file))


@contextmanager
def cluster_of(head_cpus: int, others: int = 0) -> Iterator[tuple[Cluster, list[Any]]]:
    """Machines, played by one, and this process on the first of them; the others carry one replica each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        head = {"num_cpus": head_cpus, "_system_config": QUICK_TO_SEE_DEATHS}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        added = [cluster.add_node(num_cpus=1) for _ in range(others)]
        try:
            ray.init(address=cluster.address, log_to_driver=False)
            yield cluster, added
        finally:
            ray.shutdown()
            cluster.shutdown()


@contextmanager
def machines(cluster: Cluster, count: int) -> Iterator[list[Any]]:
    """More machines, of one CPU each, for a while."""
    added = [cluster.add_node(num_cpus=1) for _ in range(count)]
    try:
        yield added
    finally:
        for node in added:
            if node in cluster.worker_nodes:
                cluster.remove_node(node, allow_graceful=False)


def run(
    engine: Engine, task: ImageTask, react: Listener = lambda event: None
) -> tuple[list[JobEvent], DriveDone]:
    """Drive a task; what it told, and its sum."""
    events: list[JobEvent] = []

    def listen(event: JobEvent) -> None:
        events.append(event)
        react(event)

    guide, _ = engine.prepare(task)
    return events, drive(engine, task, guide, listen)
