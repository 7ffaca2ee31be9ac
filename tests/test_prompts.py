"""What each tile is told, by region of the source."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_ray.errors import UsageError
from dino_ray.prompts import (
    CAPTION_SIDE,
    MOST_CAPTIONS,
    MOST_PROMPTS,
    Region,
    captioned,
    find_captioner,
    parts_to_caption,
    prompt_for,
    read_regions,
)

SIZE = (1000, 800)


def box_region(prompt, x, y, w, h):
    return Region(prompt, (((x, y), (x + w, y), (x + w, y + h), (x, y + h)),))


SKY, SEA = box_region("sky", 0, 0, 1000, 300), box_region("sea", 0, 300, 600, 500)


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ((0, 0, 100, 100), "sky"),
        ((0, 240, 100, 100), "sky"),
        ((0, 280, 100, 100), "sea"),
        ((700, 500, 100, 100), "a photograph"),
        ((560, 500, 100, 100), "a photograph"),  # more of it outside than in
    ],
)
def test_a_tile_is_told_what_most_of_it_shows(box, told):
    assert prompt_for(box, SIZE, (SKY, SEA), "a photograph") == told


def test_holes_and_triangles_count_as_drawn():
    ring = ((0, 0), (100, 0), (100, 100), (0, 100))
    hole = ((10, 10), (90, 10), (90, 90), (10, 90))
    frame = Region("frame", (ring, hole))
    assert prompt_for((0, 0, 100, 100), SIZE, (frame,), "rest") == "rest"  # a third of it
    assert prompt_for((0, 0, 100, 12), SIZE, (frame,), "rest") == "frame"
    triangle = Region("triangle", (((0, 0), (100, 0), (0, 100)),))
    assert prompt_for((0, 0, 50, 50), SIZE, (triangle,), "rest") == "triangle"
    assert prompt_for((51, 51, 49, 49), SIZE, (triangle,), "rest") == "rest"


def test_fractions_are_of_the_source_and_panoramas_go_around():
    half = Region("left", (((0, 0), (0.5, 0), (0.5, 1), (0, 1)),), fractions=True)
    assert prompt_for((300, 0, 100, 100), SIZE, (half,), "rest") == "left"
    assert prompt_for((600, 0, 100, 100), SIZE, (half,), "rest") == "rest"
    beyond = (980, 0, 100, 100)
    assert prompt_for(beyond, SIZE, (half,), "rest") == "rest"
    assert prompt_for(beyond, SIZE, (half,), "rest", closed=True) == "left"


@given(x=st.floats(-50, 950), y=st.floats(-50, 750), w=st.floats(1, 400), h=st.floats(1, 400))
def test_every_tile_is_told_something_and_far_regions_never_count(x, y, w, h):
    far = box_region("far", 5000, 5000, 100, 100)
    assert prompt_for((x, y, w, h), SIZE, (far,), "rest") == "rest"
    everywhere = box_region("all", -100, -100, 2000, 2000)
    assert prompt_for((x, y, w, h), SIZE, (far, everywhere), "rest") == "all"


def write(tmp_path, content):
    path = tmp_path / "regions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_both_forms_of_file_say_the_same(tmp_path):
    plain = {"regions": [{"prompt": "sky", "box": [0, 0, 1000, 300]},
                         {"prompt": "tree", "polygon": [[0, 0], [5, 0], [0, 5]]}]}  # fmt: skip
    square = [[0, 0], [1000, 0], [1000, 300], [0, 300], [0, 0]]
    geo = {"type": "FeatureCollection", "features": [
        {"type": "Feature", "properties": {"prompt": "sky"}, "geometry": {"type": "Polygon", "coordinates": [square]}},
        {"type": "Feature", "properties": {"prompt": "tree"}, "geometry": {
            "type": "MultiPolygon", "coordinates": [[[[0, 0], [5, 0], [0, 5], [0, 0]]]]}},
    ]}  # fmt: skip
    ours, theirs = read_regions(write(tmp_path, plain)), read_regions(write(tmp_path, geo))
    assert [region.prompt for region in ours] == [region.prompt for region in theirs] == ["sky", "tree"]
    for box in ((0, 0, 100, 100), (0, 0, 4, 4), (900, 700, 50, 50)):
        assert prompt_for(box, SIZE, ours, "") == prompt_for(box, SIZE, theirs, "")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON"),
        ([], "expected"),
        ({"regions": []}, "lists no regions"),
        ({"regions": [{"box": [0, 0, 1, 1]}]}, "region 1: has no prompt"),
        ({"regions": [{"prompt": "a"}]}, "region 1: needs either a box"),
        ({"regions": [{"prompt": "a", "box": [0, 0, 0, 1]}]}, "sides above 0"),
        ({"regions": [{"prompt": "a", "polygon": [[0, 0], [1, 1]]}]}, "three or more points"),
        ({"units": "cm", "regions": [{"prompt": "a", "box": [0, 0, 1, 1]}]}, "units must be"),
        ({"type": "FeatureCollection", "crs": {}, "features": [{}]}, "coordinate system"),
        (
            {
                "type": "FeatureCollection",
                "features": [{"properties": {"prompt": "a"}, "geometry": {"type": "Point"}}],
            },
            "must be a Polygon",
        ),
        (
            {"regions": [{"prompt": str(i), "box": [0, 0, 1, 1]} for i in range(MOST_PROMPTS + 1)]},
            "are possible",
        ),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_place(tmp_path, content, said):
    with pytest.raises(UsageError, match=said) as error:
        read_regions(write(tmp_path, content))
    assert "--prompts" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.json: can't be read"):
        read_regions(str(tmp_path / "absent.json"))


@given(width=st.integers(1, 200_000), height=st.integers(1, 200_000))
def test_captions_cover_the_source_once_in_a_bounded_number_of_parts(width, height):
    parts = parts_to_caption(width, height)
    assert len(parts) <= MOST_CAPTIONS
    assert sum(w * h for _, _, w, h in parts) == width * height
    assert all(w > 0 and h > 0 for _, _, w, h in parts)
    if max(width, height) <= CAPTION_SIDE:
        assert parts == [(0, 0, width, height)]


def test_what_a_captioner_sees_is_told_where_it_saw_it():
    source = np.zeros((CAPTION_SIDE, 2 * CAPTION_SIDE, 3), np.uint8)
    source[:, CAPTION_SIDE:] = 255

    def look(x, y, w, h):
        return source[y : y + h, x : x + w]

    regions = captioned(lambda part: "snow" if part.mean() > 127 else " night ", look, 2048, 1024, "sharp")
    assert prompt_for((100, 0, 64, 64), (2048, 1024), regions, "") == "night, sharp"
    assert prompt_for((1500, 0, 64, 64), (2048, 1024), regions, "") == "snow, sharp"
    with pytest.raises(TypeError, match="not with a text"):
        captioned(lambda part: None, look, 2048, 1024, "")


def test_a_captioner_is_found_by_name_or_refused():
    assert find_captioner("math:sqrt") is math.sqrt
    for name in ("math", "math:nothing", "no.such.module:f", ":", "math:pi"):
        with pytest.raises(UsageError, match="--captioner"):
            find_captioner(name)
