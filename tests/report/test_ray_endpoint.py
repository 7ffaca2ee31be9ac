"""Promises of what Prometheus reads from Ray about a job."""

from __future__ import annotations

import itertools
import re
import socket
import time
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest

from dino_ray import upscale
from dino_ray.engine.protocol import (
    ImageStarted,
    JobEvent,
    ReplicaLost,
    TileCall,
    TilePoisoned,
    TilesLost,
    Timings,
)
from dino_ray.fidelity.record import TileFidelity
from dino_ray.plan.geometry import make_grid

pytestmark = pytest.mark.ray

SAMPLE = re.compile(r"^ray_(dino_ray_\w+)\{(.*)\} (\S+)$", re.M)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Where a Ray, which this process has joined, serves its metrics."""
    import ray
    from ray.cluster_utils import Cluster

    port = free_port()
    head = {"num_cpus": 3, "metrics_export_port": port, "_system_config": {"metrics_report_interval_ms": 500}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield f"http://127.0.0.1:{port}/metrics"
    finally:
        ray.shutdown()
        cluster.shutdown()


def scraped(endpoint: str) -> dict[tuple[str, str], float]:
    """Value of each of our metrics, by its name and its stage or action if it has one."""
    with urllib.request.urlopen(endpoint, timeout=5) as answer:
        found = SAMPLE.findall(answer.read().decode())
    values = {}
    for name, labels, value in found:
        stage = re.search(r'(?:stage|action)="(\w+)"', labels)
        assert re.search(r'JobId="\w+"', labels)
        values[name, stage[1] if stage else ""] = float(value)
    return values


def scraped_once(endpoint: str, metric: tuple[str, str], value: float) -> dict[tuple[str, str], float]:
    """What is there once a metric has a value; Ray passes values on from time to time."""
    give_up = time.monotonic() + 30
    while True:
        try:
            values = scraped(endpoint)
        except OSError:  # the agent has not begun
            values = {}
        if values.get(metric) == value or time.monotonic() > give_up:
            return values
        time.sleep(0.5)


def test_a_jobs_metrics_are_served_with_the_numbers_of_its_report(endpoint: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    _, report = upscale(pixels, model="none", address="auto", workers=2, tile=64)
    values = scraped_once(endpoint, ("dino_ray_cells_done_total", ""), report.cells)
    assert values["dino_ray_tiles_done_total", ""] == report.tiles
    assert values["dino_ray_cells_done_total", ""] == report.cells
    assert values["dino_ray_stage_seconds_count", "base"] == report.stages["base"].count
    busy = values["dino_ray_busy_seconds_total", "base"]
    assert busy == pytest.approx(report.stages["base"].seconds, abs=1e-3)  # the report is rounded
    assert values["dino_ray_tiles_left", ""] == 0
    assert values["dino_ray_replicas_ready", ""] == 0  # the job is over
    assert ("dino_ray_tiles_poisoned_total", "") not in values


def test_faults_are_counted_and_gauges_follow(endpoint: str) -> None:
    from dino_ray.engine.protocol import CellDone, CellLost, ReplicaReady, TilesDone, TilesStarted
    from dino_ray.engine.ray.metrics import Metrics

    grid = make_grid(256, 128, tile=64, overlap=16, multiple=16)
    before = scraped(endpoint)
    call = TileCall(0, (0, 1))
    judged = (TileFidelity(0, "skipped"), TileFidelity(1, "blended"))
    events: list[JobEvent] = [
        ImageStarted("photo", grid, 2, Timings()),
        ReplicaReady(0),
        ReplicaReady(1),
        TilesStarted(call, 0),
        TilesStarted(call, 1, copy=True),
        TilesDone(call, 0, (None, None), Timings(fidelity=judged)),
        TilesLost(call, 1, "too slow", "cancelled"),
        TilesLost(TileCall(1, (2,)), 1, "the machine went", "node"),
        ReplicaLost(1, "the machine went", for_good=True, fault="node"),
        TilePoisoned(2, "too bright"),
        CellLost(3, "its tiles are gone", tiles_lost=True),
        CellDone(0),
    ]
    metrics = Metrics(clock=itertools.count().__next__)  # so that each event is told at once
    for event in events:
        metrics(event)
    values = scraped_once(endpoint, ("dino_ray_tiles_left", ""), grid.n_tiles - 2)
    rise = {
        name: value - before.get((name, stage), 0.0) for (name, stage), value in values.items() if not stage
    }
    assert values["dino_ray_replicas_ready", ""] == 1
    assert values["dino_ray_tiles_left", ""] == grid.n_tiles - 2
    assert rise["dino_ray_tiles_done_total"] == 2
    assert rise["dino_ray_retries_total"] == 2
    assert rise["dino_ray_copies_total"] == 1
    assert rise["dino_ray_replicas_lost_total"] == 1
    assert rise["dino_ray_tiles_poisoned_total"] == 1
    assert {action: values["dino_ray_tiles_judged_total", action] for action in ("skipped", "blended")} == {
        "skipped": 1,
        "blended": 1,
    }
    metrics.close()


def test_after_a_resume_the_tiles_left_shrink_with_the_cells(endpoint: str) -> None:
    from dino_ray.engine.protocol import CellDone
    from dino_ray.engine.ray.metrics import Metrics

    grid = make_grid(256, 128, tile=64, overlap=16, multiple=16)
    half = grid.n_cells // 2
    metrics = Metrics(clock=itertools.count().__next__)  # so that each event is told at once
    metrics(ImageStarted("photo", grid, 1, Timings(), cells_done=half))
    left = round(grid.n_tiles * (grid.n_cells - half) / grid.n_cells)
    assert scraped_once(endpoint, ("dino_ray_tiles_left", ""), left)["dino_ray_tiles_left", ""] == left
    for cell in range(half, grid.n_cells):
        metrics(CellDone(cell))
    assert scraped_once(endpoint, ("dino_ray_tiles_left", ""), 0)["dino_ray_tiles_left", ""] == 0
    metrics.close()
