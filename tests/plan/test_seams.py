"""No seams: tiles of a model whose exact answer is known, merged, against one pass over the whole image."""

from __future__ import annotations

import logging
import pickle
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from grf import (
    GrfDenoiser,
    Spectrum,
    from_uint16,
    high_pass_energy,
    make_field,
    meridian_mask,
    seam_energy_ratio,
    seam_mask,
    to_uint16,
)

from dino_ray.diffusion.denoiser import Conditioning
from dino_ray.plan.blend import blend
from dino_ray.plan.geometry import Grid, Rect, make_grid
from dino_ray.plan.noise import field

TILE = 128
STEPS = 4
SEED = 7

log = logging.getLogger(__name__)


def canvas_side(overlap: int) -> int:
    """Four tiles a side at exactly this overlap."""
    return TILE + 3 * (TILE - overlap)


@cache
def image_of(side: int, closed: bool = False) -> np.ndarray:
    return make_field(side, seed=1, closed=closed)


def refine(
    denoiser: GrfDenoiser, rect: Rect, image: np.ndarray, denoise: float, period: int | None = None
) -> np.ndarray:
    noise = torch.from_numpy(field(SEED, 3, rect, period))[None]
    window = image[rect.y : rect.y1, np.arange(rect.x, rect.x1) % image.shape[1]]
    x = denoiser.noised(denoiser.encode(from_uint16(window)), noise, denoise)
    for sigma, to in pairwise(denoiser.sigmas(denoise, STEPS, (rect.h, rect.w)).tolist()):
        x0 = denoiser.predict(x, sigma, Conditioning())
        x = x0 + to / sigma * (x - x0)
    return to_uint16(denoiser.decode(x)[0])


@cache
def whole_pass(side: int, denoise: float, closed: bool = False) -> np.ndarray:
    whole = Rect(0, 0, side, side)
    return refine(
        GrfDenoiser(closed=closed), whole, image_of(side, closed), denoise, side if closed else None
    )


def mosaic(denoiser: GrfDenoiser, grid: Grid, denoise: float, noise_closes: bool = True) -> np.ndarray:
    image, period = image_of(grid.width, grid.wrap), grid.xs.period if noise_closes else None
    tiles = {i: refine(denoiser, grid.tile_rect(i), image, denoise, period) for i in range(grid.n_tiles)}
    canvas = np.zeros_like(image)
    for j in range(grid.n_cells):
        canvas[grid.cell_rect(j).slices] = blend(grid, j, tiles)
    return canvas


@pytest.mark.parametrize("overlap", [16, 32, 64])
@pytest.mark.parametrize("denoise", [0.3, 0.6, 0.9])
def test_noise_of_the_place_leaves_no_seams_and_noise_of_the_tile_does(denoise: float, overlap: int) -> None:
    side = canvas_side(overlap)
    grid = make_grid(side, side, tile=TILE, overlap=overlap, multiple=16)
    assert {a + TILE - b for a, b in pairwise(grid.xs.origins)} == {overlap}
    whole = whole_pass(side, denoise)
    of_place = seam_energy_ratio(mosaic(GrfDenoiser(), grid, denoise), whole, grid)
    of_tile = seam_energy_ratio(mosaic(GrfDenoiser(noise_per_tile=True), grid, denoise), whole, grid)
    log.info(
        "denoise %.1f, overlap %d: energy along seams, noise of the place %+.3f %%, of the tile %+.1f %%",
        *(denoise, overlap, 100 * (of_place - 1), 100 * (of_tile - 1)),
    )
    assert abs(of_place - 1) < 0.005
    assert of_tile < 0.75


@pytest.mark.parametrize("overlap", [16, 32, 64])
@pytest.mark.parametrize("denoise", [0.3, 0.6, 0.9])
def test_the_seam_at_180_degrees_is_as_good_as_any_other(denoise: float, overlap: int) -> None:
    side = 4 * (TILE - overlap)  # four tiles around at exactly this overlap
    grid = make_grid(side, side, tile=TILE, overlap=overlap, multiple=16, wrap=True)
    assert (grid.xs.n_tiles, len(grid.xs.ramps)) == (4, 4)
    whole = whole_pass(side, denoise, closed=True)
    merged = mosaic(GrfDenoiser(), grid, denoise)
    kept = [seam_energy_ratio(merged, whole, grid, meridian_mask(grid, seam)) for seam in range(4)]
    log.info(
        "denoise %.1f, overlap %d: energy along the meridians' seams %s %%, that at 180° last",
        *(denoise, overlap, ", ".join(f"{100 * (ratio - 1):+.3f}" for ratio in kept)),
    )
    assert all(abs(ratio - 1) < 0.005 for ratio in kept)


