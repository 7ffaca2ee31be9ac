"""What of an image's job costs time and memory; from its header."""

from __future__ import annotations

import os
from typing import Literal

import numpy as np

from dino_ray.config import UpscaleConfig
from dino_ray.forecast.costs import Work, dino_bytes, dino_tokens
from dino_ray.forecast.memory import Shape
from dino_ray.places import is_url
from dino_ray.raster.source import needs_bytes, stored_bytes
from dino_ray.request import Image
from dino_ray.settings import Settings

BY_BLOCKS = ("tif", "tiff", "ome.zarr", "ome-zarr")
"""How the names of formats end, and of their files, that are written block by block."""
UINT16_BYTES = 2  # tiles travel at 16 bits, whatever the source's depth


def work_of(image: Image, settings: Settings) -> Work:
    """What of an image's job costs time and memory."""
    assert isinstance(image.source, str)
    info, grid = image.info, image.grid
    tokens = features = 0
    if settings.dino is not None:
        from dino_ray.dino.loading import describe

        facts = describe(settings.dino)
        tokens = dino_tokens(info.width, info.height, facts.patch)
        features = dino_bytes(info.width, info.height, facts.patch, facts.dim)
    return Work(
        tiles=grid.n_tiles,
        canvas_bytes=grid.width * grid.height * info.bands * np.dtype(image.dtype).itemsize,
        ingest_bytes=source_bytes(image, settings),
        file_bytes=0 if is_url(image.source) else os.path.getsize(image.source),
        tokens=tokens,
        feature_bytes=features,
    )


def source_bytes(image: Image, settings: Settings) -> int:
    """Disk that the source's store takes: none for a file that is read where it lies."""
    assert isinstance(image.source, str)
    if settings.shared or (image.place is not None and is_url(image.place)):
        return stored_bytes(image.info)
    return needs_bytes(image.source, settings.read)


def shape_of(image: Image, config: UpscaleConfig, settings: Settings) -> Shape:
    """What of an image's job decides how much memory its processes hold."""
    info, grid = image.info, image.grid
    known: Literal["lanczos", "net", "bundled"] | None = settings.base
    if settings.model is not None:
        known = "bundled" if settings.model.name == "bundled" else None
    model_bytes = settings.host_bytes
    if (known != "lanczos" or model_bytes is not None) and _uses_a_gpu(config):
        known = model_bytes = None
    name = settings.export.format or str(image.output).lower()
    tile_pixels = grid.xs.tile * grid.ys.tile
    return Shape(
        engine="local" if config.address == "none" else "ray",
        refines=known,
        tile_pixels=tile_pixels,
        tile_bytes=tile_pixels * info.bands * UINT16_BYTES,
        canvas_pixels=grid.width * grid.height,
        row_bytes=grid.width * info.bands * np.dtype(image.dtype).itemsize,
        band_rows=grid.ys.cell,
        batch=settings.batch,
        model_bytes=model_bytes,
        export="whole" if name.endswith("webp") else "blocks" if name.endswith(BY_BLOCKS) else "rows",
    )


def _uses_a_gpu(config: UpscaleConfig) -> bool:
    from dino_ray.diffusion.device import pick_device

    return pick_device(config.device) != "cpu"
