from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_ray.dino.extract import WINDOW_SIDE, FeatureLevel, FeatureMap, extract
from dino_ray.dino.resample import READ_SIDE, Resized
from dino_ray.plan.geometry import Rect

Image = NDArray[np.float32]


@dataclass
class PatchMeans:
    """Each token tells the mean red and green of its patch as two angles, so that its norm says nothing."""

    patch: int = 14
    dim: int = 4
    name: str = "patch-means"
    windows: list[tuple[int, int, int]] = field(default_factory=list)

    def __call__(self, pixels: Tensor) -> Tensor:
        assert pixels.dtype == torch.float32
        assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
        self.windows.append((pixels.shape[0], pixels.shape[2] // self.patch, pixels.shape[3] // self.patch))
        angles = torch.nn.functional.avg_pool2d(pixels[:, :2], self.patch).permute(0, 2, 3, 1) * (np.pi / 2)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def told(tokens: NDArray[np.floating]) -> NDArray[np.float64]:
    """Red and green that `PatchMeans` tokens tell: (..., 2)."""
    wide = tokens.astype(np.float64)
    return np.arctan2(wide[..., 2:], wide[..., :2]) / (np.pi / 2)


@dataclass
class Reader:
    """Reads an image as a store does: edges replicated, every window noted."""

    image: Image
    rects: list[Rect] = field(default_factory=list)

    def __call__(self, rect: Rect) -> Image:
        self.rects.append(rect)
        height, width = self.image.shape[:2]
        ys = np.clip(np.arange(rect.y, rect.y + rect.h), 0, height - 1)
        xs = np.clip(np.arange(rect.x, rect.x + rect.w), 0, width - 1)
        return self.image[np.ix_(ys, xs)]


def ramp(width: int, height: int) -> Image:
    """Red grows from left to right and green from top to bottom, from 0.1 to 0.9."""
    image = np.zeros((height, width, 3), np.float32)
    image[..., 0] = 0.1 + 0.8 * (np.arange(width) + 0.5) / width
    image[..., 1] = (0.1 + 0.8 * (np.arange(height) + 0.5) / height)[:, None]
    return image


def ripples(width: int, height: int, seed: int = 0) -> Image:
    grid = np.random.default_rng(seed).random((height // 8 + 2, width // 8 + 2, 3))
    return np.kron(grid, np.ones((8, 8, 1)))[:height, :width].astype(np.float32)


SIZES = [(518, 518), (1000, 700), (333, 517), (1601, 45), (23, 900), (769, 771), (37, 29)]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("patch", [14, 16])
def test_a_ramp_lands_where_it_should_to_a_twentieth_of_a_patch(width: int, height: int, patch: int) -> None:
    features = extract(PatchMeans(patch), Reader(ramp(width, height)), width, height)
    # Windows with odd origins and sizes, kept one and a half tokens off the border, where the map is clamped.
    for level, channels in ((features.coarse, slice(0, 4)), (features.fine, slice(4, 8))):
        margin_x, margin_y = 1.5 * level.dx, 1.5 * level.dy
        for u, v, w, h in ((0.0, 0.0, 1.0, 1.0), (0.31, 0.12, 0.47, 0.55), (0.62, 0.7, 0.05, 0.21)):
            rows, cols = 5, 7
            x, y, w, h = u * width, v * height, w * width, h * height
            value = told(features.crop(x, y, w, h, rows, cols)[..., channels])
            xs = x + (np.arange(cols) + 0.5) / cols * w
            ys = y + (np.arange(rows) + 0.5) / rows * h
            inner_x = (xs > margin_x) & (xs < width - margin_x)
            inner_y = (ys > margin_y) & (ys < height - margin_y)
            found_x = (value[:, inner_x, 0] - 0.1) / 0.8 * width
            found_y = (value[inner_y, :, 1] - 0.1) / 0.8 * height
            assert np.abs(found_x - xs[inner_x]).max(initial=0) < level.dx / 20
            assert np.abs(found_y - ys[inner_y, None]).max(initial=0) < level.dy / 20


@pytest.mark.parametrize(("width", "height"), [*SIZES, (1, 1), (3, 1), (1, 700), (13, 14), (5000, 2)])
@pytest.mark.parametrize("patch", [14, 16])
def test_both_levels_cover_the_source_at_any_shape(width: int, height: int, patch: int) -> None:
    features = extract(PatchMeans(patch), Reader(ramp(width, height)), width, height)
    fine, coarse = features.fine, features.coarse
    assert fine.tokens.shape[:2] == (-(-height // patch), -(-width // patch))
    assert (fine.dx, fine.dy, fine.x0, fine.y0) == (patch, patch, patch / 2, patch / 2)
    rows, cols, _ = coarse.tokens.shape
    assert max(rows, cols) == WINDOW_SIDE // patch
    assert coarse.dx * cols == pytest.approx(width)
    assert coarse.dy * rows == pytest.approx(height)
    assert (coarse.x0, coarse.y0) == (coarse.dx / 2, coarse.dy / 2)
    for level in (fine, coarse):
        assert level.tokens.dtype == np.float16
        rms = np.sqrt(np.mean(np.square(level.tokens.astype(np.float64)), axis=-1))
        assert np.abs(rms - 1).max() < 2e-3


@pytest.mark.parametrize("patch", [14, 16])
def test_the_fine_level_equals_a_mean_over_all_windows_at_once(patch: int) -> None:
    class WindowDependent(PatchMeans):
        """A token also depends on where in its window it lies, as those of a transformer do."""

        def __call__(self, pixels: Tensor) -> Tensor:
            tokens = super().__call__(pixels)
            return (
                tokens
                + 0.3 * torch.linspace(-1, 1, tokens.shape[2])[:, None]
                + 0.2 * tokens.mean((1, 2), True)
            )

    width, height = 1291, 903
    image = ripples(width, height)
    features = extract(WindowDependent(patch), Reader(image), width, height)

    rows, cols = -(-height // patch), -(-width // patch)
    whole = Reader(image)(Rect(0, 0, cols * patch, rows * patch))
    side = WINDOW_SIDE // patch
    hann = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    total, weights = np.zeros((rows, cols, 4)), np.zeros((rows, cols, 1))
    for top in sorted({*range(0, rows - side, side // 2), rows - side}):
        for left in sorted({*range(0, cols - side, side // 2), cols - side}):
            window = whole[top * patch : (top + side) * patch, left * patch : (left + side) * patch]
            tokens = WindowDependent(patch)(torch.from_numpy(window.copy()).permute(2, 0, 1)[None])[0].numpy()
            tokens = tokens / np.sqrt(np.mean(tokens**2, axis=-1, keepdims=True))
            weight = np.outer(hann, hann)[..., None]
            total[top : top + side, left : left + side] += tokens * weight
            weights[top : top + side, left : left + side] += weight
    expected = total / weights
    expected /= np.sqrt(np.mean(expected**2, axis=-1, keepdims=True))
    np.testing.assert_allclose(features.fine.tokens, expected, atol=2e-3)


def test_windows_are_518_px_every_252() -> None:
    reader = Reader(ramp(1022, 600))
    dino = PatchMeans()
    extract(dino, reader, 1022, 600)
    windows = [rect for rect in reader.rects if (rect.w, rect.h) == (518, 518)]
    assert sorted({rect.x for rect in windows}) == [0, 252, 504]
    assert sorted({rect.y for rect in windows}) == [0, 84]
    assert {shape[1:] for shape in dino.windows} == {
        (37, 37),
        (22, 37),
    }  # the fine windows and the whole image


def test_no_read_is_larger_than_the_bound_and_all_of_a_large_source_is_seen() -> None:
    width, height = 9000, 2200
    reader = Reader(ripples(width, height))
    done: list[tuple[int, int]] = []
    extract(PatchMeans(), reader, width, height, on_window=lambda n, of: done.append((n, of)))
    assert max(max(rect.w, rect.h) for rect in reader.rects) <= READ_SIDE
    seen = np.zeros((height, width), bool)
    for rect in reader.rects:
        seen[max(rect.y, 0) : rect.y + rect.h, max(rect.x, 0) : rect.x + rect.w] = True
    assert seen.all()
    assert done[-1][0] == done[-1][1]


def test_a_fine_level_beyond_its_budget_is_made_from_a_reduced_source() -> None:
    width, height = 3000, 1200
    budget = 25_000
    features = extract(PatchMeans(), Reader(ramp(width, height)), width, height, fine_bytes=budget)
    assert 0.9 * budget < features.fine.tokens.nbytes <= budget
    fine = features.fine
    assert fine.dx > 14
    value = told(fine.tokens)[:-1, :-1]
    xs = fine.x0 + np.arange(value.shape[1]) * fine.dx
    ys = fine.y0 + np.arange(value.shape[0]) * fine.dy
    assert np.abs((value[..., 0] - 0.1) / 0.8 * width - xs)[1:-1, 1:-1].max() < fine.dx / 20
    assert np.abs((value[..., 1] - 0.1) / 0.8 * height - ys[:, None])[1:-1, 1:-1].max() < fine.dy / 20


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((1500, 1100), (518, 378)),
        ((2300, 40), (518, 14)),
        ((100, 80), (518, 420)),
        ((3, 2), (28, 14)),
        ((1, 1), (14, 14)),
    ],
)
def test_a_resize_from_windows_equals_torchs_of_the_whole(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    image = ripples(*source)
    resized = Resized(Reader(image), *source, *target).window(Rect(0, 0, *target))
    whole = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(whole, (target[1], target[0]), mode="bicubic", antialias=True)
    np.testing.assert_allclose(resized, expected[0].permute(1, 2, 0).clamp(0, 1), atol=1e-4)


def test_a_window_of_a_resize_is_that_part_of_it_with_replicated_edges() -> None:
    resized = Resized(Reader(ripples(2500, 1700)), 2500, 1700, 777, 555)
    whole = resized.window(Rect(0, 0, 777, 555))
    np.testing.assert_allclose(resized.window(Rect(300, 100, 90, 55)), whole[100:155, 300:390], atol=1e-6)
    beyond = resized.window(Rect(770, 540, 20, 20))
    np.testing.assert_allclose(beyond[:15, :7], whole[540:, 770:], atol=1e-6)
    np.testing.assert_allclose(beyond[15:], np.broadcast_to(beyond[14], (5, 20, 3)), atol=1e-6)


class TestCrop:
    def level(self, rows: int = 4, cols: int = 6, dim: int = 3, seed: int = 0) -> FeatureLevel:
        tokens = np.random.default_rng(seed).normal(size=(rows, cols, dim)).astype(np.float16)
        return FeatureLevel(tokens, x0=5.0, y0=7.0, dx=10.0, dy=14.0)

    def feature_map(self) -> FeatureMap:
        return FeatureMap("made-up", 60, 56, coarse=self.level(seed=1), fine=self.level(seed=2, dim=2))

    def test_at_token_centres_it_returns_the_tokens(self) -> None:
        features = self.feature_map()
        crop = features.crop(0, 0, 60, 56, 4, 6)
        assert crop.dtype == np.float32
        assert crop.shape == (4, 6, features.dim) == (4, 6, 5)
        np.testing.assert_array_equal(crop[..., :3], features.coarse.tokens.astype(np.float32))
        np.testing.assert_array_equal(crop[..., 3:], features.fine.tokens.astype(np.float32))

    def test_between_centres_it_is_bilinear(self) -> None:
        features = self.feature_map()
        tokens = features.coarse.tokens.astype(np.float64)
        # One sample at x = 5 + 2.25 * 10, y = 7 + 1.5 * 14.
        x, y = 27.5, 28.0
        crop = features.crop(x - 1, y - 1, 2, 2, 1, 1)[0, 0, :3]
        rows = (tokens[1] + tokens[2]) / 2
        np.testing.assert_allclose(crop, 0.75 * rows[2] + 0.25 * rows[3], atol=1e-6)

    @pytest.mark.parametrize("sign", [-1, 1])
    def test_beyond_the_border_the_outermost_token_repeats(self, sign: int) -> None:
        features = self.feature_map()
        tokens = features.coarse.tokens.astype(np.float32)
        outermost = 0 if sign < 0 else -1
        far = 1000.0 * sign
        corner = features.crop(far, far, 0, 0, 1, 1)[0, 0, :3]
        np.testing.assert_array_equal(corner, tokens[outermost, outermost])
        along_x = features.crop(far, 0, 0, 56, 4, 1)[:, 0, :3]
        np.testing.assert_array_equal(along_x, tokens[:, outermost])
        along_y = features.crop(0, far, 60, 0, 1, 6)[0, :, :3]
        np.testing.assert_array_equal(along_y, tokens[outermost])

    def test_it_works_on_read_only_arrays_and_survives_pickling(self) -> None:
        features = self.feature_map()
        for level in (features.coarse, features.fine):
            level.tokens.flags.writeable = False
        again = pickle.loads(pickle.dumps(features))
        np.testing.assert_array_equal(again.crop(3, 4, 20, 30, 3, 2), features.crop(3, 4, 20, 30, 3, 2))
        assert again.fingerprint() == features.fingerprint()

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: FeatureMap("other", m.width, m.height, m.coarse, m.fine),
            lambda m: FeatureMap(m.model, m.width + 1, m.height, m.coarse, m.fine),
            lambda m: FeatureMap(m.model, m.width, m.height, m.fine, m.coarse),
            lambda m: FeatureMap(
                m.model, m.width, m.height, m.coarse, FeatureLevel(m.fine.tokens, 5.0, 7.0, 10.0, 15.0)
            ),
        ],
    )
    def test_the_fingerprint_tells_maps_apart(self, change: Callable[[FeatureMap], FeatureMap]) -> None:
        features = self.feature_map()
        assert change(features).fingerprint() != features.fingerprint()
