"""How tiles are marked on a map by what was done with them: by colour, and for those who see few, by form."""

from __future__ import annotations

from typing import Literal

from PIL import ImageDraw

Form = Literal["outline", "double", "crossed", "corners"]

MARKS: dict[str, tuple[tuple[int, int, int], Form]] = {
    "blended": ((86, 180, 233), "outline"),
    "retried": ((0, 200, 150), "double"),
    "kept": ((240, 170, 215), "crossed"),
    "skipped": ((175, 175, 175), "corners"),
    "given up": ((255, 255, 255), "crossed"),
}
"""Action to colour and form. The hues are among those that Okabe and Ito found all kinds of eyes to tell apart (*Color
Universal Design*, 2008), lightened for a dark ground."""

_DETAILED = 10
"""Sides, px, below which there is room for an outline alone."""
_GAP = 3
"""Between the two outlines, px."""


def mark(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], action: str) -> None:
    """Mark a box: its first and last pixels, x and y, (x0, y0, x1, y1)."""
    colour, form = MARKS[action]
    x0, y0, x1, y1 = box
    detailed = min(x1 - x0, y1 - y0) >= _DETAILED
    if form == "corners" and detailed:
        _corners(draw, box, colour)
        return
    draw.rectangle(box, outline=colour)
    if form == "double" and detailed:
        draw.rectangle((x0 + _GAP, y0 + _GAP, x1 - _GAP, y1 - _GAP), outline=colour)
    if form == "crossed" and detailed:
        draw.line((x0, y0, x1, y1), fill=colour)
        draw.line((x0, y1, x1, y0), fill=colour)


def _corners(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], colour: tuple[int, int, int]) -> None:
    x0, y0, x1, y1 = box
    arm = min(x1 - x0, y1 - y0) // 4
    for x, inward in ((x0, arm), (x1, -arm)):
        for y, down in ((y0, arm), (y1, -arm)):
            draw.line((x, y, x + inward, y), fill=colour)
            draw.line((x, y, x, y + down), fill=colour)
