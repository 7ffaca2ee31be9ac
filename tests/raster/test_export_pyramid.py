"""Blocks of every level are seen once, in any shape of canvas, and a halving is the mean of what it halves."""

import itertools
import threading

import numpy as np
import pytest
from exported import noise, painted
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_ray.raster.export.pyramid import block_side, build, halve, level_sizes, z_order

sides = st.integers(1, 300)


@given(sides, sides, st.integers(1, 64))
def test_z_order_covers_a_level_once(width, height, side):
    seen = np.zeros((height, width), int)
    for rect in z_order(width, height, side):
        seen[rect.slices] += 1
        assert rect.x % side == rect.y % side == 0
    assert (seen == 1).all()


@given(st.integers(1, 40), st.integers(1, 40))
def test_z_order_ends_each_square_before_the_next(columns, rows):
    for span in (2, 4, 8):
        squares = [(rect.x // span, rect.y // span) for rect in z_order(columns, rows, 1)]
        runs = [square for i, square in enumerate(squares) if i == 0 or squares[i - 1] != square]
        assert len(runs) == len(set(runs))


@given(st.integers(1, 10**8), st.integers(1, 10**8), st.integers(1, 1000))
def test_levels_halve_down_to_the_smallest(width, height, smallest):
    sizes = level_sizes(width, height, smallest)
    assert sizes[0] == (width, height)
    assert max(sizes[-1]) <= smallest
    assert all(max(size) > smallest for size in sizes[:-1])
    for (w, h), (half_w, half_h) in itertools.pairwise(sizes):
        assert (half_w, half_h) == ((w + 1) // 2, (h + 1) // 2)


def halved_by_the_book(pixels):
    """What `halve` promises, in floats and loops."""
    height, width, bands = pixels.shape
    half = np.zeros(((height + 1) // 2, (width + 1) // 2, bands))
    for y, x in np.ndindex(half.shape[:2]):
        # Where a side is odd, the last row or column counts twice, which in a mean is once.
        part = pixels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(-1, bands).astype(float)
        if bands in (2, 4) and part[:, -1].sum() > 0:
            half[y, x, :-1] = (part[:, :-1] * part[:, -1:]).sum(0) / part[:, -1].sum()
            half[y, x, -1] = part[:, -1].mean()
        else:
            half[y, x] = part.mean(0)
    return np.floor(half + 0.5)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from(["uint8", "uint16"]),
    st.sampled_from(["noise", "top", "patches"]),
    st.integers(0, 1000),
)
def test_halving_is_the_mean_weighted_by_alpha(height, width, bands, dtype, kind, seed):
    pixels = noise(bands, dtype, height, width, seed)
    if kind == "top":  # sums must not overflow
        pixels[:] = np.iinfo(dtype).max
    if kind == "patches":  # some transparent, some not
        pixels[:, :, -1] *= noise(1, dtype, height, width, seed + 1)[:, :, 0] % 2
    np.testing.assert_array_equal(halve(pixels), halved_by_the_book(pixels))


def test_blocks_stay_within_their_budget_and_are_whole_tiles():
    for tile in (512, 1024):
        for pixel_bytes in range(1, 9):
            side = block_side(tile, pixel_bytes)
            assert side % tile == 0
            assert side**2 * pixel_bytes <= 8 * 2**20


@pytest.mark.parametrize("size", [(1, 1), (333, 200), (64, 1000), (1000, 70), (129, 128)])
def test_every_level_is_built_whole_and_in_one_order(tmp_path, size):
    pixels = noise(3, "uint8", *size)
    canvas = painted(tmp_path / "c", pixels)
    sizes = level_sizes(canvas.width, canvas.height, 16)
    orders = []
    for _ in range(2):
        levels = [np.zeros((height, width, 3), np.uint8) for width, height in sizes]
        order = []

        def commit(block, levels=levels, order=order):
            levels[block.level][block.rect.slices] = block.pixels
            order.append((block.level, block.rect))
            assert threading.current_thread() is threading.main_thread()

        build(canvas, sizes, 64, lambda block: block, commit)
        expected = pixels
        for level in levels:
            np.testing.assert_array_equal(level, expected)
            expected = halve(expected)
        assert len(order) == len(set(order))
        orders.append(order)
    assert orders[0] == orders[1]


def test_blocks_in_memory_do_not_grow_with_the_canvas(tmp_path):
    """Of 16 or 256 blocks, no more wait to be packed and committed at once."""

    def most_waiting(side):
        canvas = painted(tmp_path / "c", np.zeros((side, side, 1), np.uint8), cell=(256, 256))
        alive, most, lock = 0, 0, threading.Lock()

        def pack(block):
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)

        def commit(_):
            nonlocal alive
            with lock:
                alive -= 1

        build(canvas, level_sizes(side, side, 64), 64, pack, commit)
        return most

    assert most_waiting(1024) <= 6 >= most_waiting(256)
