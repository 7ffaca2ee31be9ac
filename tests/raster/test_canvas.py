"""A cell is done when its chunk exists, exactly then, and the canvas holds what was written to it."""

import hashlib
import multiprocessing
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_ray.errors import JobError
from dino_ray.plan.geometry import Rect
from dino_ray.raster.canvas import Canvas


def noise(height, width, bands, dtype, seed=0):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top + 1, (height, width, bands)).astype(dtype)


def all_cells(canvas):
    return [(r, c) for r in range(canvas.cells[0]) for c in range(canvas.cells[1])]


def painted(folder, pixels, cell, order=None):
    height, width, bands = pixels.shape
    canvas = Canvas.create(folder, width, height, bands, pixels.dtype.name, cell)
    for row, column in order or all_cells(canvas):
        rect = canvas.cell_rect(row, column)
        canvas.write(rect, pixels[rect.slices])
    return canvas


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    bands=st.integers(1, 4),
    dtype=st.sampled_from(["uint8", "uint16"]),
    cell=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    data=st.data(),
)
def test_cells_in_any_order_make_the_image(tmp_path_factory, height, width, bands, dtype, cell, data):
    pixels = noise(height, width, bands, dtype)
    cell = (min(cell[0], height), min(cell[1], width))
    while (height // cell[0]) * (width // cell[1]) > 60:  # a file each: keep it quick
        cell = (min(2 * cell[0], height), min(2 * cell[1], width))
    canvas = Canvas.create(tmp_path_factory.mktemp("c") / "c", width, height, bands, dtype, cell)
    todo = data.draw(st.permutations(all_cells(canvas)))
    for i, (row, column) in enumerate(todo):
        assert canvas.done() == set(todo[:i])
        rect = canvas.cell_rect(row, column)
        canvas.write(rect, pixels[rect.slices])
    assert canvas.missing() == []
    np.testing.assert_array_equal(canvas.read(Rect(0, 0, width, height)), pixels)
    np.testing.assert_array_equal(np.concatenate(list(canvas.rows())), pixels)
    assert (
        canvas.sha256() == hashlib.sha256(pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()).hexdigest()
    )


def test_black_cells_are_done_whoever_wrote_them(tmp_path):
    made = Canvas.create(tmp_path / "c", 100, 60, 3, "uint8", (32, 48))
    made.write(made.cell_rect(0, 0), np.zeros((32, 48, 3), np.uint8))
    opened = Canvas.open(tmp_path / "c")
    opened.write(opened.cell_rect(1, 2), np.zeros((28, 4, 3), np.uint8))
    assert Canvas.open(tmp_path / "c").done() == {(0, 0), (1, 2)}


def test_a_canvas_is_found_again(tmp_path):
    made = Canvas.create(tmp_path / "c", 100, 60, 2, "uint16", (32, 48))
    assert Canvas.open(tmp_path / "c") == made
    assert pickle.loads(pickle.dumps(made)) == made


def test_the_digest_does_not_depend_on_the_cells(tmp_path):
    pixels = noise(70, 90, 3, "uint16")
    one, other = painted(tmp_path / "1", pixels, (70, 90)), painted(tmp_path / "2", pixels, (16, 32))
    assert one.sha256() == other.sha256()


def test_missing_cells_come_in_reading_order(tmp_path):
    canvas = painted(tmp_path / "c", noise(60, 100, 1, "uint8"), (32, 48), order=[(0, 1), (1, 0)])
    assert canvas.missing() == [(0, 0), (0, 2), (1, 1), (1, 2)]


@pytest.mark.parametrize(
    "rect",
    [
        Rect(0, 0, 48, 31),
        Rect(1, 0, 48, 32),
        Rect(0, 0, 96, 32),
        Rect(96, 0, 48, 32),
        Rect(0, 32, 48, 32),
        Rect(0, 64, 48, 0),
        Rect(-48, 0, 48, 32),
    ],
    ids=["part", "shifted", "two cells", "past the right", "past the bottom", "outside", "before"],
)
def test_only_whole_cells_are_written(tmp_path, rect):
    canvas = Canvas.create(tmp_path / "c", 100, 60, 3, "uint8", (32, 48))
    with pytest.raises(ValueError, match="not one cell"):
        canvas.write(rect, np.zeros((rect.h, rect.w, 3), np.uint8))
    assert canvas.done() == set()


@pytest.mark.parametrize(
    ("shape", "dtype"), [((32, 48, 4), "uint8"), ((32, 48, 3), "uint16"), ((32, 48), "uint8")]
)
def test_only_pixels_of_the_canvas_are_written(tmp_path, shape, dtype):
    canvas = Canvas.create(tmp_path / "c", 100, 60, 3, "uint8", (32, 48))
    with pytest.raises(ValueError, match="does not fit"):
        canvas.write(canvas.cell_rect(0, 0), np.zeros(shape, dtype))


@pytest.mark.parametrize("rect", [Rect(0, 0, 101, 1), Rect(-1, 0, 5, 5), Rect(3, 3, 0, 3)])
def test_only_windows_inside_are_read(tmp_path, rect):
    canvas = Canvas.create(tmp_path / "c", 100, 60, 3, "uint8", (32, 48))
    with pytest.raises(ValueError, match="not within"):
        canvas.read(rect)


def test_a_half_written_file_is_no_cell(tmp_path):
    canvas = painted(tmp_path / "c", noise(60, 100, 3, "uint8"), (32, 48), order=[(0, 0)])
    whole = tmp_path / "c" / "c" / "0" / "0" / "0"
    whole.with_suffix(".0123456789abcdef.partial").write_bytes(b"half")
    assert canvas.done() == {(0, 0)}


def test_a_cell_that_cannot_be_written_is_not_done(tmp_path, monkeypatch):
    canvas = Canvas.create(tmp_path / "c", 100, 60, 3, "uint8", (32, 48))
    blocked = tmp_path / "c" / "c" / "1"
    blocked.parent.mkdir()
    blocked.write_text("a file where a folder must be")
    with pytest.raises(JobError, match="cannot be written"):
        canvas.write(canvas.cell_rect(1, 0), np.zeros((28, 48, 3), np.uint8))
    assert canvas.done() == set()


def test_a_cell_that_lost_bytes_is_an_error_not_black(tmp_path):
    canvas = painted(tmp_path / "c", noise(60, 100, 3, "uint8"), (32, 48))
    chunk = tmp_path / "c" / "c" / "0" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(JobError, match="cannot be read"):
        canvas.sha256()


def test_a_folder_used_again_starts_with_nothing_done(tmp_path):
    painted(tmp_path / "c", noise(60, 100, 3, "uint8"), (32, 48)).sha256()
    again = Canvas.create(tmp_path / "c", 100, 60, 3, "uint8", (16, 16))
    assert again.done() == set()
    assert Canvas.open(tmp_path / "c").cell == (16, 16)


def test_a_canvas_of_another_shape_is_not_written_to(tmp_path):
    stale = Canvas.create(tmp_path / "c", 100, 60, 3, "uint8", (32, 48))
    Canvas.create(tmp_path / "c", 80, 60, 3, "uint8", (32, 48))
    with pytest.raises(JobError, match="another job"):
        stale.write(stale.cell_rect(0, 0), np.zeros((32, 48, 3), np.uint8))


def _write_cell(canvas, row, column):
    rect = canvas.cell_rect(row, column)
    canvas.write(rect, np.full((rect.h, rect.w, canvas.bands), row + column, canvas.dtype))


def test_processes_write_cells_side_by_side(tmp_path):
    canvas = Canvas.create(tmp_path / "ordner ü 100%", 100, 60, 3, "uint8", (32, 48))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(_write_cell, [(canvas, *cell) for cell in all_cells(canvas)])
    assert canvas.missing() == []
    assert canvas.read(Rect(99, 59, 1, 1)).tolist() == [[[3, 3, 3]]]
