"""Small canvases, and the sources they were made from."""

import numpy as np

from dino_ray.raster.canvas import Canvas
from dino_ray.raster.info import SourceInfo
from dino_ray.raster.metadata import Metadata

HEIGHT, WIDTH = 70, 110


def noise(bands, dtype, height=HEIGHT, width=WIDTH, seed=0):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top + 1, (height, width, bands)).astype(dtype)


def painted(folder, pixels, cell=(32, 48)):
    height, width, bands = pixels.shape
    canvas = Canvas.create(folder, width, height, bands, pixels.dtype.name, cell)
    for row in range(canvas.cells[0]):
        for column in range(canvas.cells[1]):
            rect = canvas.cell_rect(row, column)
            canvas.write(rect, pixels[rect.slices])
    return canvas


def source_of(canvas, icc=None, dpi=None, metadata=None):
    """A source half as large as the canvas."""
    alpha = canvas.bands in (2, 4)
    size = (max(1, canvas.width // 2), max(1, canvas.height // 2))
    return SourceInfo(
        "source", *size, canvas.bands, canvas.dtype, alpha, icc, dpi, metadata=metadata or Metadata()
    )
