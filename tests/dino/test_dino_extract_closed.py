"""Features of a source that closes on itself: no column of a panorama is an edge."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_ray.dino.extract import WINDOW_SIDE, extract
from dino_ray.dino.features import FeatureLevel, FeatureMap
from dino_ray.dino.resample import READ_SIDE, Resized
from dino_ray.plan.geometry import Rect

Image = NDArray[np.float32]


@dataclass(frozen=True)
class PatchMeans:
    """Each token tells the mean red and green of its patch as two angles, so that its norm says nothing."""

    patch: int = 14
    dim: int = 4
    name: str = "patch-means"

    def __call__(self, pixels: Tensor) -> Tensor:
        angles = torch.nn.functional.avg_pool2d(pixels[:, :2], self.patch).permute(0, 2, 3, 1) * (np.pi / 2)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


@dataclass(frozen=True)
class WindowDependent(PatchMeans):
    """A token also depends on where in its window it lies and what else is there, as a transformer's do."""

    def __call__(self, pixels: Tensor) -> Tensor:
        tokens = super().__call__(pixels)
        place = torch.linspace(-1, 1, tokens.shape[2])[:, None] ** 2
        return tokens + 0.3 * place + 0.2 * tokens.mean((1, 2), keepdim=True)


@dataclass
class Around:
    """Reads a panorama as `dino_ray.raster.wrapped.Wrapped` does, every window noted."""

    image: Image
    rects: list[Rect] = field(default_factory=list)

    def __call__(self, rect: Rect) -> Image:
        self.rects.append(rect)
        height, width = self.image.shape[:2]
        ys = np.clip(np.arange(rect.y, rect.y1), 0, height - 1)
        return self.image[np.ix_(ys, np.arange(rect.x, rect.x1) % width)]


def told(tokens: NDArray[np.floating]) -> NDArray[np.float64]:
    """Red and green that `PatchMeans` tokens tell: (..., 2)."""
    wide = tokens.astype(np.float64)
    return np.arctan2(wide[..., 2:], wide[..., :2]) / (np.pi / 2)


