"""A picture of where a result has drifted from its source, and of what was done with its tiles."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dino_ray.fidelity.record import ACTIONS, HEAT_ALARM, HEAT_SIDE
from dino_ray.fidelity.summary import Ledger
from dino_ray.plan.axis import Axis
from dino_ray.plan.geometry import Grid, Rect
from dino_ray.raster.canvas import Canvas
from dino_ray.report.drawing import MARGIN, PAPER, TEXT_PX, luma, reduced, text_width, visible, write
from dino_ray.report.tilemarks import MARKS, mark

LONGEST = 1600
"""Sides of the map, px: what a screen shows, whatever the canvas's size."""
_NARROWEST = 480
"""Of the picture, for the legend's sake."""

_SCALE = {
    0: (40, 20, 90),
    64: (95, 30, 130),
    HEAT_ALARM: (205, 55, 85),
    192: (250, 145, 40),
    255: (255, 245, 150),
}
"""Drift to colour. Ever lighter, from blue to yellow, so that it reads without red and green, and without colour."""
_OPAQUE = 0.85
"""How much of the picture the drift hides from the alarm on; below, in proportion."""
_DARKEST, _CONTRAST = 20, 0.5
"""Of the result beneath: dark grey, so that whatever shines is drift."""
_CONTOUR = (255, 255, 255)

_BAR = (180, 12)
_LINE = TEXT_PX + 9


def heat_map(
    canvas: Canvas, grid: Grid, ledger: Ledger, fidelity: Mapping[str, Any], given_up: Collection[int] = ()
) -> Image.Image:
    """Draw the result in dim grey, the drift of its tiles over it, outlines around what was not accepted as it was.

    A white line runs where the drift reaches the alarm. A tile is drawn over what it gives to the result, to the middle
    of the ramps around it; one that goes around a closed canvas lies on both sides. Of tiles smaller than a pixel of
    the picture only some are seen.

    Parameters
    ----------
    canvas
        With all its cells.
    fidelity
        What ``summary`` made of the ledger.
    given_up
        Tiles that no replica could refine.

    Returns
    -------
    PIL image, RGB; the map is at most ``LONGEST`` px a side, at the top left, with a legend below.
    """
    width, height = picture_size(grid.width, grid.height)
    beneath = _DARKEST + _CONTRAST * luma(visible(reduced(canvas, width, height)))
    image = Image.fromarray(_blend(beneath, _drift(grid, ledger.heat, width, height)))
    _outline(image, grid, ledger, given_up)
    return _with_legend(image, fidelity, len(given_up))


