"""Photographs as a replica sees them: reduced, laid out in tiles, each to be refined by itself, beside its truth."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sources import photograph, reduced

from dino_ray.config import UpscaleConfig
from dino_ray.diffusion.denoiser import Denoiser
from dino_ray.engine.bands import UINT16_MAX
from dino_ray.engine.protocol import Guide, ImageTask, TileCall
from dino_ray.engine.replica import Replica
from dino_ray.fidelity.record import TileFidelity
from dino_ray.job import image_task
from dino_ray.loaders import replica_spec
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.source import ingest_array
from dino_ray.request import check_array
from dino_ray.resolve import resolve

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Bench:
    """A photograph, and a replica that refines tiles of it."""

    photo: str
    truth: Pixels
    """(H, W, 3) in [0, 1], canvas_px."""
    task: ImageTask
    guide: Guide
    replica: Replica

    def tiles(self) -> list[int]:
        """Those that lie within the photograph, whole."""
        grid = self.task.grid
        return [
            tile
            for tile in range(grid.n_tiles)
            if grid.tile_rect(tile).x1 <= grid.width and grid.tile_rect(tile).y1 <= grid.height
        ]

    def truth_of(self, tile: int) -> Pixels:
        return self.truth[self.task.grid.tile_rect(tile).slices]

    def base(self, tile: int) -> Pixels:
        """The tile as it is without the model."""
        (pixels,), _ = self.replica.refine(self.task, self.guide, TileCall(0, (tile,), refine=False))
        return pixels / np.float32(UINT16_MAX)

    def refined(self, tile: int, **task: Any) -> tuple[Pixels, TileFidelity]:
        """The tile as it goes into the result; with fields of the task changed."""
        changed = replace(self.task, **task)
        (pixels,), timings = self.replica.refine(changed, self.guide, TileCall(0, (tile,)))
        return pixels / np.float32(UINT16_MAX), timings.fidelity[0]


@contextmanager
def benches(
    photos: tuple[str, ...], model: Callable[[Denoiser], Any] = lambda denoiser: denoiser, **options: Any
) -> Iterator[list[Bench]]:
    """The photographs, reduced ×2 by PIL's bicubic filter, each ready to be refined.

    Parameters
    ----------
    model
        Wraps the denoiser, for instance into one that misbehaves. It is called once for each photograph.
    options
        Of ``UpscaleConfig``.
    """
    config = UpscaleConfig.parse({"scale": 2, "address": "none", **options})
    settings = resolve(config)
    spec = replica_spec(config, settings)
    denoiser = spec.denoiser
    assert denoiser is not None
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for photo in photos:
            truth = photograph(photo, 2)
            small = reduced(truth, 2)
            image = check_array(small, settings, photo)
            place = Path(folder) / Path(photo).name
            source = ingest_array(small, place / "source.zarr")
            grid = image.grid
            canvas = Canvas.create(
                place / "canvas.zarr", grid.width, grid.height, 3, "uint8", (grid.ys.cell, grid.xs.cell)
            )
            task = image_task(image, source, canvas, settings)
            replica = Replica(replace(spec, denoiser=lambda: model(denoiser())))
            guide, _ = replica.prepare(task)
            replica.load()
            made.append(Bench(photo, truth.astype(np.float32) / 255, task, guide, replica))
        yield made


def psnr(pixels: Pixels, truth: Pixels) -> float:
    """dB over RGB, of pixels in [0, 1]."""
    return float(-10 * np.log10(max(1e-10, float(np.mean(np.square(pixels - truth, dtype=np.float64))))))
