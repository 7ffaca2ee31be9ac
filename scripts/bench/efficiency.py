"""How much of its replicas' time a pool gets, ours beside ``ray.util.ActorPool`` and Ray Data, on this machine.

The model is a stage that lasts 300 ms, asleep. All else is real: tiles of real size are read, enlarged, sent and merged
into a canvas on the disk, and every way must leave the same bytes there. Each way has a process, a Ray of its own,
warm replicas, and the same code in them. Where a way has no merge, its driver blends, in threads, by our functions.

*efficiency*: the least time in which any scheduler could have the replicas do it, over the time from the first dispatch
to the last committed cell. *calls/s*: tiles over that time. *CPU ms*: of processor time per tile, of the driver and of
all processes together; it changes least when something else runs on the machine, which *busy* tells of.

    python scripts/bench/efficiency.py --replicas 1,2,8,32 --check
"""

from __future__ import annotations

import heapq
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import ray
from pools import LIVES_FOR_ONE_JOB, SCALE, SLOWER, WAYS, Stage
from rich.console import Console
from rich.table import Table
from skimage import data

from dino_ray.engine.protocol import ImageTask, ReplicaSpec
from dino_ray.engine.replica import peak_rss_mb
from dino_ray.plan.geometry import Grid, Scaling, make_grid
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.source import ingest_array

STAGE_S = 0.3
MULTIPLE = 16
OVERLAP_SHARE = 8
"""Neighbouring tiles share a tile's side over this."""

LARGE_TILE, SMALL_TILE, EMPTY_TILE = 1024, 256, 80
"""The last as small as cells of 32 px allow; of smaller ones there would be nine to a tile, and a file for each."""

MOST_LARGE = 8
"""More replicas than these get small tiles: a core can merge only so many pixels a second."""

UNEVEN_REPLICAS = 8
"""Of which one is slow."""
EMPTY_REPLICAS, EMPTY_TILES = 2, 2000
"""For dispatch alone: stages that take no time, and few replicas to share the cores with."""

LEAST_EFFICIENCY = {8: 0.96, 32: 0.93}
"""By number of replicas."""
MOST_SLOW_COST = 0.10
"""Time over the ideal of a pool with one slow replica, less one."""
LEAST_CALLS_S = 400.0

WARM_ROUNDS = 2
"""Tiles per replica before the clock starts."""
SPARE_CPUS = 2
"""Logical ones, beyond the replicas': tasks of Ray Data need some. Sleeping replicas need none of the real ones."""
STORE_BYTES = 2 * 10**9

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_worker_niceness": "0",  # Ray's own 15 would let all else on this machine go first
    "RAY_free_objects_batch_size": "1",  # as our engine starts its own Ray
}