def picture_size(width: int, height: int) -> tuple[int, int]:
    """Of the map of a canvas, px."""
    longest = max(width, height, LONGEST)
    return max(1, width * LONGEST // longest), max(1, height * LONGEST // longest)


# ---- the map


def _blend(beneath: NDArray[np.float32], drift: NDArray[np.float32]) -> NDArray[np.uint8]:
    opacity = _OPAQUE * np.minimum(drift / HEAT_ALARM, 1)
    pixels = coloured(drift)
    pixels -= beneath[..., None]
    pixels *= opacity[..., None]
    pixels += beneath[..., None]
    high = np.pad(drift >= HEAT_ALARM, 1, mode="edge")
    inside = high[1:-1, :-2] & high[1:-1, 2:] & high[:-2, 1:-1] & high[2:, 1:-1]
    pixels[high[1:-1, 1:-1] & ~inside] = _CONTOUR
    return np.rint(pixels, out=pixels).astype(np.uint8)


def coloured(drift: NDArray[np.float32]) -> NDArray[np.float32]:
    """The colour of each drift, levels of 255 both."""
    levels, colours = list(_SCALE), np.array(list(_SCALE.values()), float)
    pixels = np.empty((*drift.shape, 3), np.float32)
    for band in range(3):
        pixels[..., band] = np.interp(drift, levels, colours[:, band])
    return pixels


def _drift(grid: Grid, heat: NDArray[np.uint8], width: int, height: int) -> NDArray[np.float32]:
    """The drift under each pixel of the picture, between the middles of squares in proportion."""
    columns, x, fx = _squares(grid.xs, width)
    rows, y, fy = _squares(grid.ys, height)
    tiles = rows[:, None] * grid.xs.n_tiles + columns
    drift = np.zeros((height, width), np.float32)
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            down, across = np.minimum(y + dy, HEAT_SIDE - 1)[:, None], np.minimum(x + dx, HEAT_SIDE - 1)
            drift += (wy[:, None] * wx).astype(np.float32) * heat[tiles, down, across]
    return drift


def _squares(axis: Axis, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Of each of the picture's pixels along an axis: the tile, its square, and how far it is to the next square."""
    centres = (np.arange(count) + 0.5) * axis.length / count
    ends = np.array([share[1] for share in shares(axis)])
    around = np.searchsorted(ends, centres + axis.length, side="right")
    turned = (around < axis.n_tiles) & axis.closed  # the last tiles, as they reach in from the left
    tiles = np.where(turned, around, np.searchsorted(ends, centres, side="right"))
    place = centres + turned * axis.length - np.array(axis.origins)[tiles]
    at = np.clip(place * HEAT_SIDE / axis.tile - 0.5, 0, HEAT_SIDE - 1)
    squares = at.astype(np.intp)
    return tiles, squares, at - squares


def shares(axis: Axis) -> list[tuple[int, int]]:
    """Half-open interval of each tile in which it is the one that is seen most, canvas_px; of a closed axis, the last
    may end past its length.
    """
    middles = [(start + stop) // 2 for start, stop in axis.ramps]
    if axis.closed:
        return list(zip([middles[-1] - axis.length, *middles], middles, strict=False))
    return list(zip([0, *middles], [*middles, axis.length], strict=True))


# ---- what lies over it


def _outline(image: Image.Image, grid: Grid, ledger: Ledger, given_up: Collection[int]) -> None:
    draw = ImageDraw.Draw(image)
    across, down = shares(grid.xs), shares(grid.ys)
    actions = ledger.actions
    quiet = (0, 1 + ACTIONS.index("accepted"))
    marked = {tile: ACTIONS[actions[tile] - 1] for tile in np.flatnonzero(~np.isin(actions, quiet)).tolist()}
    for tile, action in [*marked.items(), *((tile, "given up") for tile in given_up)]:
        row, column = grid.tile_position(tile)
        (x0, x1), (y0, y1) = across[column], down[row]
        seen = Rect(x0, y0, x1 - x0, y1 - y0)
        for part in seen.turns(grid.width) if grid.wrap else (seen,):
            mark(draw, _on_picture(part, grid, image), action)


def _on_picture(rect: Rect, grid: Grid, image: Image.Image) -> tuple[int, int, int, int]:
    """First and last pixels, of both axes, of a window of the canvas."""
    x0, x1 = (x * image.width // grid.width for x in (rect.x, rect.x1))
    y0, y1 = (y * image.height // grid.height for y in (rect.y, rect.y1))
    return x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)


# ---- the legend


def _with_legend(image: Image.Image, fidelity: Mapping[str, Any], given_up: int) -> Image.Image:
    width = max(image.width, _NARROWEST)
    counts = {**fidelity["actions"], "given up": given_up}
    items = [("", text) for text in _in_numbers(fidelity)]
    items += [(action if action in MARKS else "", f"{n:,} {action}") for action, n in counts.items() if n]
    if fidelity["unrecorded"]:
        items.append(("", f"{fidelity['unrecorded']:,} unrecorded"))
    lines: list[list[tuple[int, str, str]]] = [[]]
    x = MARGIN
    for action, text in items:
        room = text_width(text) + (_LINE if action else 0)
        if x + room > width - MARGIN and lines[-1]:
            lines.append([])
            x = MARGIN
        lines[-1].append((x, action, text))
        x += room + 2 * MARGIN
    whole = Image.new("RGB", (width, image.height + 2 * MARGIN + (2 + len(lines)) * _LINE), PAPER)
    whole.paste(image, (0, 0))
    draw = ImageDraw.Draw(whole)
    top = image.height + MARGIN
    _draw_scale(whole, draw, top)
    for number, line in enumerate(lines, 2):
        for x, action, text in line:
            y = top + number * _LINE
            if action:
                mark(draw, (x, y, x + TEXT_PX, y + TEXT_PX), action)
            write(draw, x + (_LINE if action else 0), y, text)
    return whole


def _draw_scale(image: Image.Image, draw: ImageDraw.ImageDraw, top: int) -> None:
    levels = np.broadcast_to(np.linspace(0, 255, _BAR[0], dtype=np.float32), _BAR[::-1])
    ground = np.full(levels.shape, _DARKEST, np.float32)
    image.paste(Image.fromarray(_blend(ground, levels)), (MARGIN, top))
    at = MARGIN + round(HEAT_ALARM / 255 * _BAR[0])
    for x, text in ((MARGIN, "drift 0"), (at, "alarm"), (MARGIN + _BAR[0], "twice that")):
        draw.line((x, top, x, top + _BAR[1] + 3), fill=_CONTOUR)
        write(draw, x, top + _BAR[1] + 4, text)


def _in_numbers(fidelity: Mapping[str, Any]) -> list[str]:
    """What there is of the numbers over all."""
    texts = {
        "cosine_mean": "cosine mean {:.4f}",
        "cosine_p10": "10th percentile {:.4f}",
        "cosine_min": "worst patch {:.4f}",
        "consistency_db": "consistency {:.1f} dB",
        "colour_drift_max": "colour drift at most {:.1f} of 255",
    }
    return [text.format(fidelity[name]) for name, text in texts.items() if fidelity[name] is not None]