@pytest.mark.parametrize("side", [TILE, TILE + 16, 2 * TILE - 16])
def test_a_panorama_hardly_wider_than_a_tile_has_no_seams_either(side: int) -> None:
    grid = make_grid(side, side, tile=TILE, overlap=32, multiple=16, wrap=True)
    assert grid.xs.n_tiles in (2, 3)
    whole = whole_pass(side, 0.6, closed=True)
    merged = mosaic(GrfDenoiser(), grid, 0.6)
    for seam in range(grid.xs.n_tiles):
        kept = seam_energy_ratio(merged, whole, grid, meridian_mask(grid, seam))
        assert abs(kept - 1) < 0.005


def test_noise_that_does_not_close_would_show_at_180_degrees_alone() -> None:
    side = 4 * (TILE - 32)
    grid = make_grid(side, side, tile=TILE, overlap=32, multiple=16, wrap=True)
    whole = whole_pass(side, 0.6, closed=True)
    merged = mosaic(GrfDenoiser(), grid, 0.6, noise_closes=False)
    *others, last = [seam_energy_ratio(merged, whole, grid, meridian_mask(grid, seam)) for seam in range(4)]
    assert all(abs(ratio - 1) < 0.005 for ratio in others)
    assert last < 0.75


def test_away_from_the_seams_noise_of_the_tile_has_its_full_energy() -> None:
    grid = make_grid(canvas_side(16), canvas_side(16), tile=TILE, overlap=16, multiple=16)
    ramps = np.zeros((grid.height, grid.width), bool)
    for start, stop in grid.xs.ramps:
        ramps[:, start - 1 : stop + 1] = True
    ramps |= ramps.T
    assert (ramps | ~seam_mask(grid)).all()
    merged = high_pass_energy(mosaic(GrfDenoiser(noise_per_tile=True), grid, 0.6))
    whole = high_pass_energy(whole_pass(grid.width, 0.6))
    assert merged[~ramps].sum() / whole[~ramps].sum() == pytest.approx(1, abs=0.02)


def test_the_field_has_unit_variance_and_fits_16_bits() -> None:
    plane = torch.meshgrid(torch.fft.fftfreq(2048), torch.fft.fftfreq(2048), indexing="ij")
    assert float(Spectrum()(torch.hypot(*plane)).mean()) == pytest.approx(1, abs=0.05)
    image = make_field(512, seed=3)
    assert image.shape == (512, 512, 3)
    assert ((image == 0) | (image == 65535)).mean() < 1e-4
    assert (make_field(512, seed=3) == image).all()


@pytest.mark.parametrize("sigma", [0.3, 0.6, 0.9])
def test_the_prediction_is_the_posterior_mean(sigma: float) -> None:
    denoiser = GrfDenoiser()
    clean = denoiser.encode(from_uint16(make_field(512, seed=5)))
    noise = torch.from_numpy(field(5, 3, Rect(0, 0, 512, 512)))[None]
    seen = denoiser.noised(clean, noise, sigma)
    error = denoiser.predict(seen, sigma, Conditioning()) - clean
    # No estimate has a smaller error than the posterior's variance, and only its mean has that one.
    plane = torch.meshgrid(torch.fft.fftfreq(512), torch.fft.fftfreq(512), indexing="ij")
    power = denoiser.spectrum(torch.hypot(*plane))
    variance = float((power * sigma**2 / ((1 - sigma) ** 2 * power + sigma**2)).mean())
    assert float((error**2).mean()) == pytest.approx(variance, rel=0.05)


def test_the_model_travels_to_workers_and_back() -> None:
    denoiser = GrfDenoiser(overlap=32, noise_per_tile=True)
    assert pickle.loads(pickle.dumps(denoiser)) == denoiser
    pixels = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(denoiser.decode(denoiser.encode(pixels)), pixels)
    assert denoiser.sigmas(0.3, 5, (8, 8))[[0, -1]].tolist() == pytest.approx([0.3, 0])
