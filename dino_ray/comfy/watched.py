"""An engine that a node looks over the shoulder of: progress, previews of cells as they land, cancel, what is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from dino_ray.comfy import recent
from dino_ray.comfy.interrupts import Interrupts
from dino_ray.engine.protocol import (
    CellDone,
    Engine,
    EngineEvent,
    Guide,
    Handle,
    ImageTask,
    TilesDone,
    Timings,
)

GLANCE_S = 0.25
"""How often a wait looks whether the prompt was cancelled."""

PREVIEW_PX = 512
"""Longest side of a preview: about what a node shows."""


class Progress:
    """A node's progress bar, over all tiles of all images of a batch, and the preview beneath.

    Parameters
    ----------
    tiles, steps
        Of all images; of each tile.
    node
        ComfyUI's id of the node.
    """

    def __init__(self, tiles: int, steps: int, node: str | None) -> None:
        import comfy.utils

        self._steps = max(1, steps)
        self._total = max(1, tiles) * self._steps
        self._bar = comfy.utils.ProgressBar(self._total, node_id=node)
        self._tiles_done = 0
        self._shown = 0
        self._preview: Any = None
        self._task: ImageTask | None = None

    @property
    def preview_size(self) -> tuple[int, int]:
        """Of the image at hand, px."""
        return (1, 1) if self._preview is None else self._preview.size

    def start(self, task: ImageTask) -> None:
        """An image's tiles come next."""
        from PIL import Image

        self._task = task
        width, height = task.grid.width, task.grid.height
        shrink = min(1.0, PREVIEW_PX / max(width, height))
        self._preview = Image.new("RGB", (max(1, round(width * shrink)), max(1, round(height * shrink))))

    def step(self) -> None:
        """One more step of a tile is taken; a tile that is made again does not count twice."""
        self._show(min(self._shown + 1, (self._tiles_done + 1) * self._steps))

    def tiles(self, count: int) -> None:
        """Tiles are done."""
        self._tiles_done += count
        self._show(self._tiles_done * self._steps)

    def cell(self, number: int) -> None:
        """A cell has landed on the canvas: show it."""
        from PIL import Image

        assert self._task is not None
        rect, canvas = self._task.grid.cell_rect(number), self._task.canvas
        pixels = canvas.read(rect)
        if pixels.dtype != np.uint8:
            pixels = (pixels >> 8).astype(np.uint8)
        pixels = pixels[..., :3] if pixels.shape[-1] > 2 else np.repeat(pixels[..., :1], 3, axis=-1)
        scale = self._preview.width / self._task.grid.width
        x0, y0, x1, y1 = (round(side * scale) for side in (rect.x, rect.y, rect.x1, rect.y1))
        if x1 > x0 and y1 > y0:
            small = Image.fromarray(pixels).resize((x1 - x0, y1 - y0), Image.Resampling.BOX)
            self._preview.paste(small, (x0, y0))
        self._show(self._shown, preview=True)

    def _show(self, value: int, *, preview: bool = False) -> None:
        self._shown = max(self._shown, value)
        image = ("JPEG", self._preview.copy(), PREVIEW_PX) if preview else None
        self._bar.update_absolute(self._shown, self._total, image)


class Watched:
    """Another engine, with a node's eyes on it. What is not named here is that engine's.

    Parameters
    ----------
    engine
    progress, interrupts
    key
        What a guide depends on besides the source; None: guides stay where the engine has them, and are not kept.
    """

    def __init__(
        self,
        engine: Engine,
        progress: Progress,
        interrupts: Interrupts,
        key: Callable[[ImageTask], Any] | None,
    ) -> None:
        self._engine, self._progress, self._interrupts, self._key = engine, progress, interrupts, key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __enter__(self) -> Watched:
        self._engine.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._engine.__exit__(*exc)

    def prepare(self, task: ImageTask) -> tuple[Handle, Timings]:
        """As the engine's; what was found of the same source before is taken again."""
        self._interrupts.raise_if_seen()
        if self._key is None:
            return self._engine.prepare(task)
        cost = Timings()

        def make() -> Guide:
            nonlocal cost
            guide, cost = self._engine.prepare(task)
            return cast(Guide, guide)

        guide = recent.guides.get(self._key(task), make)
        return guide, cost

    def share(self, task: ImageTask) -> Handle:
        """As the engine's; says that an image begins."""
        self._progress.start(task)
        return self._engine.share(task)

    def wait(self, timeout: float) -> list[EngineEvent]:
        """As the engine's, but for glances at ComfyUI's cancel, whose exception it raises."""
        until = time.monotonic() + timeout
        while True:
            self._interrupts.raise_if_seen()
            left = until - time.monotonic()
            events = self._engine.wait(max(0.0, min(GLANCE_S, left)))
            self._interrupts.raise_if_seen()
            for event in events:
                if isinstance(event, CellDone):
                    self._progress.cell(event.cell)
                elif isinstance(event, TilesDone):
                    self._progress.tiles(len(event.call.tiles))
            if events or left <= GLANCE_S:
                return events
