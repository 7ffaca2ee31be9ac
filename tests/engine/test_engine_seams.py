"""No seams, through the whole engine: source, base, replica, merge tasks' code, canvas; against one whole-image pass.

The model is a Gaussian random field's exact one (``grf``). ``pytest -o log_cli=true --log-cli-level=INFO`` on this file
prints the table.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from grf import GrfDenoiser, make_field, meridian_mask, seam_energy_ratio
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dino_ray.engine.drive import drive
from dino_ray.engine.local import LocalEngine
from dino_ray.engine.protocol import ImageTask, ReplicaSpec
from dino_ray.plan.geometry import Grid, Rect, Scaling, make_grid
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.source import ingest_array
from dino_ray.raster.wrapped import Wrapped
from dino_ray.upsample import Lanczos

TILE = 128
STEPS = 4

log = logging.getLogger(__name__)


def grid_of(side: int, tile: int, overlap: int, wrap: bool = False) -> Grid:
    return make_grid(side, side, tile=tile, overlap=overlap, multiple=16, wrap=wrap)


def made(folder: Path, image: np.ndarray, grid: Grid, spec: ReplicaSpec, denoise: float = 0.0) -> np.ndarray:
    """What the engine makes of an image on this grid, whose size is the result's."""
    folder.mkdir()
    source = ingest_array(image, folder / "source.zarr")
    scaling = Scaling(source.info.width, source.info.height, grid.width, grid.height)
    cell = (grid.ys.cell, grid.xs.cell)
    canvas = Canvas.create(folder / "canvas.zarr", grid.width, grid.height, 3, source.info.dtype, cell)
    readable = Wrapped(source) if grid.wrap else source
    task = ImageTask(readable, scaling, grid, canvas, denoise=denoise, steps=STEPS, seed=7)
    with LocalEngine(replace(spec, threads=1)) as engine:
        guide, _ = engine.prepare(task)
        drive(engine, task, guide, lambda event: None)
    return canvas.read(Rect(0, 0, grid.width, grid.height))


def refined(folder: Path, field: np.ndarray, grid: Grid, denoise: float, denoiser: GrfDenoiser) -> np.ndarray:
    """The field, refined in place (scale 1) with this grid."""
    return made(folder, field, grid, ReplicaSpec(Lanczos, lambda: denoiser), denoise)


