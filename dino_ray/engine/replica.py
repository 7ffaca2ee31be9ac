"""One model replica: loads once, then runs whatever tiles it is given. The same class in every engine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dino_ray.engine.bands import UINT16_MAX, LastRead, like, rgb, to_uint16, with_alpha
from dino_ray.engine.protocol import (
    DinoEffect,
    Guide,
    ImageTask,
    Readable,
    ReplicaSpec,
    SourceCondition,
    TextArrays,
    TileCall,
    Timings,
)
from dino_ray.engine.refining import Models, refine_batch
from dino_ray.engine.thrift import OutOfMemory, Thrift
from dino_ray.engine.turns import Turn, Turns
from dino_ray.engine.verifying import Refined, Tile
from dino_ray.engine.watch import Cancelled, Stop, Stopwatch, heed, never, peak_rss_mb
from dino_ray.fidelity.flat import block_side, is_flat
from dino_ray.plan import blend
from dino_ray.plan.geometry import Rect
from dino_ray.prompts import CAPTION_SIDE, Region, captioned
from dino_ray.upsample import base_tile, unit_range

if TYPE_CHECKING:
    import torch

    from dino_ray.diffusion.denoiser import Denoiser, Embeddings
    from dino_ray.dino.loading import Dino
    from dino_ray.upsample import Upsampler

__all__ = ["Cancelled", "OutOfMemory", "Replica", "Stop", "merge", "never", "peak_rss_mb"]

IMAGE_PROMPT_SIDE = 1024
"""What an image prompt sees of the source, source_px at most; encoders look at 224 to 384 px of it."""


class Replica:
    """Models on one device, and the stages a tile passes: base → encode → steps → decode.

    The tiles of a call pass them together. Where they do not fit the device's memory, it works on less at once, as
    `Thrift` has it.

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
        self._image_encoder: Callable[[Sequence[np.ndarray]], Embeddings] | None = None
        self._text: tuple[object, Mapping[str, TextArrays]] | None = None
        """What was encoded last, and of what."""
        self._thrift = Thrift()
        self._turns = Turns()
        self._base_at_work = threading.Lock()
        """Of those that are made ahead, one at a time has the memory that it takes."""
        self._base_stream: torch.cuda.Stream | None = None

    def pid(self) -> int:
        """Process that it lives in, for logs and for tests that kill it."""
        return os.getpid()

    @property
    def device(self) -> str:
        """What its models, once loaded, run on: ``cpu``, or the GPU's name."""
        device = getattr(self._denoiser or self._upsampler, "device", "cpu")
        if not str(device).startswith("cuda"):
            return str(device)
        import torch

        return torch.cuda.get_device_name(device)

    @property
    def dino(self) -> Dino | None:
        """The DINO model that it guides and judges with, once loaded."""
        return self._dino

    def load(self) -> Timings:
        """Load the models, unless they are loaded."""
        watch = Stopwatch()
        with watch("load"):
            self._make_reproducible()
            if self._upsampler is None:
                self._upsampler = self._spec.upsampler()
            if self._denoiser is None and self._spec.denoiser is not None:
                self._denoiser = self._spec.denoiser()
            if self._dino is None and self._spec.dino is not None:
                self._dino = self._spec.dino()
        return watch.timings()

    def prepare(self, task: ImageTask, stop: Stop = never) -> tuple[Guide, Timings]:
        """What is computed once per image: what its source shows, and the prompt's embeddings.

        Raises
        ------
        Cancelled
            Once ``stop`` says so; it is asked between windows of the source.
        """
        watch = Stopwatch()
        self._make_reproducible()
        seen = self._study(task, watch, stop)
        if self._spec.image is not None and task.image_prompt == "image":
            heed(stop)
            with watch("image_prompt"):
                embeddings = self._spec.image()([_reduced(task.source, IMAGE_PROMPT_SIDE)])
                seen = replace(seen, image={name: value.cpu().numpy() for name, value in embeddings.items()})
        if self._spec.text is None:
            return seen, replace(watch.timings(), source=SourceCondition.of(seen))
        regions = self._captions(task, watch, stop) or task.regions
        texts = [task.prompt, *(region.prompt for region in regions), task.negative_prompt]
        prompts = tuple(dict.fromkeys(text for text in texts if text is not None))
        # A picture that the encoders look at makes every image's embeddings its own.
        key = (prompts, task.source if task.text_sees_source else None)
        if self._text is None or self._text[0] != key:
            heed(stop)
            with watch("text"):
                self._text = key, self._spec.text(prompts, partial(_reduced, task.source))
        found = replace(seen, regions=regions, text=self._text[1])
        return found, replace(watch.timings(), source=SourceCondition.of(seen))

    def _captions(self, task: ImageTask, watch: Stopwatch, stop: Stop) -> tuple[Region, ...]:
        """What the captioner sees in the source; nothing where there is none."""
        if self._spec.captioner is None:
            return ()

        def look(x: int, y: int, w: int, h: int) -> np.ndarray:
            heed(stop)
            seen: np.ndarray = np.rint(_reduced(task.source, CAPTION_SIDE, Rect(x, y, w, h)) * 255).astype(
                np.uint8
            )
            return seen

        with watch("captions"):
            return captioned(self._spec.captioner(), look, *task.size, task.prompt)

    def _study(self, task: ImageTask, watch: Stopwatch, stop: Stop) -> Guide:
        """What the source itself says: how grainy it is, and what DINO sees in it."""
        source = task.source
        size = source.info.width, source.info.height

        def read(rect: Rect) -> np.ndarray:
            return rgb(unit_range(source.read(rect)))

        guide = Guide(worn=task.net == "worn")
        if task.consistency > 0 or task.adaptive > 0 or task.net == "auto":
            from dino_ray.fidelity.grain import measure_grain

            with watch("grain"):
                grain = measure_grain(read, *size)
            guide = Guide(grain=grain, worn=guide.worn or (task.net == "auto" and grain.worn))
        if self._spec.dino is None:
            return guide
        with watch("load_dino"):
            dino = self._dino = self._dino or self._spec.dino()
        with watch("dino"):
            from dino_ray.dino import thresholds

            calibration = thresholds.of(dino, read, *size)
            guide = replace(guide, calibration=calibration)
            attended = task.dino_tokens and task.dino_strength > 0
            if not attended and task.adaptive == 0:
                return guide
            from dino_ray.dino.extract import extract
            from dino_ray.dino.structure import structure

            features = extract(
                dino, read, *size, closed=task.grid.wrap, on_window=lambda done, total: heed(stop)
            )
            if task.adaptive > 0:
                guide = replace(guide, structure=structure(features.fine, calibration))
            return replace(guide, features=features) if attended else guide

    def refine(
        self, task: ImageTask, guide: Guide, call: TileCall, stop: Stop = never
    ) -> tuple[list[np.ndarray], Timings]:
        """Tiles, from their base to their pixels, as one batch.

        Bases, noise and the reading of the source are each tile's own; what the model does, it does to all of them at
        once. The last bits of a tile can depend on the size of the batch, for a matrix product may sum in another
        order; they do not depend on which other tiles are in it.

        Several threads may call at once. The device is one call's at a time, from its first upsampling to its last
        decoding, in the order of the calls' numbers; the next one reads its source meanwhile, and the last one's pixels
        are on their way. A model on a GPU gets no pause at all: there the next call makes its bases meanwhile as well.

        Parameters
        ----------
        stop
            Asked between stages, and before each denoising step.

        Returns
        -------
        pixels
            Of each tile, uint16 (tile_h, tile_w, bands); the bands are the canvas's: colour, then alpha.
        timings
            Seconds per stage, over all tiles; what had to be done to fit the device's memory; and how faithful the
            tiles are.

        Raises
        ------
        Cancelled
            Once ``stop`` says so.
        OutOfMemory
            If a single tile does not fit the device's memory.
        """
        if self._upsampler is None or (self._denoiser is None and self._spec.denoiser is not None):
            self.load()
        self._make_reproducible()
        watch = Stopwatch()
        with self._turns.join(call.number) as turn:
            bases, refined = self._refine(task, guide, call, stop, watch, turn)
        timings = watch.timings(self._thrift.measures)
        colour = task.source.info.colour_bands
        tiles = (
            [
                np.concatenate([like(each.pixels(), colour), base[..., colour:]], axis=-1)
                for each, base in zip(refined, bases, strict=True)
            ]
            if refined
            else bases
        )
        found = tuple(each.fidelity for each in refined)
        return [to_uint16(pixels) for pixels in tiles], replace(timings, fidelity=found)

    def _refine(
        self, task: ImageTask, guide: Guide, call: TileCall, stop: Stop, watch: Stopwatch, turn: Turn
    ) -> tuple[list[np.ndarray], Sequence[Refined]]:
        """The bases of tiles, and what the model made of them; nothing, where it is not asked."""

        def take() -> None:
            with watch.stopped():
                turn.take(stop)

        def read(rect: Rect) -> np.ndarray:
            with watch("read"):
                window = task.source.read(rect)
            if not self.overlaps:
                take()
            return window

        refines = call.refine and self._denoiser is not None
        bases, tiles = [], []
        for number in call.tiles:
            rect, reader = task.grid.tile_rect(number), LastRead(read)
            heed(stop)
            with watch("base"):
                base = self._base(task, rect, reader, guide.worn)
                bases.append(base)
                if refines:
                    tiles.append(_tile(number, rect, base, reader, task, guide))
        if not refines or self._denoiser is None:
            return bases, ()
        take()
        if self._image_encoder is None and self._spec.image is not None and task.image_prompt == "tile":
            with watch("load"):
                self._image_encoder = self._spec.image()
        models = Models(
            self._denoiser, self._dino, self._image_encoder if task.image_prompt == "tile" else None
        )

        def work(batch: Sequence[Tile]) -> Sequence[Refined]:
            return refine_batch(models, batch, task, guide, watch, stop)

        return bases, self._thrift.in_batches(tiles, work, models.denoiser.save_memory)

    @property
    def overlaps(self) -> bool:
        """Whether a call makes its bases while another has the device: on a GPU, beside the model, on a stream of their
        own. Processors that do both would do neither sooner.
        """
        return self._denoiser is not None and self._denoiser.device.type != "cpu"

    def dino_effect(self, task: ImageTask, guide: Guide, tile: int) -> DinoEffect:
        """How much DINO changes a tile, through tokens and guidance, against a strength of 0."""
        start = time.perf_counter()
        (with_features,), _ = self.refine(task, guide, TileCall(0, (tile,)))
        (without,), _ = self.refine(replace(task, dino_strength=0.0), guide, TileCall(0, (tile,)))
        effect = float(np.abs(with_features.astype(np.float64) - without).mean() * 255 / UINT16_MAX)
        return DinoEffect(tile, effect, time.perf_counter() - start)

    def _make_reproducible(self) -> None:
        if not self._spec.torch:
            return
        import torch

        # Sums are split by thread: the same pixels everywhere need the same number everywhere.
        torch.set_num_threads(self._spec.threads)
        torch.backends.cudnn.deterministic = True

    def _base(
        self, task: ImageTask, rect: Rect, read: Callable[[Rect], np.ndarray], worn: bool
    ) -> np.ndarray:
        assert self._upsampler is not None
        upsampler = self._upsampler.suited(worn)
        if not self.overlaps:
            return self._thrift.in_strips(rect, lambda part: base_tile(read, part, task.scaling, upsampler))
        with self._base_at_work, self._beside_the_model(getattr(upsampler, "device", None)):
            return self._thrift.in_strips(rect, lambda part: base_tile(read, part, task.scaling, upsampler))

    def _beside_the_model(self, device: torch.device | None) -> AbstractContextManager[object]:
        """What is given to a GPU within does not wait for what other threads gave it."""
        if device is None or device.type != "cuda":
            return nullcontext()
        import torch

        if (
            self._base_stream is None
        ):  # always the same: memory that one stream has used is of no use to another
            self._base_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._base_stream)


