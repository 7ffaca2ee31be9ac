"""No seams, through the whole engine: source, base, replica, merge tasks' code, canvas; against one whole-image pass.

The model is a Gaussian random field's exact one (``grf``). ``pytest -o log_cli=true --log-cli-level=INFO`` on this file
prints the table.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from grf import GrfDenoiser, make_field, seam_energy_ratio

from dino_ray.engine.drive import drive
from dino_ray.engine.local import LocalEngine
from dino_ray.engine.protocol import ImageTask, ReplicaSpec
from dino_ray.plan.geometry import Grid, Rect, Scaling, make_grid
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.source import ingest_array
from dino_ray.upsample import Lanczos

TILE = 128
STEPS = 4

log = logging.getLogger(__name__)


def grid_of(side: int, tile: int, overlap: int) -> Grid:
    return make_grid(side, side, tile=tile, overlap=overlap, multiple=16)


def refined(folder: Path, field: np.ndarray, grid: Grid, denoise: float, noise_per_tile: bool) -> np.ndarray:
    """The field, refined in place (scale 1) with this grid."""
    folder.mkdir()
    side = field.shape[0]
    source = ingest_array(field, folder / "source.zarr")
    canvas = Canvas.create(folder / "canvas.zarr", side, side, 3, "uint16", (grid.ys.cell, grid.xs.cell))
    task = ImageTask(
        source, Scaling(side, side, side, side), grid, canvas, denoise=denoise, steps=STEPS, seed=7
    )
    spec = ReplicaSpec(upsampler=Lanczos, denoiser=partial(GrfDenoiser, noise_per_tile=noise_per_tile))
    with LocalEngine(replace(spec, threads=1)) as engine:
        guide, _ = engine.prepare(task)
        drive(engine, task, guide, lambda event: None)
    return canvas.read(Rect(0, 0, side, side))


@pytest.mark.parametrize("overlap", [16, 32, 64])
@pytest.mark.parametrize("denoise", [0.3, 0.6, 0.9])
def test_seams_have_the_energy_of_a_whole_image_pass(tmp_path: Path, denoise: float, overlap: int) -> None:
    side = TILE + 2 * (TILE - overlap)  # three tiles a side, at exactly this overlap
    field = make_field(side, seed=1)
    grid = grid_of(side, TILE, overlap)
    one_tile = grid_of(side, -(-side // 16) * 16, 0)
    assert (grid.n_tiles, one_tile.n_tiles) == (9, 1)
    whole = refined(tmp_path / "whole", field, one_tile, denoise, noise_per_tile=False)
    of_place = refined(tmp_path / "place", field, grid, denoise, noise_per_tile=False)
    of_tile = refined(tmp_path / "tile", field, grid, denoise, noise_per_tile=True)
    kept, lost = seam_energy_ratio(of_place, whole, grid) - 1, seam_energy_ratio(of_tile, whole, grid) - 1
    log.info("denoise %.1f, overlap %d: noise of the place %+.2f %%, of the tile %+.1f %%",
             denoise, overlap, 100 * kept, 100 * lost)  # fmt: skip
    assert abs(kept) < 0.005
    assert lost < -0.25
