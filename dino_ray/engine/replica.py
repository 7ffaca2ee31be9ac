"""One model replica: loads once, then runs whatever tiles it is given. The same class in every engine."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dino_ray.engine.protocol import DinoEffect, Guide, ImageTask, ReplicaSpec, TileCall, Timings
from dino_ray.plan import blend, noise
from dino_ray.plan.geometry import Rect
from dino_ray.upsample import base_tile, unit_range

if TYPE_CHECKING:
    import torch

    from dino_ray.diffusion.denoiser import Conditioning, Denoiser
    from dino_ray.dino.loading import Dino
    from dino_ray.upsample import Upsampler

UINT16_MAX = 65535
LUMA = tuple(np.float32(weight) for weight in (0.299, 0.587, 0.114))  # ITU-R BT.601


class Replica:
    """Models on one device, and the stages a tile passes: base → encode → steps → decode.

    Parameters
    ----------
    spec
        How to get the models. Nothing is loaded before the first call that needs it.
    """

    def __init__(self, spec: ReplicaSpec) -> None:
        self._spec = spec
        self._upsampler: Upsampler | None = None
        self._denoiser: Denoiser | None = None
        self._dino: Dino | None = None
        self._text: dict[str, Mapping[str, np.ndarray]] = {}

    def pid(self) -> int:
        """Process that it lives in, for logs and for tests that kill it."""
        return os.getpid()

    @property
    def device(self) -> str:
        """What its models, once loaded, run on: ``cpu``, or the GPU's name."""
        device = getattr(self._denoiser or self._upsampler, "device", "cpu")
        if str(device) == "cpu":
            return "cpu"
        import torch

        return torch.cuda.get_device_name(device)

    def load(self) -> Timings:
        """Load the models, unless they are loaded."""
        watch = Stopwatch()
        with watch("load"):
            self._make_reproducible()
            if self._upsampler is None:
                self._upsampler = self._spec.upsampler()
            if self._denoiser is None and self._spec.denoiser is not None:
                self._denoiser = self._spec.denoiser()
        return watch.timings()

    def prepare(self, task: ImageTask) -> tuple[Guide, Timings]:
        """What is computed once per image: its DINO features and the prompt's embeddings."""
        watch = Stopwatch()
        self._make_reproducible()
        features = None
        if self._spec.dino is not None and task.dino_strength > 0:
            from dino_ray.dino.extract import extract

            with watch("load_dino"):
                self._dino = self._dino or self._spec.dino()
            with watch("dino"):
                source = task.source
                features = extract(
                    self._dino,
                    lambda rect: _rgb(unit_range(source.read(rect))),
                    source.info.width,
                    source.info.height,
                    closed=task.grid.wrap,
                )
        if self._spec.text is not None and task.prompt not in self._text:
            with watch("text"):
                self._text = {task.prompt: self._spec.text(task.prompt)}
        return Guide(features, self._text.get(task.prompt, {})), watch.timings()

    def refine(self, task: ImageTask, guide: Guide, call: TileCall) -> tuple[list[np.ndarray], Timings]:
        """Tiles, from their base to their pixels.

        Returns
        -------
        pixels
            Of each tile, uint16 (tile_h, tile_w, bands); the bands are the canvas's: colour, then alpha.
        timings
            Seconds per stage.
        """
        self.load()
        assert self._upsampler is not None
        watch = Stopwatch()
        (tile,) = call.tiles
        rect = task.grid.tile_rect(tile)
        with watch("base"):
            pixels = base_tile(task.source.read, rect, task.scaling, self._upsampler)
        if call.refine and self._denoiser is not None:
            colour = task.source.info.colour_bands
            refined = self._refine_rgb(self._denoiser, _rgb(pixels[..., :colour]), task, guide, rect, watch)
            pixels = np.concatenate([_like(refined, colour), pixels[..., colour:]], axis=-1)
        return [_to_uint16(pixels)], watch.timings()

    def dino_effect(self, task: ImageTask, guide: Guide, tile: int) -> DinoEffect:
        """How much the DINO features change a tile, against none."""
        assert guide.features is not None
        start = time.perf_counter()
        (with_features,), _ = self.refine(task, guide, TileCall(0, (tile,)))
        (without,), _ = self.refine(task, replace(guide, features=None), TileCall(0, (tile,)))
        effect = float(np.abs(with_features.astype(np.float64) - without).mean() * 255 / UINT16_MAX)
        return DinoEffect(tile, effect, time.perf_counter() - start)

    def _make_reproducible(self) -> None:
        if not self._spec.torch:
            return
        import torch

        # Sums are split by thread: the same pixels everywhere need the same number everywhere.
        torch.set_num_threads(self._spec.threads)
        torch.backends.cudnn.deterministic = True

    def _refine_rgb(
        self,
        denoiser: Denoiser,
        base: np.ndarray,
        task: ImageTask,
        guide: Guide,
        rect: Rect,
        watch: Stopwatch,
    ) -> np.ndarray:
        import torch

        from dino_ray.diffusion.sampler import sample

        device = denoiser.device
        with torch.inference_mode():
            with watch("encode"):
                image = torch.from_numpy(np.ascontiguousarray(base.transpose(2, 0, 1)))[None]
                latents = denoiser.encode(image.to(device))
            with watch("steps"):
                scale = denoiser.description.latent_scale
                place = Rect(rect.x // scale, rect.y // scale, rect.w // scale, rect.h // scale)
                around = task.grid.xs.period
                period = around // scale if around else None
                field = noise.field(task.seed, latents.shape[1], place, period)
                sigmas = denoiser.sigmas(task.denoise, task.steps, (place.h, place.w))
                start = denoiser.noised(latents, torch.from_numpy(field)[None].to(device), task.denoise)
                conditioning = _conditioning(denoiser, task, guide, rect)
                latents = sample(denoiser, start, sigmas, conditioning, task.sampler)
            with watch("decode"):
                refined: np.ndarray = denoiser.decode(latents)[0].permute(1, 2, 0).float().cpu().numpy()
        return refined


def merge(task: ImageTask, cell: int, tiles: dict[int, np.ndarray]) -> Timings:
    """Blend one cell out of its tiles and commit it to the canvas.

    Parameters
    ----------
    tiles
        Tile number to its pixels, uint16 (tile_h, tile_w, bands): the tiles that ``grid.cell_tiles`` names.

    Raises
    ------
    JobError
        If the canvas can't be written.
    """
    watch = Stopwatch()
    with watch("blend"):
        pixels = blend.to_depth(blend.blend(task.grid, cell, tiles), task.canvas.dtype)
    with watch("commit"):
        task.canvas.write(task.grid.cell_rect(cell), pixels)
    return watch.timings()


class Stopwatch:
    """Seconds per named stage of one call."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - start

    def timings(self) -> Timings:
        return Timings(self._seconds, peak_rss_mb())


def peak_rss_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    # Elsewhere than on Linux, where this would also count what the parent had when it forked this process.
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _conditioning(denoiser: Denoiser, task: ImageTask, guide: Guide, rect: Rect) -> Conditioning:
    import torch

    from dino_ray.diffusion.denoiser import Conditioning, DinoTokens

    def there(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(denoiser.device)  # a copy: shared arrays are read-only

    dino = None
    if guide.features is not None:
        stride = denoiser.description.dino_stride
        features = guide.features.crop(*task.scaling.source_box(rect), rect.h // stride, rect.w // stride)
        dino = DinoTokens(there(features)[None], task.dino_strength)
    return Conditioning({name: there(array) for name, array in guide.text.items()}, task.cfg, dino)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """The colour of 1 to 4 bands (colour first, then alpha) as three bands."""
    return np.repeat(pixels[..., :1], 3, axis=-1) if pixels.shape[-1] < 3 else pixels[..., :3]


def _like(rgb: np.ndarray, colour_bands: int) -> np.ndarray:
    if colour_bands == 3:
        return rgb
    # Not a matrix product: that would leave the order of the sum to the library and its threads.
    luma: np.ndarray = rgb[..., :1] * LUMA[0] + rgb[..., 1:2] * LUMA[1] + rgb[..., 2:] * LUMA[2]
    return luma


def _to_uint16(pixels: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = np.clip(pixels, 0.0, 1.0)
    scaled *= UINT16_MAX  # in place: a tile is many times the cache
    scaled += 0.5
    return scaled.astype(np.uint16)