@pytest.mark.parametrize("overlap", [16, 32, 64])
@pytest.mark.parametrize("denoise", [0.3, 0.6, 0.9])
def test_seams_have_the_energy_of_a_whole_image_pass(tmp_path: Path, denoise: float, overlap: int) -> None:
    side = TILE + 2 * (TILE - overlap)  # three tiles a side, at exactly this overlap
    field = make_field(side, seed=1)
    grid = grid_of(side, TILE, overlap)
    one_tile = grid_of(side, -(-side // 16) * 16, 0)
    assert (grid.n_tiles, one_tile.n_tiles) == (9, 1)
    whole = refined(tmp_path / "whole", field, one_tile, denoise, GrfDenoiser())
    of_place = refined(tmp_path / "place", field, grid, denoise, GrfDenoiser())
    of_tile = refined(tmp_path / "tile", field, grid, denoise, GrfDenoiser(noise_per_tile=True))
    kept, lost = seam_energy_ratio(of_place, whole, grid) - 1, seam_energy_ratio(of_tile, whole, grid) - 1
    log.info("denoise %.1f, overlap %d: noise of the place %+.2f %%, of the tile %+.1f %%",
             denoise, overlap, 100 * kept, 100 * lost)  # fmt: skip
    assert abs(kept) < 0.005
    assert lost < -0.25


@pytest.mark.parametrize("overlap", [16, 32, 64])
def test_the_seam_of_a_panorama_at_180_degrees_has_the_energy_of_a_whole_image_pass(
    tmp_path: Path, overlap: int
) -> None:
    side, denoise = 3 * (TILE - overlap), 0.6  # three tiles around, at exactly this overlap
    panorama = make_field(side, seed=1, closed=True)
    around = grid_of(side, TILE, overlap, wrap=True)
    assert around.xs.n_tiles == len(around.xs.ramps) == 3
    merged = refined(tmp_path / "around", panorama, around, denoise, GrfDenoiser())
    one_tile = grid_of(side, -(-side // 16) * 16, 0)
    whole = refined(tmp_path / "whole", panorama, one_tile, denoise, GrfDenoiser(closed=True))
    kept = [seam_energy_ratio(merged, whole, around, meridian_mask(around, seam)) - 1 for seam in range(3)]
    log.info("overlap %d: %s %%, that at 180° last", overlap, [f"{100 * ratio:+.2f}" for ratio in kept])
    assert all(abs(ratio) < 0.005 for ratio in kept)


@pytest.mark.parametrize("width", [TILE, TILE // 2])
def test_a_panorama_no_wider_than_a_tile_closes_as_a_whole_image_pass_does(
    tmp_path: Path, width: int
) -> None:
    denoise = 0.6
    panorama = make_field(width, seed=1, closed=True)
    around = grid_of(width, TILE, 16, wrap=True)
    assert around.xs.n_tiles == 2  # the edges of one are the middle of the other
    merged = refined(tmp_path / "around", panorama, around, denoise, GrfDenoiser())
    one_tile = grid_of(width, width, 0)
    whole = refined(tmp_path / "whole", panorama, one_tile, denoise, GrfDenoiser(closed=True))
    open_ = refined(tmp_path / "open", panorama, one_tile, denoise, GrfDenoiser())

    def at_the_edge(image: np.ndarray) -> float:
        """Mean distance from the whole pass, of the columns that meet, in levels of 255."""
        columns = [0, 1, -2, -1]
        return float(np.abs(image[:, columns].astype(float) - whole[:, columns]).mean() * 255 / 65535)

    log.info("%d wide: %.3f around, %.3f open", width, at_the_edge(merged), at_the_edge(open_))
    assert at_the_edge(merged) < at_the_edge(open_) / 20


@pytest.mark.parametrize("turn", [24, 1, 95])
@pytest.mark.parametrize(("scale", "overlap"), [(2, 16), (2, 0), (1, 32), (4, 16)])
def test_a_panorama_turned_before_is_the_panorama_turned_after(
    tmp_path: Path, scale: int, overlap: int, turn: int
) -> None:
    panorama = np.random.default_rng(0).integers(0, 256, (40, 96, 3), dtype=np.uint8)
    grid = make_grid(96 * scale, 40 * scale, tile=64, overlap=overlap, multiple=16, wrap=True)
    spec = ReplicaSpec(Lanczos, torch=False)
    turned = made(tmp_path / "before", np.roll(panorama, turn, axis=1), grid, spec)
    expected = np.roll(made(tmp_path / "after", panorama, grid, spec), turn * scale, axis=1)
    np.testing.assert_array_equal(turned, expected)


def test_the_features_of_a_panorama_close_and_those_of_another_image_do_not(tmp_path: Path) -> None:
    class Means:
        name, patch, dim = "means", 14, 3

        def __call__(self, pixels: Tensor) -> Tensor:
            return avg_pool2d(pixels, self.patch).permute(0, 2, 3, 1)

    source = ingest_array(np.full((40, 100, 3), 128, np.uint8), tmp_path / "source.zarr")
    canvas = Canvas.create(tmp_path / "canvas.zarr", 192, 80, 3, "uint8", (16, 16))
    with LocalEngine(ReplicaSpec(Lanczos, dino=Means)) as engine:
        for wrap, readable in ((True, Wrapped(source)), (False, source)):
            grid = make_grid(192, 80, tile=64, overlap=16, multiple=16, wrap=wrap)
            task = ImageTask(
                readable,
                Scaling(100, 40, 192, 80),
                grid,
                canvas,
                dino_tokens=True,
                dino_strength=1,
                adaptive=1,
            )
            guide, _ = engine.prepare(task)
            features = guide.features
            assert (features.coarse.closed, features.fine.closed) == (wrap, wrap)
            assert guide.structure.closed == wrap
