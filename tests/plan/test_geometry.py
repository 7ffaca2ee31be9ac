from __future__ import annotations

import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
import verifier
from hypothesis import given
from hypothesis import strategies as st
from layouts import Request, requests, small_requests

from dino_ray.errors import UsageError
from dino_ray.plan.geometry import Axis, Grid, Rect, make_grid


def axes(request: Request) -> list[tuple[Axis, int]]:
    grid = request.grid()
    return [(grid.xs, request.width), (grid.ys, request.height)]


def origins_with_next(axis: Axis) -> list[int]:
    """The origins and, of a closed axis, that of tile 0 on the next turn."""
    return [*axis.origins, *[axis.length] * axis.closed]


def overlap_asked(axis: Axis, request: Request) -> int:
    """The overlap requested, but no more than half of a tile that goes all around."""
    half = axis.tile // request.multiple // 2 * request.multiple
    return min(request.overlap, half) if axis.closed else request.overlap


@given(requests())
def test_tiles_start_on_the_models_grid_and_reach_just_past_the_canvas(request_: Request) -> None:
    for axis, length in axes(request_):
        end = axis.origins[-1] + axis.tile
        assert axis.length == length
        assert all(origin % request_.multiple == 0 for origin in axis.origins)
        assert axis.tile % request_.multiple == 0
        if axis.closed:
            assert axis.tile == min(request_.tile, length)
            assert length + overlap_asked(axis, request_) <= end < 2 * length
        else:
            assert axis.tile == request_.tile or len(axis.origins) == 1
            assert length <= end < length + request_.multiple


@given(requests())
def test_tiles_are_evenly_spaced_and_none_is_a_duplicate_or_a_sliver(request_: Request) -> None:
    for axis, length in axes(request_):
        strides = [b - a for a, b in pairwise(origins_with_next(axis))]
        if strides:
            assert min(strides) > 0
            assert max(strides) - min(strides) <= request_.multiple
        sticks_out = axis.origins[-1] + axis.tile - length
        for i in range(axis.n_tiles):
            lo, hi = axis.support(i)
            if i == axis.n_tiles - 1 and not axis.closed:
                hi += sticks_out
            assert hi - lo >= axis.tile / 4


