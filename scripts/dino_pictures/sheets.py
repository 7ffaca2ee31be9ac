"""Panels under captions, laid out on sheets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dino_ray.fidelity.record import HEAT_ALARM
from dino_ray.report.drawing import INK, MARGIN, PAPER, font
from dino_ray.report.heatmap import coloured

CAPTION_PX = 17
"""Pages show pictures somewhat reduced."""
THUMB = (384, 256)
"""Of the whole painting on a sheet."""
OPAQUE = 0.85
"""How much of a picture drift hides from the alarm on, as on the heat map."""

Pixels = NDArray[np.float32]
Panel = tuple[str, NDArray[Any]]
"""Caption, and pixels (h, w, 3): uint8, or floats in [0, 1]."""


def sheet(rows: Sequence[Sequence[Panel]], times: int = 1) -> Image.Image:
    """Panels of one size in rows, each under its caption; of pixels each as a square of ``times``."""
    first = enlarged(rows[0][0][1], times)
    height, width = first.shape[:2]
    line = CAPTION_PX + 2 * MARGIN
    whole = Image.new(
        "RGB",
        (len(rows[0]) * (width + MARGIN) + MARGIN, len(rows) * (height + line) + MARGIN),
        PAPER,
    )
    draw = ImageDraw.Draw(whole)
    for row, panels in enumerate(rows):
        for column, (caption, pixels) in enumerate(panels):
            x, y = MARGIN + column * (width + MARGIN), row * (height + line)
            draw.text((x, y + MARGIN), caption, fill=INK, font=font(CAPTION_PX))
            whole.paste(Image.fromarray(enlarged(pixels, times)), (x, y + line))
    return whole


def enlarged(pixels: NDArray[Any], times: int) -> NDArray[np.uint8]:
    if pixels.dtype.kind == "f":
        pixels = (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def thumb(pixels: Pixels) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(enlarged(pixels, 1)).resize(THUMB, Image.Resampling.LANCZOS))


def halved(pixels: Pixels) -> Pixels:
    h, w = (side // 2 for side in pixels.shape[:2])
    return pixels.reshape(h, 2, w, 2, 3).mean((1, 3), dtype=np.float32)


def glowing(pixels: Pixels, level: NDArray[np.float32]) -> NDArray[np.uint8]:
    """As the heat map shows it: (h, w, 3) in dim grey, and over it (h, w) levels of which 1 is the alarm."""
    heat = np.clip(level * HEAT_ALARM, 0, 255)
    opacity = OPAQUE * np.minimum(level, 1)[..., None]
    grey = 20 + 0.5 * 255 * pixels.clip(0, 1).mean(-1, keepdims=True)
    return np.rint(grey + opacity * (coloured(heat) - grey)).astype(np.uint8)
