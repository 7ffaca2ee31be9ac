"""Crops of several versions of a picture, side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dino_ray.report.metrics import luma

Pixels = NDArray[np.uint8]

CROP = 112
"""Truth px of a crop on the sheet: few enough to tell pixels apart, enough to show a thing."""
ENLARGED = 2
"""Sheet px per truth px."""
GAP, CAPTION = 8, 26


def busiest(truth: Pixels, side: int) -> tuple[int, int]:
    """Left and top of the window of ``side`` px with the most gradient, on a lattice of quarter windows."""
    energy = np.hypot(*np.gradient(luma(truth)))
    step = side // 4
    windows = {
        (x, y): float(energy[y : y + side, x : x + side].sum())
        for y in range(0, truth.shape[0] - side + 1, step)
        for x in range(0, truth.shape[1] - side + 1, step)
    }
    return max(windows, key=lambda place: windows[place])


def sheet(rows: list[dict[str, Pixels]]) -> Image.Image:
    """A row per picture: the same crop of each of its versions, of which one is the "truth"."""
    columns = list(rows[0])
    cell = CROP * ENLARGED
    width = GAP + len(columns) * (cell + GAP)
    out = Image.new("RGB", (width, CAPTION + len(rows) * (cell + GAP)), "white")
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(15)
    for i, name in enumerate(columns):
        draw.text((GAP + i * (cell + GAP), 5), name, fill="black", font=font)
    for j, images in enumerate(rows):
        left, top = busiest(images["truth"], CROP)
        for i, image in enumerate(images.values()):
            per = images["truth"].shape[1] / image.shape[1]
            box = (left / per, top / per, (left + CROP) / per, (top + CROP) / per)
            crop = Image.fromarray(image).resize((cell, cell), Image.Resampling.NEAREST, box=box)
            out.paste(crop, (GAP + i * (cell + GAP), CAPTION + j * (cell + GAP)))
    return out
