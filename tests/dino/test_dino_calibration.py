"""Thresholds of DINO models, and what structure is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dino_ray.dino import calibration, loading, thresholds
from dino_ray.dino.calibration import (
    BESIDE,
    LEAST_PICTURES,
    Calibration,
    calibrate,
    difference_from_neighbours,
    find,
)
from dino_ray.dino.features import FeatureLevel
from dino_ray.dino.structure import change_map, structure
from dino_ray.errors import UsageError
from dino_ray.plan.geometry import Rect

SOME = Calibration(dead_band=0.01, alarm=0.3, structure=(0.2, 0.6), pictures=9)


def pictures(count: int = LEAST_PICTURES, side: int = 96) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        small = torch.from_numpy(rng.random((1, 3, side // 8, side // 8))).float()
        large = torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(0, 1)
        made.append(large[0].permute(1, 2, 0).numpy())
    return made


def test_the_bundled_models_thresholds_ship_with_it() -> None:
    found = find("bundled")
    assert found is not None
    assert found.dead_band < found.alarm < 1


def test_a_folders_thresholds_lie_beside_its_weights(tmp_path: Path) -> None:
    assert find(str(tmp_path)) is None
    (tmp_path / BESIDE).write_text(json.dumps(SOME.to_dict()))
    assert find(str(tmp_path)) == SOME


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"dead_band": 1}', json.dumps({**SOME.to_dict(), "dead_band": 1, "alarm": 0.5})]
)
def test_damaged_thresholds_are_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / BESIDE).write_text(content)
    with pytest.raises(UsageError, match=r"scripts/calibrate_dino\.py"):
        find(str(tmp_path))


def test_calibrating_again_gives_the_same(dino: loading.Dino) -> None:
    assert calibrate(dino, pictures()) == calibrate(dino, pictures())


def test_benign_pairs_of_the_pictures_raise_hardly_an_alarm(dino: loading.Dino) -> None:
    made = calibrate(dino, pictures(8))
    assert 0 <= made.dead_band < made.alarm < 1
    worst = []
    for picture in pictures(8):
        from dino_ray.dino.drift import Reference

        sharp = torch.from_numpy(picture.transpose(2, 0, 1).copy())
        soft, *_ = calibration._benign(sharp, torch.Generator().manual_seed(0))
        worst.append(Reference.of(dino, soft).drift(sharp, made.alarm).worst)
    assert np.mean(np.array(worst) < 1) >= 0.9


def test_a_model_without_thresholds_gets_them_from_the_image(caplog: pytest.LogCaptureFixture) -> None:
    class Nameless:
        name, patch, dim = "nobody/knows-it", 14, 8

        def __call__(self, pixels: Tensor) -> Tensor:
            mean = torch.nn.functional.avg_pool2d(pixels, 14).permute(0, 2, 3, 1)
            return loading.unit_rms(torch.cat([mean, 1 - mean, mean[..., :2] ** 2], -1))

    image = np.random.default_rng(1).random((300, 400, 3)).astype(np.float32)
    read: list[Rect] = []

    def reader(rect: Rect) -> np.ndarray:
        read.append(rect)
        return image[rect.slices]

    made = thresholds.of(Nameless(), reader, 400, 300)
    assert made.alarm > made.dead_band
    assert "calibrate_dino" in caplog.text
    assert all(r.x >= 0 and r.x1 <= 400 and r.y >= 0 and r.y1 <= 300 for r in read)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (40, 13)])
def test_a_tiny_or_empty_image_gives_thresholds_too(size: tuple[int, int], dino: loading.Dino) -> None:
    h, w = size
    blank = np.full((h, w, 3), 0.5, np.float32)
    made = calibrate(dino, thresholds.windows(lambda rect: blank[rect.slices], w, h)[:LEAST_PICTURES])
    assert 0 <= made.dead_band < made.alarm


# ---- structure


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_equal_patches_have_no_structure(rows: int, cols: int, closed: bool) -> None:
    tokens = np.ones((rows, cols, 4), np.float32)
    np.testing.assert_allclose(difference_from_neighbours(tokens, closed), 0, atol=1e-6)


def test_a_patch_unlike_its_neighbours_has_structure_and_so_have_they() -> None:
    tokens = np.zeros((5, 5, 2), np.float32)
    tokens[..., 0] = np.sqrt(2)
    tokens[2, 2] = (0, np.sqrt(2))
    difference = difference_from_neighbours(tokens)
    assert difference[2, 2] == pytest.approx(1)
    assert difference[2, 1] == pytest.approx(1 / 4)
    assert difference[0, 0] == pytest.approx(0, abs=1e-6)


def level(tokens: np.ndarray, closed: bool = False) -> FeatureLevel:
    return FeatureLevel(tokens.astype(np.float16), 7, 7, 14, 14, closed)


def random_level(rows: int, cols: int, closed: bool = False) -> FeatureLevel:
    tokens = np.random.default_rng(0).normal(size=(rows, cols, 6))
    tokens /= np.sqrt(np.mean(tokens**2, axis=-1, keepdims=True))
    return level(tokens, closed)


def test_structure_is_the_same_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = random_level(11, 7)
    whole = structure(fine, SOME).tokens
    monkeypatch.setattr("dino_ray.dino.structure.STRIP_BYTES", 1)
    np.testing.assert_array_equal(structure(fine, SOME).tokens, whole)


def test_a_panoramas_structure_goes_around() -> None:
    turned = random_level(4, 8, closed=True)
    shifted = level(np.roll(turned.tokens, 3, axis=1), closed=True)
    expected = np.roll(structure(turned, SOME).tokens, 3, axis=1)
    np.testing.assert_allclose(structure(shifted, SOME).tokens, expected, atol=2e-3)


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 1), st.floats(-30, 150), st.floats(1, 200))
def test_change_is_withheld_by_no_more_than_is_asked(adaptive: float, x: float, side: float) -> None:
    found = structure(random_level(6, 6), SOME)
    allowed = change_map(found, (x, x, side, side), 8, 8, adaptive)
    assert allowed.shape == (8, 8)
    assert allowed.min() >= 1 - adaptive - 1e-6
    assert allowed.max() <= 1


@pytest.fixture(scope="module")
def dino() -> loading.Dino:
    return loading.load("bundled")
