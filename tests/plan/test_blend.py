from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import verifier
from hypothesis import assume, given
from hypothesis import strategies as st
from layouts import Request, requests, small_requests

from dino_ray.plan.blend import RAMP_ONE, blend, ramp, to_depth
from dino_ray.plan.geometry import Grid, make_grid


def assemble(grid: Grid, tiles: dict[int, np.ndarray]) -> np.ndarray:
    """The canvas, each cell given no more than the tiles that it names."""
    canvas = np.zeros((grid.height, grid.width, tiles[0].shape[2]), np.uint16)
    for j in range(grid.n_cells):
        canvas[grid.cell_rect(j).slices] = blend(grid, j, {i: tiles[i] for i in grid.cell_tiles(j)})
    return canvas


def random_tiles(grid: Grid, seed: int, channels: int = 3) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (grid.ys.tile, grid.xs.tile, channels)
    return {i: rng.integers(0, 2**16, shape, dtype=np.uint16) for i in range(grid.n_tiles)}


def corners(grid: Grid) -> list[tuple[int, int]]:
    return [(grid.tile_rect(i).x, grid.tile_rect(i).y) for i in range(grid.n_tiles)]


@given(requests(longest=150, shortest_tile=4))
def test_weights_sum_to_65536_at_every_pixel(request_: Request) -> None:
    grid = request_.grid()
    tables = [verifier.weights(axis.length, axis.ramps, axis.closed) for axis in (grid.ys, grid.xs)]
    assert all(table.min() >= 0 for table in tables)
    assert (np.outer(*(table.sum(0) for table in tables)) == 65_536).all()


@given(small_requests(), st.integers(0, 2**32), st.sampled_from([1, 3, 4]))
def test_blending_is_the_verifiers_weighted_mean(request_: Request, seed: int, channels: int) -> None:
    grid = request_.grid()
    tiles = random_tiles(grid, seed, channels)
    plane = verifier.plane_weights(grid.width, grid.height, grid.xs.ramps, grid.ys.ramps, grid.wrap)
    expected = verifier.mosaic(grid.width, grid.height, corners(grid), plane, tiles, grid.wrap)
    assert (assemble(grid, tiles) == expected).all()


@given(small_requests(), st.integers(0, 2**32))
def test_what_the_tiles_agree_on_survives_exactly(request_: Request, seed: int) -> None:
    grid = request_.grid()
    rng = np.random.default_rng(seed)
    padded = (grid.ys.origins[-1] + grid.ys.tile, grid.xs.origins[-1] + grid.xs.tile, 3)
    image = rng.integers(0, 2**16, padded, dtype=np.uint16)
    if grid.wrap:
        image = image[:, np.arange(padded[1]) % grid.width]
    tiles = {i: image[grid.tile_rect(i).slices] for i in range(grid.n_tiles)}
    assert (assemble(grid, tiles) == image[: grid.height, : grid.width]).all()


@given(small_requests(), st.integers(0, 2**32), st.data())
def test_a_closed_canvas_turned_by_a_stride_is_made_of_the_same_tiles_turned(
    request_: Request, seed: int, data: st.DataObject
) -> None:
    width = max(2, request_.width // request_.multiple) * request_.multiple
    grid = replace(request_, wrap=True, width=width).grid()
    n = grid.xs.n_tiles
    strides = {grid.xs.origin(i + 1) - grid.xs.origin(i) for i in range(n)}
    assume(len(strides) == 1)
    turns = data.draw(st.integers(1, n - 1))
    tiles = random_tiles(grid, seed)
    turned = {i: tiles[i - i % n + (i - turns) % n] for i in tiles}
    assert (assemble(grid, turned) == np.roll(assemble(grid, tiles), grid.xs.origins[turns], axis=1)).all()


def test_every_constant_survives_at_8_and_16_bits() -> None:
    grid = make_grid(40, 40, tile=24, overlap=8, multiple=8)
    assert max(len(grid.cell_tiles(j)) for j in range(grid.n_cells)) == 4
    levels = np.arange(2**16, dtype=np.uint16)
    for constants in np.split(levels, 64):
        tile = np.broadcast_to(constants, (24, 24, len(constants)))
        canvas = assemble(grid, dict.fromkeys(range(grid.n_tiles), tile))
        assert (canvas == constants).all()
    bytes_ = np.arange(256, dtype=np.uint16)
    tile = np.broadcast_to(bytes_ * 257, (24, 24, 256))
    canvas = to_depth(assemble(grid, dict.fromkeys(range(grid.n_tiles), tile)), "uint8")
    assert (canvas == bytes_).all()


def test_the_order_in_which_tiles_arrive_is_irrelevant() -> None:
    grid = make_grid(100, 90, tile=48, overlap=16, multiple=8)
    tiles = random_tiles(grid, 1)
    backwards = dict(reversed(tiles.items()))
    for j in range(grid.n_cells):
        assert (blend(grid, j, tiles) == blend(grid, j, backwards)).all()


def test_read_only_and_strided_tiles_blend_and_stay_as_they_are() -> None:
    grid = make_grid(100, 90, tile=48, overlap=16, multiple=8)
    tiles = random_tiles(grid, 2)
    strided = {i: np.asfortranarray(tile) for i, tile in tiles.items()}
    before = {i: tile.copy() for i, tile in tiles.items()}
    for tile in strided.values():
        tile.flags.writeable = False
    assert (assemble(grid, strided) == assemble(grid, tiles)).all()
    assert all((tiles[i] == before[i]).all() for i in tiles)


@given(st.integers(1, 3000))
def test_ramps_rise_monotonously_symmetrically_and_never_reach_either_end(width: int) -> None:
    levels = ramp(width)
    assert levels.shape == (width,)
    assert (np.diff(levels) >= 0).all()
    assert (levels + levels[::-1] == RAMP_ONE).all()
    assert (levels > 0).all()
    assert (levels < RAMP_ONE).all()


def test_a_ramp_is_smooth_at_both_ends() -> None:
    slope = np.diff(ramp(128))
    assert slope[:8].max() <= 1
    assert slope.max() == 3


def test_8_bits_are_rounded_to_the_nearest() -> None:
    levels = np.arange(2**16, dtype=np.uint16)
    assert (to_depth(levels, "uint8") == np.rint(levels / 257)).all()
    assert to_depth(levels, "uint8").dtype == np.uint8
    assert to_depth(levels, "uint16") is levels


@pytest.mark.parametrize("value", [0, 2**16 - 1])
def test_sums_do_not_overflow_at_the_extremes(value: int) -> None:
    grid = make_grid(64, 64, tile=48, overlap=16, multiple=16)
    tile = np.full((48, 48, 3), value, np.uint16)
    assert (assemble(grid, dict.fromkeys(range(grid.n_tiles), tile)) == value).all()