@dataclass(frozen=True)
class Load:
    """What is to be done, and by how many."""

    replicas: int
    tiles: int
    tile: int
    stage_s: float
    slow: bool = False
    """Whether one of the replicas takes ``SLOWER`` times as long."""

    @property
    def ideal_s(self) -> float:
        """The least time in which the replicas could do it: no pauses, each tile to where it ends first."""
        times = [self.stage_s * (SLOWER if self.slow and not i else 1) for i in range(self.replicas)]
        ends = [(time, time) for time in times]
        last = 0.0
        for _ in range(self.tiles):
            last, time = ends[0]
            heapq.heapreplace(ends, (last + time, time))
        return last

    def grid(self) -> Grid:
        """As square as the number of tiles allows."""
        rows = next(n for n in range(math.isqrt(self.tiles), 0, -1) if self.tiles % n == 0)
        overlap = max(self.tile // OVERLAP_SHARE, MULTIPLE)
        width, height = (self.tile + (n - 1) * (self.tile - overlap) for n in (self.tiles // rows, rows))
        grid = make_grid(width, height, tile=self.tile, overlap=overlap, multiple=MULTIPLE)
        assert grid.n_tiles == self.tiles
        return grid


@dataclass(frozen=True)
class Result:
    """One load, done in one way."""

    way: str
    load: Load
    wall_s: float
    driver_mb: float
    driver_cpu_s: float
    all_cpu_s: float
    busy: float
    """Share of the machine's processor time that was used meanwhile, by whomever."""
    canvas_sha256: str

    @property
    def efficiency(self) -> float:
        return self.load.ideal_s / self.wall_s

    @property
    def calls_s(self) -> float:
        return self.load.tiles / self.wall_s


def loads(replicas: Sequence[int], rounds: int) -> Iterator[Load]:
    """What is measured: pools of equal replicas, one with a slow replica, and dispatch alone."""
    for count in replicas:
        tile = LARGE_TILE if count <= MOST_LARGE else SMALL_TILE
        yield Load(count, count * rounds, tile, STAGE_S)
    yield Load(UNEVEN_REPLICAS, UNEVEN_REPLICAS * rounds, LARGE_TILE, STAGE_S, slow=True)
    yield Load(EMPTY_REPLICAS, EMPTY_TILES, EMPTY_TILE, 0.0)


# ---- one measurement, in a process of its own


def make_task(folder: Path, load: Load) -> ImageTask:
    """A photograph side by side with itself, and the canvas for it enlarged."""
    grid = load.grid()
    height, width = -(-grid.height // SCALE), -(-grid.width // SCALE)
    photo = data.astronaut()
    times = (-(-height // photo.shape[0]), -(-width // photo.shape[1]), 1)
    source = ingest_array(
        np.ascontiguousarray(np.tile(photo, times)[:height, :width]), folder / "source.zarr"
    )
    cell = (grid.ys.cell, grid.xs.cell)
    canvas = Canvas.create(folder / "canvas.zarr", grid.width, grid.height, photo.shape[2], "uint8", cell)
    return ImageTask(source, Scaling.from_factor(width, height, SCALE), grid, canvas)


def measure(way: str, load: Load) -> Result:
    """Do a small job to get everything going, and then the load."""
    logging.disable(logging.WARNING)
    ray.init(
        address="local",
        num_cpus=load.replicas + SPARE_CPUS,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            slow = folder / "slow" if load.slow else None
            spec = ReplicaSpec(upsampler=partial(Stage, load.stage_s, slow), torch=False)
            small = make_task(folder / "small", replace(load, tiles=load.replicas * WARM_ROUNDS))
            task = make_task(folder / "whole", load)
            with WAYS[way](spec, load.replicas) as run:
                if way not in LIVES_FOR_ONE_JOB:
                    run(small)
                machine, ours, driver = psutil.cpu_times(), _cpu_s(), sum(os.times()[:2])
                wall_s = run(task)
                machine_after, ours_after, driver_after = psutil.cpu_times(), _cpu_s(), sum(os.times()[:2])
            sha256 = task.canvas.sha256()
    finally:
        ray.shutdown()
    idle = (machine_after.idle - machine.idle) / (sum(machine_after) - sum(machine))
    return Result(
        way, load, wall_s, peak_rss_mb(), driver_after - driver, ours_after - ours, 1 - idle, sha256
    )


def _cpu_s() -> float:
    """Processor time of this process and all that it has started."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:2])
    return total


def measure_apart(way: str, load: Load) -> Result:
    """`measure` in a process of its own: what one way leaves behind would be the next one's memory."""
    request = json.dumps({"way": way, "load": asdict(load)})
    environment = {**os.environ, **ENVIRONMENT}
    command = [sys.executable, __file__, "--measure", request]
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(ran.stdout.splitlines()[-1])
    return Result(**{**answer, "load": Load(**answer["load"])})


# ---- what came of it


def misses(results: Sequence[Result]) -> list[str]:
    """The targets that were not reached, each as a line."""
    missed = []
    for load, same in groupby(results, key=lambda result: result.load):
        if len({result.canvas_sha256 for result in same}) > 1:
            missed.append(f"{_name(load)}: the ways left different bytes")
    for result in results:
        load, wanted = result.load, LEAST_EFFICIENCY.get(result.load.replicas, 0.0)
        if result.way != "ours":
            continue
        if not load.stage_s and result.calls_s < LEAST_CALLS_S:
            missed.append(f"{_name(load)}: {result.calls_s:.0f} calls/s, at least {LEAST_CALLS_S:.0f}")
        elif load.slow and result.wall_s / load.ideal_s - 1 >= MOST_SLOW_COST:
            missed.append(
                f"{_name(load)}: {result.wall_s / load.ideal_s - 1:.1%} over the ideal, at most {MOST_SLOW_COST:.0%}"
            )
        elif load.stage_s and not load.slow and result.efficiency < wanted:
            missed.append(f"{_name(load)}: efficiency {result.efficiency:.3f}, at least {wanted:.2f}")
    return missed


def _name(load: Load) -> str:
    if not load.stage_s:
        return f"{load.replicas}, empty stages"
    return f"{load.replicas}, one {SLOWER} × slower" if load.slow else str(load.replicas)


def show(results: Sequence[Result], console: Console) -> None:
    """The table."""
    table = Table(title=f"A stage of {1000 * STAGE_S:.0f} ms, {os.cpu_count()} cores")
    columns = ("replicas", "tiles", "way", "ideal s", "wall s", "efficiency", "calls/s",
               "driver MB", "driver CPU ms", "all CPU ms", "busy")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in ("replicas", "way") else "right")
    for load, same in groupby(results, key=lambda result: result.load):
        for r in same:
            efficiency = f"{r.efficiency:.3f}" if load.stage_s else ""
            table.add_row(_name(load), f"{load.tiles} × {load.tile}²", r.way, f"{load.ideal_s:.1f}", f"{r.wall_s:.2f}",
                          efficiency, f"{r.calls_s:.0f}", f"{r.driver_mb:.0f}",
                          *(f"{1000 * s / load.tiles:.1f}" for s in (r.driver_cpu_s, r.all_cpu_s)),
                          f"{r.busy:.0%}")  # fmt: skip
        table.add_section()
    console.print(table)


def _numbers(ctx: click.Context, option: click.Parameter, text: str) -> list[int]:
    if not all(part.isdigit() and int(part) for part in text.split(",")):
        raise click.BadParameter("give whole numbers from 1 on, with commas between them")
    return [int(part) for part in text.split(",")]


@click.command(help=__doc__)
@click.option("--replicas", default="1,2,8,32", show_default=True, callback=_numbers, help="Sizes of pools.")
@click.option("--rounds", default=30, show_default=True, help="Tiles per replica.")
@click.option("--runs", default=1, show_default=True, help="The fastest of so many counts, for each way.")
@click.option("--ways", default=",".join(WAYS), show_default=True)
@click.option("--check", is_flag=True, help="Exit with 1 if a target is missed.")
@click.option("--measure", "request", hidden=True, help="What one process is to measure.")
def main(replicas: list[int], rounds: int, runs: int, ways: str, check: bool, request: str | None) -> None:
    if request is not None:
        asked: dict[str, Any] = json.loads(request)
        print(json.dumps(asdict(measure(asked["way"], Load(**asked["load"])))))
        return
    results = []
    for load in loads(replicas, rounds):
        for way in ways.split(","):
            tries = [measure_apart(way, load) for _ in range(runs)]
            results.append(min(tries, key=lambda result: result.wall_s))
            print(f"{_name(load)}: {way} took {results[-1].wall_s:.2f} s", file=sys.stderr)
    show(results, Console(width=150))
    missed = misses(results)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    if check and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