def _reduced(source: Readable, side: int, part: Rect | None = None) -> np.ndarray:
    """A source, or a part of it (source_px), of which neither side exceeds ``side``: (h, w, 3) float32 in [0, 1]."""
    from dino_ray.dino.resample import Resized

    part = part or Rect(0, 0, source.info.width, source.info.height)

    def read(rect: Rect) -> np.ndarray:
        return rgb(unit_range(source.read(Rect(part.x + rect.x, part.y + rect.y, rect.w, rect.h))))

    shrink = min(1.0, side / max(part.w, part.h))
    w, h = max(1, round(part.w * shrink)), max(1, round(part.h * shrink))
    return Resized(read, part.w, part.h, w, h).window(Rect(0, 0, w, h))


def merge(task: ImageTask, cells: Sequence[int], tiles: Mapping[int, np.ndarray]) -> list[Timings]:
    """Blend cells out of their tiles and commit them to the canvas, one after the other.

    Parameters
    ----------
    tiles
        Tile number to its pixels, uint16 (tile_h, tile_w, bands): the tiles that ``grid.cell_tiles`` names.

    Returns
    -------
    list
        What each cell cost.

    Raises
    ------
    JobError
        If the canvas can't be written.
    """
    stages = [_merge_cell(task, cell, tiles) for cell in cells]
    peak = peak_rss_mb()  # once, for with small cells it would be a sixth of the work
    return [Timings(seconds, peak) for seconds in stages]


def _merge_cell(task: ImageTask, cell: int, tiles: Mapping[int, np.ndarray]) -> dict[str, float]:
    start = time.perf_counter()
    pixels = blend.to_depth(blend.blend(task.grid, cell, tiles), task.canvas.dtype)
    blended = time.perf_counter()
    task.canvas.write(task.grid.cell_rect(cell), pixels)
    return {"blend": blended - start, "commit": time.perf_counter() - blended}


def _tile(number: int, rect: Rect, base: np.ndarray, read: LastRead, task: ImageTask, guide: Guide) -> Tile:
    from dino_ray.fidelity.consistency import source_window

    colour = task.source.info.colour_bands
    window = source_window(rect, task.scaling)
    source = with_alpha(unit_range(read(window)), colour)
    shown = rgb(base[..., :colour])
    grain = guide.grain.noise if guide.grain is not None else 0.0
    flat = task.adaptive > 0 and is_flat(shown, grain, block_side(task.scaling))
    return Tile(number, rect, shown, source, window, flat)
