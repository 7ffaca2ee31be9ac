"""What the pictures of a report are drawn with: canvases made small, pixels made visible, text."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dino_ray.raster.canvas import Canvas
from dino_ray.upsample import unit_range

INK, PAPER = (230, 230, 230), (24, 24, 24)
"""Of text, and of what lies behind everything: pictures are looked at on screens."""
TEXT_PX = 13
MARGIN = 8

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_BEHIND = 0.5
"""What is seen through transparent pixels."""


def reduced(canvas: Canvas, width: int, height: int) -> NDArray[np.float32]:
    """The mean of a canvas's pixels under each pixel of a smaller picture.

    The canvas is read once, by bands of rows.

    Parameters
    ----------
    width, height
        Of the picture, at most the canvas's own.

    Returns
    -------
    (height, width, bands) in [0, 1].
    """
    lefts = np.arange(width) * canvas.width // width
    edges = np.arange(height + 1) * canvas.height // height
    sums = np.zeros((height, width, canvas.bands))
    top = 0
    for band in canvas.rows():
        first = int(np.searchsorted(edges, top, side="right")) - 1
        last = int(np.searchsorted(edges, top + len(band), side="left"))
        starts = np.maximum(edges[first:last] - top, 0)
        rows = np.add.reduceat(band, starts, axis=0, dtype=np.uint32)
        sums[first:last] += np.add.reduceat(rows, lefts, axis=1, dtype=np.uint64)
        top += len(band)
    columns = np.diff(np.append(lefts, canvas.width))
    sums /= (np.diff(edges)[:, None] * columns)[..., None] * float(np.iinfo(canvas.dtype).max)
    return sums.astype(np.float32)


def visible(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels of 1 to 4 bands, of full range or in [0, 1], as RGB of 8 bits; what is transparent shows grey."""
    values = pixels if pixels.dtype.kind == "f" else unit_range(pixels)
    bands = values.shape[2]
    colour = values[..., : bands - (bands % 2 == 0)]
    if bands % 2 == 0:
        alpha = values[..., -1:]
        colour = colour * alpha + _BEHIND * (1 - alpha)
    rgb = np.repeat(colour, 3, axis=2) if colour.shape[2] == 1 else colour
    return np.asarray(np.clip(np.rint(rgb * 255), 0, 255), np.uint8)


def luma(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Brightness of (h, w, 3), 0 to 255."""
    brightness: NDArray[np.float32] = rgb @ _LUMA
    return brightness


def font(size: int = TEXT_PX) -> Any:
    """The one that Pillow has with it."""
    return ImageFont.load_default(size)


def text_width(text: str) -> int:
    """Of a line in ``font``, px."""
    return int(font().getlength(text)) + 1


def write(draw: ImageDraw.ImageDraw, x: int, y: int, text: str) -> None:
    """Put a line of text with its top left corner there."""
    draw.text((x, y), text, fill=INK, font=font())


def to_png(image: Image.Image, icc: bytes | None = None) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=icc)
    return buffer.getvalue()