def wave(x: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Red and green at ``x``, source_px: one swing around the panorama, a quarter apart."""
    phase = 2 * np.pi * x / width
    return 0.5 + 0.4 * np.stack([np.sin(phase), np.cos(phase)], axis=-1)


def panorama(width: int, height: int) -> Image:
    image = np.zeros((height, width, 3), np.float32)
    image[..., :2] = wave(np.arange(width) + 0.5, width)
    return image


def ripples(width: int, height: int) -> Image:
    grid = np.random.default_rng(0).random((height // 8 + 1, width // 8 + 1, 3))
    return np.kron(grid, np.ones((8, 8, 1)))[:height, :width].astype(np.float32)


SIZES = [(1036, 518), (1000, 500), (1601, 45), (333, 600), (1300, 650)]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("patch", [14, 16])
def test_what_is_where_is_told_all_around_the_seam_included(width: int, height: int, patch: int) -> None:
    features = extract(PatchMeans(patch), Around(panorama(width, height)), width, height, closed=True)
    for level, channels in ((features.coarse, slice(0, 4)), (features.fine, slice(4, 8))):
        assert level.closed
        assert level.tokens.shape[1] * level.dx == pytest.approx(width)
        cols = 50
        for x, w in ((0, width), (width - 100, 200), (-37.5, 75), (width * 0.75, width / 2)):
            value = told(features.crop(x, 0, w, height, 3, cols)[..., channels])
            xs = x + (np.arange(cols) + 0.5) / cols * w
            # A mean over a token, and a line between two of them, both cut a little off the wave's crests.
            flattened = 0.4 * (2 * np.pi * level.dx / width) ** 2 / 6
            assert np.abs(value - wave(xs, width)).max() < flattened + 0.004


@pytest.mark.parametrize(
    ("width", "height"), [*SIZES, (1, 1), (3, 1), (1, 700), (13, 14), (5000, 2), (28, 30)]
)
@pytest.mark.parametrize("patch", [14, 16])
def test_both_levels_close_at_any_shape(width: int, height: int, patch: int) -> None:
    features = extract(PatchMeans(patch), Around(panorama(width, height)), width, height, closed=True)
    assert features.fine.tokens.shape[:2] == (-(-height // patch), max(1, round(width / patch)))
    assert max(features.coarse.tokens.shape[:2]) == WINDOW_SIDE // patch
    for level in (features.fine, features.coarse):
        rms = np.sqrt(np.mean(np.square(level.tokens.astype(np.float64)), axis=-1))
        assert np.abs(rms - 1).max() < 2e-3
    here, next_turn = (features.crop(x, 0, width, height, 4, 9) for x in (0, width))
    np.testing.assert_allclose(here, next_turn, atol=1e-5)


def test_a_turned_panorama_has_the_turned_features() -> None:
    width, height, turn = 1024, 512, 512  # 64 tokens around, windows every 16; 32 coarse ones, views every 16
    image = ripples(width, height)
    dino = WindowDependent(patch=16)
    features = extract(dino, Around(image), width, height, closed=True)
    turned = extract(dino, Around(np.roll(image, turn, axis=1)), width, height, closed=True)
    for level, there in ((features.fine, turned.fine), (features.coarse, turned.coarse)):
        columns = round(turn / level.dx)
        np.testing.assert_allclose(there.tokens, np.roll(level.tokens, columns, axis=1), atol=2e-3)
    left_open = extract(dino, Around(image), width, height)
    assert np.abs(left_open.fine.tokens - features.fine.tokens).max() > 0.02


def test_the_fine_level_equals_a_mean_over_all_windows_around() -> None:
    patch, cols, rows = 14, 90, 50
    image = ripples(cols * patch, rows * patch)
    dino = WindowDependent(patch)
    features = extract(dino, Around(image), cols * patch, rows * patch, closed=True)
    side = WINDOW_SIDE // patch
    hann = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    weight = np.outer(hann, hann)[..., None]
    total, weights = np.zeros((rows, 2 * cols, 4)), np.zeros((rows, 2 * cols, 1))
    twice = np.concatenate([image, image], axis=1)
    for left in (0, 18, 36, 54, 72):  # 90 tokens around, in five steps of no more than half a window
        for top in (0, rows - side):
            here = slice(top, top + side), slice(left, left + side)
            window = twice[top * patch : (top + side) * patch, left * patch : (left + side) * patch]
            tokens = dino(torch.from_numpy(window.copy()).permute(2, 0, 1)[None])[0].numpy()
            total[here] += tokens / np.sqrt(np.mean(tokens**2, axis=-1, keepdims=True)) * weight
            weights[here] += weight
    expected = (total[:, :cols] + total[:, cols:]) / (weights[:, :cols] + weights[:, cols:])
    expected /= np.sqrt(np.mean(expected**2, axis=-1, keepdims=True))
    np.testing.assert_allclose(features.fine.tokens, expected, atol=2e-3)


def test_no_read_is_larger_than_the_bound_and_the_budget_is_kept() -> None:
    width, height, budget = 3001, 500, 25_000
    reader = Around(panorama(width, height))
    features = extract(PatchMeans(), reader, width, height, closed=True, fine_bytes=budget)
    assert max(max(rect.w, rect.h) for rect in reader.rects) <= READ_SIDE
    assert 0.9 * budget < features.fine.tokens.nbytes <= budget
    assert features.fine.tokens.shape[1] * features.fine.dx == pytest.approx(width)


@pytest.mark.parametrize(
    ("source", "target"), [((1500, 1100), (518, 378)), ((2300, 40), (2296, 40)), ((3, 2), (28, 14))]
)
def test_a_closed_resize_is_the_middle_turn_of_many(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = ripples(*source)
    (w, h), turns = target, 5  # so many that the edges of the row are out of the kernel's sight
    closed = Resized(Around(image), *source, *target, closed=True)
    laid_out = torch.from_numpy(np.tile(image, (1, turns, 1))).double().permute(2, 0, 1)[None]
    row = torch.nn.functional.interpolate(laid_out, (h, turns * w), mode="bicubic", antialias=True)
    expected = row[0].permute(1, 2, 0).clamp(0, 1).numpy()
    np.testing.assert_allclose(closed.window(Rect(0, 0, w, h)), expected[:, 2 * w : 3 * w], atol=1e-4)
    np.testing.assert_allclose(
        closed.window(Rect(w - 9, 2, 20, 9)), expected[2:11, 3 * w - 9 : 3 * w + 11], atol=1e-4
    )


class TestClosedCrop:
    def level(self) -> FeatureLevel:
        tokens = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float16)
        return FeatureLevel(tokens, x0=5.0, y0=7.0, dx=10.0, dy=14.0, closed=True)

    def test_between_the_last_token_and_the_first_it_is_bilinear(self) -> None:
        level = self.level()
        tokens = level.tokens.astype(np.float32)
        across = level.sample(np.array([55.0, 57.5, 62.5, 65.0]), np.array([7.0]))[0]
        expected = [
            tokens[0, 5],
            *(f * tokens[0, 5] + (1 - f) * tokens[0, 0] for f in (0.75, 0.25)),
            tokens[0, 0],
        ]
        np.testing.assert_allclose(across, expected, atol=1e-6)

    @pytest.mark.parametrize("turn", [-2, -1, 1, 3])
    def test_tokens_come_again_every_turn_and_rows_do_not(self, turn: int) -> None:
        level = self.level()
        xs, ys = np.linspace(0, 60, 17), np.array([-50.0, 20.0, 400.0])
        np.testing.assert_allclose(level.sample(xs + 60 * turn, ys), level.sample(xs, ys), atol=1e-5)
        np.testing.assert_array_equal(level.sample(np.array([5.0]), ys)[[0, 2], 0], level.tokens[[0, 3], 0])

    def test_the_fingerprint_tells_closed_from_open(self) -> None:
        level = self.level()
        closed = FeatureMap("made-up", 60, 56, coarse=level, fine=level)
        left_open = replace(closed, fine=replace(level, closed=False))
        assert closed.fingerprint() != left_open.fingerprint()