@given(requests())
def test_neighbours_overlap_at_least_as_asked_with_as_few_tiles_as_that_takes(request_: Request) -> None:
    for axis, length in axes(request_):
        asked = overlap_asked(axis, request_)
        overlaps = [a + axis.tile - b for a, b in pairwise(origins_with_next(axis))]
        assert all(overlap >= asked for overlap in overlaps)
        on_grid = -(-asked // request_.multiple) * request_.multiple
        if axis.closed:
            assert axis.n_tiles == 2 or (axis.n_tiles - 1) * (axis.tile - on_grid) < length
        elif len(axis.origins) > 1:
            one_fewer = axis.tile + (len(axis.origins) - 2) * (axis.tile - on_grid)
            assert one_fewer < length


@given(requests())
def test_ramps_are_centred_in_the_overlap_with_context_on_either_side(request_: Request) -> None:
    for axis, _ in axes(request_):
        asked = overlap_asked(axis, request_)
        starts = origins_with_next(axis)
        for i, (start, stop) in enumerate(axis.ramps):
            left, right = starts[i + 1], starts[i] + axis.tile
            before, after = start - left, right - stop
            assert abs(before - after) <= 1
            assert min(before, after) >= (right - left) // 4
            assert min(before, after) >= asked // 4


@given(requests())
def test_a_ramp_fills_half_the_overlap_where_tiles_overlap_no_more_than_half(request_: Request) -> None:
    for axis, _ in axes(request_):
        strides = [b - a for a, b in pairwise(origins_with_next(axis))]
        if strides and 2 * min(strides) >= axis.tile:
            for (start, stop), stride in zip(axis.ramps, strides, strict=True):
                assert stop - start == (axis.tile - stride) // 2


@given(requests(), st.data())
def test_what_a_tile_contributes_lies_a_context_inside_it_except_at_the_canvas_edge(
    request_: Request, data: st.DataObject
) -> None:
    grid = request_.grid()
    i = data.draw(st.integers(0, grid.n_tiles - 1))
    tile, support = grid.tile_rect(i), grid.support_rect(i)
    context = request_.overlap // 4
    context_x = overlap_asked(grid.xs, request_) // 4
    at_left, at_right = support.x == 0 and not grid.wrap, support.x1 == grid.width and not grid.wrap
    assert at_left or support.x - tile.x >= context_x
    assert at_right or tile.x1 - support.x1 >= context_x
    assert support.y == 0 or support.y - tile.y >= context
    assert support.y1 == grid.height or tile.y1 - support.y1 >= context


@given(small_requests())
def test_cells_cover_the_canvas_once(request_: Request) -> None:
    grid = request_.grid()
    count = np.zeros((grid.height, grid.width), int)
    for j in range(grid.n_cells):
        rect = grid.cell_rect(j)
        row, col = grid.cell_position(j)
        assert (rect.x, rect.y) == (col * grid.xs.cell, row * grid.ys.cell)
        assert rect.area > 0
        count[rect.slices] += 1
    assert (count == 1).all()


@given(small_requests())
def test_a_cell_names_the_tiles_that_have_weight_in_it_at_most_four(request_: Request) -> None:
    grid = request_.grid()
    plane = verifier.plane_weights(grid.width, grid.height, grid.xs.ramps, grid.ys.ramps, grid.wrap)
    needed_by: dict[int, list[int]] = {i: [] for i in range(grid.n_tiles)}
    for j in range(grid.n_cells):
        present = [i for i in range(grid.n_tiles) if plane[i][grid.cell_rect(j).slices].any()]
        assert grid.cell_tiles(j) == tuple(present)
        assert 1 <= len(present) <= 4
        for i in present:
            needed_by[i].append(j)
    for i, cells in needed_by.items():
        assert grid.tile_cells(i) == tuple(cells)


@given(small_requests())
def test_support_is_where_the_weight_is(request_: Request) -> None:
    grid = request_.grid()
    plane = verifier.plane_weights(grid.width, grid.height, grid.xs.ramps, grid.ys.ramps, grid.wrap)
    for i in range(grid.n_tiles):
        inside = np.zeros((grid.height, grid.width), bool)
        for part in grid.support_rect(i).turns(grid.width):
            inside[part.slices] = True
        assert ((plane[i] > 0) == inside).all()


@pytest.mark.parametrize(
    ("tile", "overlap", "cell"), [(1024, 128, 416), (512, 64, 208), (256, 32, 96), (128, 32, 32)]
)
def test_cells_are_large_and_whole_blocks_for_the_usual_tiles(tile: int, overlap: int, cell: int) -> None:
    grid = make_grid(20_000, 30_000, tile=tile, overlap=overlap, multiple=16)
    assert (grid.xs.cell, grid.ys.cell) == (cell, cell)


def most_waiting(grid: Grid, order: tuple[int, ...]) -> int:
    """Finish tiles in ``order``; the most that are finished and still in some unmerged cell."""
    missing = {j: set(grid.cell_tiles(j)) for j in range(grid.n_cells)}
    unmerged = {i: set(grid.tile_cells(i)) for i in range(grid.n_tiles)}
    waiting: set[int] = set()
    most = 0
    for i in order:
        waiting.add(i)
        most = max(most, len(waiting))
        for j in grid.tile_cells(i):
            missing[j].discard(i)
            if not missing[j]:
                for k in grid.cell_tiles(j):
                    unmerged[k].discard(j)
        waiting = {k for k in waiting if unmerged[k]}
    assert not waiting
    return most


@given(requests(longest=300))
def test_no_more_tiles_wait_than_max_waiting_says(request_: Request) -> None:
    grid = request_.grid()
    if grid.n_tiles <= 200 and grid.n_cells <= 2000:
        order = grid.tile_order()
        assert sorted(order) == list(range(grid.n_tiles))
        assert most_waiting(grid, order) <= grid.max_waiting()


@pytest.mark.parametrize("size", [(500, 2000), (2000, 500)])
def test_tile_order_follows_the_shorter_axis_and_its_bound_is_tight(size: tuple[int, int]) -> None:
    grid = make_grid(*size, tile=128, overlap=16, multiple=16)
    order = grid.tile_order()
    assert most_waiting(grid, order) == grid.max_waiting() == 5 + 2
    rows, cols = grid.ys.n_tiles, grid.xs.n_tiles
    by_rows = tuple(range(grid.n_tiles))
    by_cols = tuple(r * cols + c for c in range(cols) for r in range(rows))
    assert most_waiting(grid, order) < max(most_waiting(grid, by_rows), most_waiting(grid, by_cols))


@pytest.mark.parametrize(
    ("width", "height", "bound"),
    [
        (448, 2000, 4 + 3),  # rows of 4 around, 18 of them
        (2016, 230, 2 * 2 + 2),  # 2 rows, 18 columns: the first of them waits for the last
        (1344, 680, 12 + 3),  # 12 around, 6 rows: as many either way
    ],
)
def test_the_order_around_a_closed_canvas_leaves_the_fewest_waiting_and_its_bound_is_tight(
    width: int, height: int, bound: int
) -> None:
    grid = make_grid(width, height, tile=128, overlap=16, multiple=16, wrap=True)
    rows, cols = grid.ys.n_tiles, grid.xs.n_tiles
    by_rows = tuple(range(grid.n_tiles))
    by_cols = tuple(r * cols + c for c in range(cols) for r in range(rows))
    there_and_back = tuple(
        r * cols + (-(c + 1) // 2 if c % 2 else c // 2) % cols for c in range(cols) for r in range(rows)
    )
    chosen = most_waiting(grid, grid.tile_order())
    assert chosen == grid.max_waiting()
    assert chosen == min(most_waiting(grid, order) for order in (by_rows, by_cols, there_and_back))
    assert chosen <= bound


def test_a_grid_is_small_to_send_whatever_the_canvas() -> None:
    grid = make_grid(32_768, 32_768, tile=128, overlap=32, multiple=16)
    assert grid.n_tiles > 100_000
    assert len(pickle.dumps(grid)) < 10_000
    assert pickle.loads(pickle.dumps(grid)) == grid


def test_a_canvas_smaller_than_a_tile_gets_one_tile_of_its_own_size() -> None:
    grid = make_grid(100, 7, tile=1024, overlap=128, multiple=16)
    assert grid.n_tiles == 1
    assert grid.tile_rect(0) == Rect(0, 0, 112, 16)
    assert [grid.cell_rect(j) for j in range(grid.n_cells)] == [Rect(0, 0, 100, 7)]


def test_one_pixel_is_a_canvas() -> None:
    grid = make_grid(1, 1, tile=16, overlap=0, multiple=16)
    assert (grid.n_tiles, grid.n_cells, grid.cell_tiles(0), grid.tile_cells(0)) == (1, 1, (0,), (0,))


def test_a_closed_canvas_has_as_many_seams_as_tiles_evenly_around() -> None:
    grid = make_grid(4096, 2048, tile=1024, overlap=128, multiple=16, wrap=True)
    assert grid.xs.origins == (0, 816, 1632, 2448, 3264)
    assert grid.xs.ramps[-1] == (4096 + 48, 4096 + 48 + 96)
    assert grid.ys == make_grid(4096, 2048, tile=1024, overlap=128, multiple=16).ys
    last = grid.tile_rect(4)
    assert (last.x, last.x1) == (3264, 4096 + 192)
    assert grid.cell_tiles(0) == (0, 4)


def test_a_closed_canvas_no_wider_than_a_tile_has_two_that_each_go_around() -> None:
    grid = make_grid(1024, 512, tile=1024, overlap=128, multiple=16, wrap=True)
    assert (grid.xs.tile, grid.xs.origins) == (1024, (0, 512))
    assert grid.xs.ramps == ((640, 896), (1152, 1408))


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (
            1000,
            "1,000 px wide does not close, its tiles lie on multiples of 16 px; use a --scale that makes it "
            "992 or 1,008 px wide, or --wrap off",
        ),
        (31, "31 px wide is too narrow to close"),
        (16, "16 px wide is too narrow to close, two tiles around it take 32 px; use a larger --scale"),
    ],
)
def test_a_width_that_does_not_close_is_refused(width: int, said: str) -> None:
    with pytest.raises(UsageError, match="^" + re.escape(f"--wrap: a result {said}")):
        make_grid(width, 1000, tile=128, overlap=16, multiple=16, wrap=True)


