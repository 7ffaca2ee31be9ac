"""A picture of the tiles that have drifted most: the source, merely enlarged, beside the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dino_ray.fidelity.record import HEAT_SIDE, TileFidelity
from dino_ray.fidelity.summary import Ledger
from dino_ray.plan.geometry import Grid, Rect, Scaling
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.store import Pixels
from dino_ray.report.drawing import MARGIN, PAPER, TEXT_PX, text_width, visible, write
from dino_ray.upsample import Lanczos, base_tile
from dino_ray.upsample.lanczos import Array

if TYPE_CHECKING:
    from dino_ray.engine.protocol import Readable

COUNT = 5
SIDE = 384
"""Of a crop, px at most: pixels are not reduced, so of a larger tile the part that has drifted most is shown."""

_CAPTION = TEXT_PX + 8
_HEADING = ("before: the source, enlarged by Lanczos", "after: the result")


def worst_tiles(
    source: Readable, scaling: Scaling, canvas: Canvas, grid: Grid, ledger: Ledger
) -> Image.Image | None:
    """Draw the ``COUNT`` worst tiles, worst first: before and after, with what was found of each.

    Returns
    -------
    PIL image, RGB, of crops of at most ``SIDE`` px; None if no tile was verified.
    """
    rows = []
    for tile in ledger.worst(COUNT):
        record = ledger.of(tile)
        rect = telling_part(grid, record)
        before = base_tile(source.read, rect, scaling, Lanczos())
        rows.append((caption(record, rect), _shown(before), _shown(_read(canvas, rect, grid.wrap))))
    return _table(rows) if rows else None


def telling_part(grid: Grid, record: TileFidelity) -> Rect:
    """The window of a tile, canvas_px, that is shown: of at most ``SIDE`` a side, around the square of most drift.

    It lies within the canvas, but where the canvas is closed it may go on around it.
    """
    tile = grid.tile_rect(record.tile)
    square = int(np.argmax(record.heat)) if record.heat else HEAT_SIDE**2 // 2 + HEAT_SIDE // 2
    down, across = divmod(square, HEAT_SIDE)
    x, w = _part(tile.x, tile.w if grid.wrap else min(tile.w, grid.width - tile.x), across, tile.w)
    y, h = _part(tile.y, min(tile.h, grid.height - tile.y), down, tile.h)
    return Rect(x, y, w, h)


def _part(start: int, length: int, square: int, tile: int) -> tuple[int, int]:
    """Where to begin, and how much to show, of ``length`` from ``start`` on, with a square of a tile in the middle."""
    shown = min(length, SIDE)
    middle = (2 * square + 1) * tile // (2 * HEAT_SIDE)
    return start + min(max(0, middle - shown // 2), length - shown), shown


def caption(record: TileFidelity, rect: Rect) -> str:
    """What was found of a tile, and where on the canvas it is shown."""
    values = {
        "alarm": ("alarm {:.2f}", record.alarm),
        "mean": ("cosine mean {:.4f}", record.cosine_mean),
        "p10": ("10th percentile {:.4f}", record.cosine_p10),
        "min": ("worst {:.4f}", record.cosine_min),
    }
    found = [text.format(value) for text, value in values.values() if value is not None]
    return ", ".join([f"tile {record.tile} at {rect.x}, {rect.y}: {record.action}", *found])


def _read(canvas: Canvas, rect: Rect, wrap: bool) -> Pixels:
    parts = rect.turns(canvas.width) if wrap else (rect,)
    return np.concatenate([canvas.read(part) for part in parts], axis=1)


def _shown(pixels: Pixels | Array) -> NDArray[np.uint8]:
    """A crop; of a small one each pixel as a square, as large as fits."""
    times = max(1, SIDE // max(pixels.shape[:2]))
    return visible(pixels).repeat(times, axis=0).repeat(times, axis=1)


def _table(rows: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Image.Image:
    side = max(text_width(_HEADING[0]), *(before.shape[1] for _, before, _ in rows))
    second = 2 * MARGIN + side
    texts = [text for text, _, _ in rows]
    width = MARGIN + max(second + max(side, text_width(_HEADING[1])), *map(text_width, texts))
    height = MARGIN + _CAPTION + sum(_CAPTION + before.shape[0] + MARGIN for _, before, _ in rows)
    image = Image.new("RGB", (width + MARGIN, height), PAPER)
    draw = ImageDraw.Draw(image)
    for x, text in zip((MARGIN, second), _HEADING, strict=True):
        write(draw, x, MARGIN, text)
    y = MARGIN + _CAPTION
    for text, before, after in rows:
        write(draw, MARGIN, y, text)
        for x, pixels in ((MARGIN, before), (second, after)):
            image.paste(Image.fromarray(pixels), (x, y + _CAPTION))
        y += _CAPTION + before.shape[0] + MARGIN
    return image
