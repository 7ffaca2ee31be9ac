"""The painting as a replica sees it, refined by models that behave or do not; what they draw where they should not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_sample import picture
from numpy.typing import NDArray
from on_tiles import Bench, Pixels, benches
from PIL import Image
from plants import Plant, Planting, square

from dino_ray.dino.drift import Reference
from dino_ray.engine.bands import UINT16_MAX
from dino_ray.engine.replica import merge
from dino_ray.plan.geometry import Rect

SIZE = (960, 640)
"""Of the painting, and so of the results: canvas_px."""
SHOWN = 96
"""canvas_px of a crop's side."""
BOAT, FOREST, JETTY, PEAK, WATER, ROCKS = (
    (512, 352),
    (352, 352),
    (704, 480),
    (832, 96),
    (288, 480),
    (336, 176),
)
"""Corners of things in the painting, canvas_px."""


@cache
def painting() -> Image.Image:
    """It takes a while; so once."""
    return picture(*SIZE)


def whole(bench: Bench, tiles: Mapping[int, NDArray[np.uint16]]) -> Pixels:
    """Tiles, blended into the bench's canvas, read from there."""
    grid, canvas = bench.task.grid, bench.task.canvas
    for cell in range(grid.n_cells):
        merge(bench.task, [cell], {tile: tiles[tile] for tile in grid.cell_tiles(cell)})
    pixels = canvas.read(Rect(0, 0, grid.width, grid.height))
    return pixels.astype(np.float32) / 255


def deep(pixels: Pixels) -> NDArray[np.uint16]:
    return (np.clip(pixels, 0, 1) * UINT16_MAX + 0.5).astype(np.uint16)


def tile_over(bench: Bench, corner: tuple[int, int]) -> int:
    """The tile in which a crop of SHOWN px, near the corner, lies most in the middle."""
    grid = bench.task.grid
    centre = np.add(corner, SHOWN // 2)

    def off(tile: int) -> float:
        rect = grid.tile_rect(tile)
        return float(np.abs(centre - (rect.x + rect.w / 2, rect.y + rect.h / 2)).max())

    return min(bench.tiles(), key=off)


def crop(pixels: NDArray[Any], side: int = SHOWN, around: tuple[int, int] | None = None) -> NDArray[Any]:
    """The middle of a tile, or what lies around a place (x, y) of it."""
    height, width = pixels.shape[:2]
    x, y = around or (width // 2, height // 2)
    left, top = (min(max(0, at - side // 2), length - side) for at, length in ((x, width), (y, height)))
    return pixels[top : top + side, left : left + side]


@contextmanager
def opened(model: Callable[[Any], Any] = lambda denoiser: denoiser) -> Iterator[Bench]:
    """The painting, ready to be refined."""
    with tempfile.TemporaryDirectory() as folder:
        truth = Path(folder) / "landscape.png"
        painting().save(truth)
        with benches((str(truth),), model) as made:
            yield made[0]


def planes(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


@dataclass(frozen=True)
class Planned:
    """What the model draws where it should not: another part of the painting, made smaller."""

    corner: tuple[int, int]
    """Near which it is drawn, in the middle of a tile."""
    side: int
    box: tuple[int, int, int]
    """(x, y, side) of what is drawn, canvas_px."""
    shows: float = 1.0
    """In [0, 1]: how opaque it is."""

    def plant(self, length: int) -> Plant:
        """For a tile of ``length`` px."""
        x, y, wide = self.box
        part = painting().crop((x, y, x + wide, y + wide))
        small = np.asarray(part.resize((self.side, self.side), Image.Resampling.LANCZOS))
        at = (length - self.side) // 2
        return Plant("a thing", at, at, small.astype(np.float32) / 255, self.shows * square(self.side))


A_BOAT, A_PEAK, A_PINE, SOME_GRASS = (500, 326, 150), (560, 130, 110), (50, 20, 140), (0, 540, 100)
"""Parts of the painting, (x, y, side)."""

PLANNED = (
    Planned(FOREST, 64, A_BOAT),
    Planned(PEAK, 48, A_PINE),
    Planned(JETTY, 96, A_PEAK),
    Planned(WATER, 64, SOME_GRASS, shows=0.35),
    Planned(ROCKS, 64, A_PINE, shows=0.15),
)


FAINT = 3
"""Of those, one that raises no alarm."""

SOURCE_DIGIT, OTHER_DIGIT, DIGIT = (541, 416), (550, 416), 10
"""The 4 on the sail, and the 2 beside it: corners and side, canvas_px."""


def digit(tile: Rect) -> Plant:
    """The sail's number becomes another one."""
    x, y = SOURCE_DIGIT
    pixels = np.asarray(painting().crop((x, y, x + DIGIT, y + DIGIT)), np.float32) / 255
    at = OTHER_DIGIT[0] - tile.x, OTHER_DIGIT[1] - tile.y
    return Plant("another digit", *at, pixels, np.ones((DIGIT, DIGIT, 1), np.float32))


@contextmanager
def planting() -> Iterator[tuple[Bench, Planting]]:
    models: list[Planting] = []

    def model(denoiser: Any) -> Planting:
        models.append(Planting(denoiser))
        return models[-1]

    with opened(model) as bench:
        yield bench, models[0]


def drift_of(bench: Bench, tile: int, pixels: Pixels) -> tuple[float, NDArray[np.float32]]:
    """The mean cosine against the base, and over the tile's pixels how far the drift is on its way to the alarm."""
    dino, thresholds = bench.replica.dino, bench.guide.calibration
    assert dino is not None
    assert thresholds is not None
    drift = Reference.of(dino, planes(bench.base(tile))).drift(planes(pixels), thresholds.alarm)
    return float(drift.cosines.mean()), drift.over_pixels().numpy()
