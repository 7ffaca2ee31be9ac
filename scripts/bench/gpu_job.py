"""A job of many tiles through the engine of one process, and how much of its time the device works for the model."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from gpu_model import DENOISE, Bench, Clock

from dino_ray.engine.drive import drive
from dino_ray.engine.local import LocalEngine
from dino_ray.engine.protocol import ImageTask, ReplicaReady, ReplicaSpec
from dino_ray.plan.geometry import Scaling, make_grid
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.source import ingest_array
from dino_ray.upsample import load_net

JOB_SIDE = 8
"""Tiles per side of the picture."""
SCALE = 2

Figures = dict[str, Any]


class Watched:
    """A denoiser whose device's work is timed."""

    def __init__(self, bench: Bench, clock: Clock) -> None:
        self._model, self._clock = bench.denoiser, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, pixels: Any) -> Any:
        with self._clock.span():
            return self._model.encode(pixels)

    def predict(self, *args: Any) -> Any:
        with self._clock.span():
            return self._model.predict(*args)

    def decode(self, latents: Any) -> Any:
        with self._clock.span():
            return self._model.decode(latents)


def job(bench: Bench, clock: Clock) -> Figures:
    """Tiles of a picture through the engine of one process, with all that comes before and after the model."""
    tile, overlap = bench.geometry.tile, bench.geometry.overlap
    side = tile + (JOB_SIDE - 1) * (tile - overlap)
    spec = ReplicaSpec(
        upsampler=lambda: load_net(bench.place.device.type),
        denoiser=lambda: Watched(bench, clock),  # type: ignore[return-value]
        text=lambda prompts, picture: {
            prompt: {name: value.cpu().numpy() for name, value in bench.text.items()} for prompt in prompts
        },
    )
    with tempfile.TemporaryDirectory() as folder, LocalEngine(spec) as engine:
        pixels = np.random.default_rng(3).integers(0, 256, (side // SCALE, side // SCALE, 3), np.uint8)
        source = ingest_array(pixels, Path(folder) / "source.zarr")
        scaling = Scaling.from_factor(source.info.width, source.info.height, SCALE)
        grid = make_grid(
            side, side, tile=tile, overlap=overlap, multiple=bench.denoiser.description.pixel_multiple
        )
        canvas = Canvas.create(
            Path(folder) / "canvas.zarr", side, side, 3, "uint8", (grid.ys.cell, grid.xs.cell)
        )
        task = ImageTask(
            *(source, scaling, grid, canvas),
            denoise=DENOISE,
            steps=bench.steps,
            consistency=1.0,
            verify=False,
        )
        guide, _ = engine.prepare(task)
        ready: list[float] = []

        def hear(event: object) -> None:
            if isinstance(event, ReplicaReady):
                ready.append(time.perf_counter())

        clock.busy()
        done = drive(engine, task, guide, hear)
        clock.wait()
        wall = time.perf_counter() - ready[0]
    busy = clock.busy()
    return {
        "tiles": grid.n_tiles,
        "wall_s": wall,
        "busy_s": busy,
        "idle": 1 - busy / wall,
        "poisoned": len(done.poisoned),
    }