def test_no_overlap_is_a_hard_cut() -> None:
    grid = make_grid(256, 128, tile=128, overlap=0, multiple=16)
    assert grid.xs.ramps == ((128, 128),)
    assert grid.support_rect(0) == Rect(0, 0, 128, 128)
    assert grid.support_rect(1) == Rect(128, 0, 128, 128)


@pytest.mark.parametrize(
    ("tile", "overlap", "named"),
    [
        (0, 0, "--tile 0"),
        (-16, 0, "--tile -16"),
        (8, 0, "--tile 8"),
        (100, 16, "--tile 100: must be a multiple of 16 px here; use 96 or 112"),
        (128, -1, "--overlap -1"),
        (128, 65, "--overlap 65: must be 0 to 64 px with --tile 128"),
        (128, 128, "--overlap 128"),
        (48, 17, "--overlap 17: must be 0 to 16 px with --tile 48"),
    ],
)
def test_a_request_out_of_range_names_the_option(tile: int, overlap: int, named: str) -> None:
    with pytest.raises(UsageError, match=f"^{named}"):
        make_grid(1000, 1000, tile=tile, overlap=overlap, multiple=16)


def test_the_largest_overlap_is_accepted() -> None:
    make_grid(1000, 1000, tile=48, overlap=16, multiple=16)
    make_grid(1000, 1000, tile=128, overlap=64, multiple=16)
