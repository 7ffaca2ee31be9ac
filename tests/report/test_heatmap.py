"""Promises of the pictures of fidelity: drift is shown where it lies, marks where tiles lie, in bounded size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from png_reader import read_png

from dino_ray.fidelity.record import HEAT_ALARM, HEAT_SIDE, TileFidelity
from dino_ray.fidelity.summary import Ledger, summary
from dino_ray.plan.geometry import Grid, Rect, Scaling, make_grid
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.info import SourceInfo
from dino_ray.report import drawing, heatmap
from dino_ray.report.drawing import reduced, to_png, visible
from dino_ray.report.heatmap import LONGEST, coloured, heat_map, picture_size
from dino_ray.report.tilemarks import MARKS
from dino_ray.report.worst import COUNT, SIDE, caption, telling_part, worst_tiles

GREY = 100
SQUARES = HEAT_SIDE**2
CALM = (0,) * SQUARES


def canvas_of(folder: Path, grid: Grid, pixels: np.ndarray | None = None) -> Canvas:
    if pixels is None:
        pixels = np.full((grid.height, grid.width, 3), GREY, np.uint8)
    canvas = Canvas.create(
        folder, grid.width, grid.height, pixels.shape[2], str(pixels.dtype), (grid.ys.cell, grid.xs.cell)
    )
    for cell in range(grid.n_cells):
        rect = grid.cell_rect(cell)
        canvas.write(rect, np.ascontiguousarray(pixels[rect.slices]))
    return canvas


def ledger_of(grid: Grid, *records: TileFidelity) -> Ledger:
    ledger = Ledger(grid.n_tiles)
    for tile in range(grid.n_tiles):
        ledger.note(TileFidelity(tile, "accepted", 0.99, 0.98, 0.97, 40.0, 1.0, 0.1, 0, CALM))
    for record in records:
        ledger.note(record)
    return ledger


def drawn(folder: Path, grid: Grid, *records: TileFidelity, given_up: tuple[int, ...] = ()) -> np.ndarray:
    """The map without its legend, as a decoder that is not the one that drew it reads it."""
    ledger = ledger_of(grid, *records)
    ledger.forget(given_up)
    picture = heat_map(
        canvas_of(folder / "canvas.zarr", grid), grid, ledger, summary(ledger, grid, len(given_up)), given_up
    )
    (folder / "map.png").write_bytes(to_png(picture))
    width, height = picture_size(grid.width, grid.height)
    read: np.ndarray = read_png(folder / "map.png")[:height, :width]
    return read.astype(int)


def strays(pixels: np.ndarray) -> np.ndarray:
    """Which pixels are not the plain grey of a result from which nothing drifted."""
    plain = round(heatmap._DARKEST + heatmap._CONTRAST * GREY)
    stray: np.ndarray = np.abs(pixels - plain).max(axis=2) > 1
    return stray


def heated(tile: int, *squares: int, level: int = 255, action: Any = "accepted") -> TileFidelity:
    heat = tuple(level if square in squares else 0 for square in range(SQUARES))
    return TileFidelity(tile, action, 0.9, 0.8, 0.5, 30.0, 2.0, 1.9, 0, heat)


def test_the_map_shows_the_tile_that_drifted_where_it_lies(tmp_path: Path) -> None:
    grid = make_grid(400, 300, tile=128, overlap=32, multiple=16)
    tile, square = 5, 3 * HEAT_SIDE + 4
    pixels = drawn(tmp_path, grid, heated(tile, square))
    ys, xs = np.nonzero(strays(pixels))
    rect, side = grid.tile_rect(tile), 128 / HEAT_SIDE
    centre = rect.x + 4.5 * side, rect.y + 3.5 * side
    assert abs(xs.mean() + 0.5 - centre[0]) < 1
    assert abs(ys.mean() + 0.5 - centre[1]) < 1
    assert max(np.ptp(xs), np.ptp(ys)) <= 2 * side  # to the middles of its neighbours


def test_drift_is_drawn_to_scale_on_a_canvas_larger_than_the_map(tmp_path: Path) -> None:
    grid = make_grid(3200, 800, tile=512, overlap=128, multiple=16)
    tile = 6
    pixels = drawn(tmp_path, grid, heated(tile, *range(SQUARES)))
    assert pixels.shape == (400, 1600, 3)
    ys, xs = np.nonzero(strays(pixels))
    rect = grid.support_rect(tile)
    assert rect.x / 2 <= xs.min() < xs.max() <= rect.x1 / 2
    assert rect.y / 2 <= ys.min() < ys.max() <= rect.y1 / 2


def test_tiles_that_go_around_are_drawn_on_both_sides(tmp_path: Path) -> None:
    grid = make_grid(512, 128, tile=192, overlap=64, multiple=16, wrap=True)
    last = grid.xs.n_tiles - 1
    pixels = drawn(tmp_path, grid, heated(last, *range(SQUARES), action="kept"))
    stray = strays(pixels).any(axis=0)
    assert stray[0]
    assert stray[-1]
    assert not stray[grid.width // 2]
    rect = grid.tile_rect(last)
    assert rect.x1 > grid.width
    reach = np.flatnonzero(~stray)
    assert reach.min() <= rect.x1 - grid.width
    assert reach.max() >= rect.x


@pytest.mark.parametrize("action", [action for action in MARKS if action != "given up"])
def test_what_was_not_accepted_as_it_was_is_marked_in_its_own_way(tmp_path: Path, action: Any) -> None:
    grid = make_grid(400, 300, tile=128, overlap=32, multiple=16)
    pixels = drawn(tmp_path, grid, TileFidelity(4, action))
    ys, xs = np.nonzero(strays(pixels))
    rect = grid.tile_rect(4)
    assert rect.x <= xs.min() < xs.max() < rect.x1
    assert rect.y <= ys.min() < ys.max() < rect.y1
    assert {tuple(pixel) for pixel in pixels[ys, xs]} == {MARKS[action][0]}


def test_a_tile_that_was_given_up_is_marked_too(tmp_path: Path) -> None:
    grid = make_grid(400, 300, tile=128, overlap=32, multiple=16)
    assert strays(drawn(tmp_path, grid, given_up=(4,))).any()


def test_marks_differ_in_form_for_eyes_that_see_no_colours() -> None:
    forms = [MARKS[action][1] for action in ("blended", "retried", "kept", "skipped")]
    assert len(set(forms)) == 4


def test_more_drift_is_always_lighter_and_the_alarm_is_lined_out(tmp_path: Path) -> None:
    brightness = drawing.luma(coloured(np.arange(256, dtype=np.float32)[None]).astype(np.uint8))[0]
    assert (np.diff(brightness) >= -1).all()  # rounding apart
    assert brightness[-1] > brightness[HEAT_ALARM] + 80 > brightness[0] + 120
    grid = make_grid(128, 128, tile=128, overlap=32, multiple=16)
    block = [row * HEAT_SIDE + column for row in range(2, 6) for column in range(2, 6)]
    below = drawn(tmp_path, grid, heated(0, *block, level=HEAT_ALARM - 1))
    above = drawn(tmp_path, grid, heated(0, *block, level=HEAT_ALARM + 1))
    white = [(pixels == 255).all(axis=2).any() for pixels in (below, above)]
    assert white == [False, True]


@pytest.mark.parametrize(("bands", "dtype"), [(1, "uint8"), (2, "uint8"), (3, "uint16"), (4, "uint16")])
def test_a_map_is_drawn_of_every_kind_of_canvas(tmp_path: Path, bands: int, dtype: str) -> None:
    grid = make_grid(70, 50, tile=64, overlap=16, multiple=16)
    pixels = np.full((50, 70, bands), np.iinfo(dtype).max, dtype)
    ledger = ledger_of(grid)
    picture = heat_map(canvas_of(tmp_path / "c.zarr", grid, pixels), grid, ledger, summary(ledger, grid))
    assert picture.mode == "RGB"
    assert picture.size[0] >= 70
    assert picture.getpixel((0, 0))[0] > 100


def test_small_pictures_are_means_of_the_pixels_beneath(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**16, (61, 90, 3), np.uint16)
    grid = make_grid(90, 61, tile=64, overlap=16, multiple=16)
    small = reduced(canvas_of(tmp_path / "c.zarr", grid, pixels), 7, 5)
    for y, x in ((0, 0), (2, 3), (4, 6)):
        rows, columns = slice(y * 61 // 5, (y + 1) * 61 // 5), slice(x * 90 // 7, (x + 1) * 90 // 7)
        expected = pixels[rows, columns].mean(axis=(0, 1)) / 65535
        np.testing.assert_allclose(small[y, x], expected, rtol=1e-6)


def test_what_is_transparent_shows_grey() -> None:
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0]]], np.uint8)
    assert visible(pixels).tolist() == [[[255, 0, 0], [128, 128, 128]]]


def test_the_picture_keeps_its_size_whatever_the_canvas() -> None:
    assert picture_size(300, 200) == (300, 200)
    assert picture_size(1_000_000, 500_000) == (LONGEST, LONGEST // 2)
    assert picture_size(10, 100_000) == (1, LONGEST)


# ---- the worst tiles


@dataclass
class Gigapixel:
    """A source and a canvas of which no more than windows can be had."""

    width: int
    height: int
    most: int = 0

    @property
    def info(self) -> SourceInfo:
        return SourceInfo("huge.tif", self.width, self.height, 3, "uint8", False)

    def read(self, rect: Rect) -> np.ndarray:
        self.most = max(self.most, rect.area)
        return np.full((rect.h, rect.w, 3), GREY, np.uint8)


def test_worst_tiles_pictures_are_bounded_for_a_gigapixel_canvas() -> None:
    side = 80_000
    grid = make_grid(side, side, tile=2048, overlap=128, multiple=16)
    source, canvas = Gigapixel(side // 2, side // 2), Gigapixel(side, side)
    scaling = Scaling.from_factor(side // 2, side // 2, 2)
    ledger = ledger_of(grid, heated(grid.n_tiles - 1, SQUARES - 1), heated(700, 0))
    picture = worst_tiles(source, scaling, canvas, grid, ledger)  # type: ignore[arg-type]
    assert picture is not None
    assert picture.size[0] < 3 * SIDE
    assert picture.size[1] < COUNT * (SIDE + 50) + 50
    assert max(source.most, canvas.most) <= SIDE**2


def test_a_crop_holds_the_square_that_drifted_most_and_lies_on_the_canvas() -> None:
    grid = make_grid(3000, 2500, tile=1024, overlap=128, multiple=16)
    for tile in range(grid.n_tiles):
        whole = grid.tile_rect(tile)
        inside = whole.clip(grid.width, grid.height)
        for square in range(SQUARES):
            part = telling_part(grid, heated(tile, square))
            assert part.intersect(inside) == part
            middle = whole.x + (square % HEAT_SIDE) * 128 + 64, whole.y + (square // HEAT_SIDE) * 128 + 64
            if middle[0] < grid.width and middle[1] < grid.height:
                assert part.x <= middle[0] < part.x1
                assert part.y <= middle[1] < part.y1


def test_before_is_the_source_and_after_the_result(tmp_path: Path) -> None:
    grid = make_grid(128, 128, tile=64, overlap=16, multiple=16)
    result = np.full((128, 128, 3), 200, np.uint8)
    source = Gigapixel(64, 64)
    ledger = Ledger(grid.n_tiles)
    ledger.note(heated(3, 0))
    scaling = Scaling(64, 64, 128, 128)
    picture = worst_tiles(source, scaling, canvas_of(tmp_path / "c.zarr", grid, result), grid, ledger)
    assert picture is not None
    shown = np.asarray(picture)
    before, after = (shown == GREY).all(axis=2), (shown == 200).all(axis=2)
    assert before.sum() >= 64 * 64 * 0.99
    assert after.sum() >= 64 * 64 * 0.99
    assert np.nonzero(before)[1].max() < np.nonzero(after)[1].max()


def test_a_crop_that_goes_around_shows_both_ends(tmp_path: Path) -> None:
    grid = make_grid(512, 128, tile=192, overlap=64, multiple=16, wrap=True)
    pixels = np.zeros((128, 512, 3), np.uint8)
    pixels[:, :256] = 250
    canvas = canvas_of(tmp_path / "c.zarr", grid, pixels)
    ledger = Ledger(grid.n_tiles)
    ledger.note(heated(grid.xs.n_tiles - 1, 0))
    picture = worst_tiles(Gigapixel(256, 64), Scaling(256, 64, 512, 128), canvas, grid, ledger)
    assert picture is not None
    rect = grid.tile_rect(grid.xs.n_tiles - 1)
    shown = (np.asarray(picture) == 250).all(axis=2).sum()
    assert shown >= 128 * (rect.x1 - 512)


def test_where_nothing_was_verified_there_is_no_worst() -> None:
    grid = make_grid(128, 128, tile=64, overlap=16, multiple=16)
    ledger = Ledger(grid.n_tiles)
    ledger.note(TileFidelity(0, "skipped"))
    world = Gigapixel(64, 64)
    assert worst_tiles(world, Scaling(64, 64, 128, 128), world, grid, ledger) is None  # type: ignore[arg-type]


def test_a_caption_says_which_tile_what_was_done_and_what_was_found() -> None:
    record = replace(heated(7, 0, action="blended"), cosine_p10=None)
    assert caption(record, Rect(10, 20, 64, 64)) == (
        "tile 7 at 10, 20: blended, alarm 1.90, cosine mean 0.9000, worst 0.5000"
    )
