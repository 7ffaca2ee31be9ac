"""Cheap denoisers and a ready-made task, for tests of the engines. Importable by Ray's workers."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dino_ray.diffusion.denoiser import Conditioning, Description
from dino_ray.engine.protocol import ImageTask, ReplicaSpec
from dino_ray.plan.geometry import Scaling, make_grid
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.source import ingest_array
from dino_ray.upsample import Lanczos

TILE, OVERLAP, MULTIPLE = 64, 16, 16


class Shade:
    """Latents are pixels; the clean image it sees is its input, darkened. Keyed noise shows in the result."""

    description = Description(
        name="shade",
        family="test",
        latent_scale=1,
        latent_channels=3,
        pixel_multiple=MULTIPLE,
        tile=TILE,
        overlap=OVERLAP,
        steps=2,
        guidance="none",
    )
    device = torch.device("cpu")

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def sketch(self, latents: Tensor) -> Tensor:
        return latents

    def sigmas(self, denoise: float, steps: int, size: tuple[int, int]) -> Tensor:
        return torch.linspace(denoise, 0, steps + 1)

    def noised(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        return latents + 0.05 * sigma * noise

    def sampling(self) -> AbstractContextManager[None]:
        return nullcontext()

    def predict(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        return 0.9 * x

    def save_memory(self) -> str | None:
        return None


@dataclass
class Sociable(Shade):
    """Goes on once as many processes as ``company`` have a tile in hand; they leave files in ``folder``."""

    folder: Path
    company: int

    def encode(self, pixels: Tensor) -> Tensor:
        (self.folder / f"{os.getpid()}").touch()
        deadline = time.monotonic() + 120
        while len(list(self.folder.iterdir())) < self.company and time.monotonic() < deadline:
            time.sleep(0.05)
        return super().encode(pixels)


@dataclass
class Accident(Shade):
    """Ends its process, or raises, on tiles brighter than ``above``; ``times`` in all, counted in ``folder``."""

    folder: Path
    above: float
    times: int
    kill: bool

    def predict(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        if float(x.max()) > self.above and self._once_more():
            if self.kill:
                os._exit(1)
            raise RuntimeError("this tile is too bright")
        return super().predict(x, sigma, conditioning)

    def _once_more(self) -> bool:
        for n in range(self.times):
            try:
                (self.folder / f"accident-{n}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False


@dataclass
class Hungry(Shade):
    """Runs out of memory in one ``stage`` where it gets more than ``fits`` tiles; each of its ``measures`` adds one.

    What it makes of a tile shows how many it was given with.
    """

    fits: int
    measures: list[str] = field(default_factory=list)
    stage: str = "predict"
    given: list[int] = field(default_factory=list)
    """Tiles that ``stage`` was asked for at once, each time."""
    above: float = -math.inf
    """It is hungry only for tiles brighter than this."""

    def encode(self, pixels: Tensor) -> Tensor:
        return super().encode(self._taking("encode", pixels))

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(self._taking("decode", latents))

    def sketch(self, latents: Tensor) -> Tensor:
        return super().sketch(self._taking("sketch", latents))

    def predict(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        return super().predict(self._taking("predict", x), sigma, conditioning) + 0.001 * len(x)

    def save_memory(self) -> str | None:
        if not self.measures:
            return None
        self.fits += 1
        return self.measures.pop(0)

    def _taking(self, stage: str, x: Tensor) -> Tensor:
        if stage == self.stage:
            self.given.append(len(x))
            if len(x) > self.fits and float(x.max()) > self.above:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return x


def accident(folder: Path, above: float, times: int, kill: bool) -> ReplicaSpec:
    return ReplicaSpec(upsampler=Lanczos, denoiser=partial(Accident, folder, above, times, kill))


def encode_noting(folder: Path, prompts: Sequence[str], picture: object) -> dict[str, dict[str, np.ndarray]]:
    """A text encoder that leaves a file of the process it was loaded in."""
    (folder / f"{os.getpid()}-{time.time_ns()}").touch()
    return {prompt: {"embeddings": np.ones(4, np.float32)} for prompt in prompts}


def shade() -> ReplicaSpec:
    return ReplicaSpec(upsampler=Lanczos, denoiser=Shade)


def photograph(height: int = 90, width: int = 140, bands: int = 3) -> np.ndarray:
    """Waves with one bright spot, uint8, dark enough elsewhere to tell it from the spot."""
    y, x = np.mgrid[:height, :width]
    waves = [70 + 60 * np.sin((x + 2 * y) / 23 + b) for b in range(bands)]
    pixels = np.stack(waves, axis=-1).astype(np.uint8)
    pixels[10:14, 10:14] = 255
    return pixels


def make_task(
    folder: Path, pixels: np.ndarray | None = None, seed: int = 7, tile: int = TILE, batch: int = 1
) -> ImageTask:
    source = ingest_array(photograph() if pixels is None else pixels, folder / "source.zarr")
    info = source.info
    scaling = Scaling.from_factor(info.width, info.height, 2)
    grid = make_grid(scaling.canvas_w, scaling.canvas_h, tile=tile, overlap=OVERLAP, multiple=MULTIPLE)
    canvas = Canvas.create(
        folder / "canvas.zarr", grid.width, grid.height, info.bands, info.dtype, (grid.ys.cell, grid.xs.cell)
    )
    return ImageTask(source, scaling, grid, canvas, denoise=0.5, steps=2, seed=seed, batch=batch)
