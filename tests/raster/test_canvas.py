"""A cell is done when its chunk exists, exactly then, and the canvas holds what was written to it."""

import dataclasses
import hashlib
import multiprocessing
import os
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


@settings(max_examples=40, deadline=None)
@given(x=st.integers(0, 99), y=st.integers(0, 59), w=st.integers(1, 100), h=st.integers(1, 60))
def test_windows_are_cut_from_the_image_wherever_cells_end(shared_canvas, x, y, w, h):
    canvas, pixels = shared_canvas
    rect = Rect(x, y, min(w, 100 - x), min(h, 60 - y))
    np.testing.assert_array_equal(canvas.read(rect), pixels[rect.slices])


@pytest.fixture(scope="module", params=["disk", "memory"])
def shared_canvas(request, tmp_path_factory):
    pixels = noise(60, 100, 3, "uint16")
    folder = tmp_path_factory.mktemp("shared") / "c" if request.param == "disk" else "memory://shared/c"
    return painted(folder, pixels, (16, 24)), pixels


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


def chunk_file(folder, row, column):
    return folder / f"c.{row}.{column}.0"


def test_a_half_written_file_is_no_cell_and_can_be_cleaned_up(tmp_path):
    canvas = painted(tmp_path / "c", noise(60, 100, 3, "uint8"), (32, 48), order=[(0, 0)])
    half = tmp_path / "c" / ".c.1.1.0.0123456789abcdef.partial"
    half.write_bytes(b"half")
    before = canvas.sha256()
    assert canvas.done() == {(0, 0)}
    assert canvas.clean() == 1
    assert canvas.clean() == 0
    assert not half.exists()
    assert canvas.sha256() == before


@pytest.mark.parametrize("size", [0, 1, 32 * 48 * 3 - 1, 32 * 48 * 3 + 1])
def test_a_cell_of_the_wrong_size_is_not_done_and_is_mended_by_writing_it(tmp_path, size):
    pixels = noise(60, 100, 3, "uint8")
    canvas = painted(tmp_path / "c", pixels, (32, 48))
    chunk_file(tmp_path / "c", 1, 0).write_bytes(bytes(size))
    assert canvas.missing() == [(1, 0)]
    rect = canvas.cell_rect(1, 0)
    canvas.write(rect, pixels[rect.slices])
    assert canvas.missing() == []
    assert canvas.sha256() == hashlib.sha256(pixels.tobytes()).hexdigest()


@pytest.mark.parametrize("size", [0, 100, 32 * 48 * 3 - 1, 32 * 48 * 3 + 1])
@pytest.mark.parametrize("rows", [1, 32])
def test_a_cell_that_lost_bytes_is_an_error_not_black(tmp_path, size, rows):
    canvas = painted(tmp_path / "c", noise(60, 100, 3, "uint8"), (32, 48))
    chunk_file(tmp_path / "c", 0, 1).write_bytes(bytes(size))
    with pytest.raises(JobError, match=rf"c\.0\.1\.0: cannot be read: it has {size:,} bytes, not 4,608"):
        canvas.read(Rect(0, 0, 100, rows))


def test_files_of_other_names_are_no_cells(tmp_path):
    canvas = painted(tmp_path / "c", noise(60, 100, 3, "uint8"), (32, 48), order=[(0, 0)])
    for other in ("c.0.1.1", "c.0.1", "c.2.0.0", "c.0.3.0", "xc.0.1.0", "c.0.1.0~"):
        (tmp_path / "c" / other).write_bytes(bytes(32 * 48 * 3))
    assert canvas.done() == {(0, 0)}


def test_a_cell_that_cannot_be_written_is_not_done(tmp_path):
    canvas = Canvas.create(tmp_path / "c", 100, 60, 3, "uint8", (32, 48))
    chunk_file(tmp_path / "c", 1, 0).mkdir()  # a folder where a file must be
    with pytest.raises(JobError, match="cannot be written: a folder lies where a file must be"):
        canvas.write(canvas.cell_rect(1, 0), np.zeros((28, 48, 3), np.uint8))
    assert canvas.done() == set()
    assert sorted(os.listdir(tmp_path / "c")) == ["c.1.0.0", "zarr.json"]


def test_a_canvas_that_vanished_is_not_black_and_is_not_begun_again(tmp_path):
    canvas = painted(tmp_path / "c", noise(60, 100, 3, "uint8"), (32, 48))
    (tmp_path / "c").rename(tmp_path / "elsewhere")
    rect = canvas.cell_rect(0, 0)
    for work in (canvas.done, canvas.sha256, lambda: canvas.write(rect, noise(32, 48, 3, "uint8"))):
        with pytest.raises(JobError, match=r"c: .*bring it back \(is its disk mounted\?\), then resume"):
            work()
    assert os.listdir(tmp_path) == ["elsewhere"]
    (tmp_path / "elsewhere").rename(tmp_path / "c")
    assert canvas.missing() == []


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
    other_cells = dataclasses.replace(stale, width=80, cell=(16, 48))
    with pytest.raises(JobError, match="another job"):
        other_cells.done()


def _write_cell(canvas, row, column):
    rect = canvas.cell_rect(row, column)
    canvas.write(rect, np.full((rect.h, rect.w, canvas.bands), row + column, canvas.dtype))


def test_processes_write_cells_side_by_side(tmp_path):
    canvas = Canvas.create(tmp_path / "ordner ü 100%", 100, 60, 3, "uint8", (32, 48))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(_write_cell, [(canvas, *cell) for cell in all_cells(canvas)])
    assert canvas.missing() == []
    assert canvas.read(Rect(99, 59, 1, 1)).tolist() == [[[3, 3, 3]]]
