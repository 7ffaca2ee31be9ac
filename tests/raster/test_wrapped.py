"""A source that closes on itself: the same pixels one turn further, in whatever windows they are read."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_ray.plan.geometry import Rect, Scaling
from dino_ray.raster.source import Source, ingest_array
from dino_ray.raster.wrapped import Wrapped
from dino_ray.upsample import Lanczos, base_tile

WIDTH, HEIGHT = 70, 20


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def source(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return ingest_array(image, tmp_path_factory.mktemp("wrapped") / "source.zarr")


@given(st.integers(-300, 300), st.integers(-30, 30), st.integers(1, 250), st.integers(1, 60))
def test_a_window_goes_around_in_x_and_replicates_in_y(
    image: np.ndarray, source: Source, x: int, y: int, w: int, h: int
) -> None:
    window = Wrapped(source).read(Rect(x, y, w, h))
    ys = np.clip(np.arange(y, y + h), 0, HEIGHT - 1)
    xs = [column % WIDTH for column in range(x, x + w)]
    np.testing.assert_array_equal(window, image[np.ix_(ys, xs)])
    assert window.flags.writeable


def test_a_window_inside_is_read_at_once_and_one_across_the_edge_in_two_parts(source: Source) -> None:
    class Counting:
        info = source.info

        def __init__(self) -> None:
            self.asked: list[Rect] = []

        def read(self, rect: Rect) -> np.ndarray:
            self.asked.append(rect)
            return source.read(rect)

    counting = Counting()
    Wrapped(counting).read(Rect(5, 3, WIDTH - 5, 9))
    Wrapped(counting).read(Rect(60, 3, 20, 9))
    assert counting.asked == [Rect(5, 3, WIDTH - 5, 9), Rect(60, 3, 10, 9), Rect(0, 3, 10, 9)]


def test_a_column_as_wide_as_the_source_is_a_constant_row(tmp_path: Path) -> None:
    pixels = np.arange(4, dtype=np.uint8)[:, None]
    wrapped = Wrapped(ingest_array(pixels, tmp_path / "source.zarr"))
    np.testing.assert_array_equal(wrapped.read(Rect(-3, 0, 9, 4))[..., 0], np.broadcast_to(pixels, (4, 9)))


def test_it_travels_to_workers(source: Source) -> None:
    wrapped = Wrapped(source)
    again = pickle.loads(pickle.dumps(wrapped))
    assert again == wrapped
    assert again.info == source.info
    rect = Rect(-9, 2, 30, 5)
    np.testing.assert_array_equal(again.read(rect), wrapped.read(rect))


@pytest.mark.parametrize("scale", [1, 2, 1.6])
def test_the_base_closes_by_itself(source: Source, scale: float) -> None:
    scaling = Scaling.from_factor(WIDTH, HEIGHT, scale)
    wrapped, lanczos = Wrapped(source), Lanczos()
    width = scaling.canvas_w
    here = base_tile(wrapped.read, Rect(0, 4, width, 16), scaling, lanczos)
    beyond = base_tile(wrapped.read, Rect(width - 9, 4, 30, 16), scaling, lanczos)
    np.testing.assert_allclose(beyond, np.roll(here, 9, axis=1)[:, :30], atol=1e-6)
