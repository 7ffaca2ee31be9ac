from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_ray.errors import UsageError
from dino_ray.plan.geometry import Rect, Scaling

sizes = st.integers(1, 300)
offsets = st.integers(-50, 50)
rects = st.builds(Rect, offsets, offsets, st.integers(0, 60), st.integers(0, 60))


def pixels(rect: Rect) -> set[tuple[int, int]]:
    return {(x, y) for x in range(rect.x, rect.x1) for y in range(rect.y, rect.y1)}


@given(rects, rects)
def test_intersect_is_the_common_pixels(a: Rect, b: Rect) -> None:
    common = a.intersect(b)
    assert (pixels(common) if common else set()) == pixels(a) & pixels(b)
    assert common == b.intersect(a)


@given(rects, st.integers(0, 40), st.integers(0, 40))
def test_clip_keeps_the_pixels_inside(rect: Rect, w: int, h: int) -> None:
    assert pixels(rect.clip(w, h)) == pixels(rect) & pixels(Rect(0, 0, w, h))


@given(rects, offsets, offsets, st.integers(0, 20))
def test_shift_moves_and_pad_grows_on_every_side(rect: Rect, dx: int, dy: int, n: int) -> None:
    assert rect.shift(dx, dy).shift(-dx, -dy) == rect
    grown = rect.pad(n)
    assert (rect.x - grown.x, rect.y - grown.y, grown.x1 - rect.x1, grown.y1 - rect.y1) == (n, n, n, n)
    assert rect.area == len(pixels(rect))


@given(rects, st.integers(1, 40))
def test_turns_are_the_window_folded_onto_the_circle(rect: Rect, period: int) -> None:
    parts = rect.turns(period)
    assert all(0 <= part.x < part.x1 <= period and (part.y, part.h) == (rect.y, rect.h) for part in parts)
    columns = [x for part in parts for x in range(part.x, part.x1)]
    assert columns == [x % period for x in range(rect.x, rect.x1)]


def test_a_window_within_one_turn_is_one_part() -> None:
    assert Rect(70, 3, 30, 5).turns(50) == (Rect(20, 3, 30, 5),)
    assert Rect(0, 3, 50, 5).turns(50) == (Rect(0, 3, 50, 5),)


@pytest.mark.parametrize(
    ("source", "scale", "canvas"),
    [(5, 2.3, 12), (5, 1.5, 8), (3, 0.1, 1), (10, 1.1, 11), (7, 2, 14), (1000, 4.0, 4000), (3, 1.5, 5)],
)
def test_canvas_size_rounds_halves_of_the_decimal_factor_up(source: int, scale: float, canvas: int) -> None:
    scaling = Scaling.from_factor(source, 1, scale)
    assert scaling.canvas_w == canvas
    assert scaling.factor_x == Fraction(canvas, source)


@pytest.mark.parametrize("scale", [0, -1, math.inf, math.nan])
def test_a_scale_that_is_no_size_is_refused(scale: float) -> None:
    with pytest.raises(UsageError, match="--scale"):
        Scaling.from_factor(10, 10, scale)


@given(sizes, sizes, offsets, st.integers(1, 40), st.integers(0, 5))
def test_source_window_is_the_smallest_that_holds_the_samples_around_every_pixel(
    source: int, canvas: int, x: int, w: int, halo: int
) -> None:
    window = Scaling(source, 9, canvas, 9).source_window(Rect(x, 0, w, 9), halo)
    centres = [Fraction(2 * c + 1, 2) * source / canvas - Fraction(1, 2) for c in range(x, x + w)]
    assert window.x == math.floor(min(centres)) - halo
    assert window.x1 == math.ceil(max(centres)) + 1 + halo
    assert (window.y, window.y1) == (-halo, 9 + halo)


def test_source_box_of_the_canvas_is_the_source() -> None:
    scaling = Scaling.from_factor(333, 77, 2.5)
    assert scaling.source_box(Rect(0, 0, scaling.canvas_w, scaling.canvas_h)) == (0, 0, 333, 77)
    assert Scaling(100, 50, 200, 200).source_box(Rect(10, 20, 40, 8)) == (5, 5, 20, 2)


def test_the_box_of_a_tile_past_the_edge_lies_past_the_edge() -> None:
    assert Scaling(100, 50, 200, 200).source_box(Rect(180, 20, 40, 8)) == (90, 5, 20, 2)


@given(st.integers(1, 5000), st.integers(10, 160), st.sampled_from([1, 8, 16, 32]))
def test_a_width_that_does_not_close_is_refused_with_the_nearest_scales_that_do(
    source: int, tenths: int, multiple: int
) -> None:
    scaling = Scaling.from_factor(source, source, tenths / 10)
    if scaling.canvas_w % multiple == 0:
        scaling.check_closes(multiple)
        return
    with pytest.raises(UsageError, match=r"^--wrap: .*--wrap off$") as refusal:
        scaling.check_closes(multiple)
    offered = re.findall(r"--scale ([\d.]+) \(([\d,]+) px\)", str(refusal.value))
    widths = [int(width.replace(",", "")) for _, width in offered]
    below = scaling.canvas_w // multiple * multiple
    assert widths in ([below, below + multiple], [below + multiple])
    for (scale, _), width in zip(offered, widths, strict=True):
        assert Scaling.from_factor(source, source, float(scale)).canvas_w == width
        Scaling.from_factor(source, source, float(scale)).check_closes(multiple)


def test_the_refusal_of_a_width_says_what_to_type() -> None:
    with pytest.raises(UsageError) as refusal:
        Scaling.from_factor(6001, 3000, 1.5).check_closes(16)
    assert str(refusal.value) == (
        "--wrap: a result 9,002 px wide does not close, its tiles lie on multiples of 16 px; "
        "use --scale 1.4984 (8,992 px) or --scale 1.501 (9,008 px) or --wrap off"
    )
