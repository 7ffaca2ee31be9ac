"""Promises of DINO models of every kind at work: they guide, judge, and find thresholds of their own."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import Shade, make_task, photograph

from dino_ray.config import UpscaleConfig
from dino_ray.dino import calibration, loading
from dino_ray.dino.guidance import Guidance
from dino_ray.engine.protocol import ReplicaSpec, TileCall
from dino_ray.engine.replica import Replica
from dino_ray.errors import UsageError
from dino_ray.resolve import resolve
from dino_ray.upsample import Lanczos

SMALL: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def make(kind: str) -> Any:
    import transformers

    if kind == "dinov2":
        return transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, image_size=70, patch_size=14))
    if kind == "dinov2 of patch 16":
        return transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, image_size=64, patch_size=16))
    if kind == "dinov2 with registers":
        config = transformers.Dinov2WithRegistersConfig(
            **SMALL, image_size=70, patch_size=14, num_register_tokens=3
        )
        return transformers.Dinov2WithRegistersModel(config)
    config = transformers.DINOv3ViTConfig(
        **SMALL, intermediate_size=48, image_size=64, patch_size=16, num_register_tokens=4
    )
    return transformers.DINOv3ViTModel(config)


KINDS = ("dinov2", "dinov2 of patch 16", "dinov2 with registers", "dinov3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    saved = {}
    for kind in KINDS:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            saved[kind] = tmp_path_factory.mktemp(kind.replace(" ", "-"))
            make(kind).save_pretrained(saved[kind])
    return saved


@pytest.mark.parametrize("begin", ["inference", "gradient"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_lets_gradients_through_whatever_it_did_before(
    folders: dict[str, Path], kind: str, begin: str
) -> None:
    """What a model keeps between calls (positions, rotary tables) must not be a tensor of inference mode."""
    dino = loading.load(str(folders[kind]))
    rng = np.random.default_rng(2)
    base, drifted = (torch.from_numpy(rng.random((1, 3, 40, 52), np.float32)) for _ in range(2))
    if begin == "inference":
        with torch.inference_mode():
            dino(torch.zeros(1, 3, 3 * dino.patch, 4 * dino.patch))
            steer = Guidance.towards(dino, lambda x: x, base, 1.0, 0.0)
            steered = steer(drifted.clone())
    else:
        steer = Guidance.towards(dino, lambda x: x, base, 1.0, 0.0)
        steered = steer(drifted)
    with torch.inference_mode():
        again = steer(drifted.clone())
    assert (steered != drifted).any()
    assert (steered == again).all()
    assert not steered.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_guides_and_judges_the_tiles_of_an_image(
    folders: dict[str, Path], kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = replace(
        make_task(tmp_path, tile=96), dino_strength=0.5, verify=True, adaptive=0.5, consistency=1.0
    )
    replica = Replica(
        ReplicaSpec(upsampler=Lanczos, denoiser=Shade, dino=lambda: loading.load(str(folders[kind])))
    )
    with caplog.at_level(logging.WARNING):
        guide, _ = replica.prepare(task)
    assert "no thresholds are stored for the DINO model" in caplog.text
    assert guide.structure is not None
    pixels, timings = replica.refine(task, guide, TileCall(1, (0, 1)))
    assert all(record.cosine_min is not None and len(record.heat) == 64 for record in timings.fidelity)
    again, _ = replica.refine(task, guide, TileCall(2, (0, 1)))
    np.testing.assert_array_equal(pixels, again)
    unguided, _ = replica.refine(replace(task, dino_strength=0.0), guide, TileCall(3, (0, 1)))
    plain, _ = replica.refine(replace(task, dino_strength=0.0, verify=False), guide, TileCall(4, (0, 1)))
    assert np.shape(unguided) == np.shape(plain)


@pytest.mark.parametrize("pixels", [np.full((40, 30, 3), 90, np.uint8), np.full((1, 1, 3), 7, np.uint8),
                                    photograph(9, 300), np.zeros((300, 200), np.uint8)])  # fmt: skip
def test_a_source_that_shows_nothing_gives_thresholds_too(
    folders: dict[str, Path], pixels: np.ndarray, tmp_path: Path
) -> None:
    task = replace(make_task(tmp_path, pixels, tile=96), verify=True)
    replica = Replica(
        ReplicaSpec(upsampler=Lanczos, denoiser=Shade, dino=lambda: loading.load(str(folders["dinov2"])))
    )
    guide, _ = replica.prepare(task)
    assert guide.calibration is not None
    assert 0 <= guide.calibration.dead_band < guide.calibration.alarm <= 2
    _, timings = replica.refine(task, guide, TileCall(1, (0,)))
    json.dumps(timings.fidelity[0].to_dict(), allow_nan=False)


@pytest.mark.gpu
def test_thresholds_are_the_same_on_a_gpu() -> None:
    pictures = [photograph(128, 128).astype(np.float32) / 255] * calibration.LEAST_PICTURES
    here, there = (calibration.calibrate(loading.load("bundled", d), pictures) for d in ("cpu", "cuda"))
    assert here.alarm == pytest.approx(there.alarm, abs=0.01)
    assert here.dead_band == pytest.approx(there.dead_band, abs=0.01)


GOOD = {"dead_band": 0.01, "alarm": 0.3, "structure": [0.5, 1.0], "pictures": 9}


def test_thresholds_beside_a_model_are_taken(folders: dict[str, Path]) -> None:
    path = folders["dinov3"] / calibration.BESIDE
    path.write_text(json.dumps(GOOD))
    try:
        found = calibration.find(str(folders["dinov3"]))
    finally:
        path.unlink()
    assert found is not None
    assert (found.alarm, found.structure) == (0.3, (0.5, 1.0))
    assert found.to_dict() == GOOD


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        "{}",
        json.dumps({**GOOD, "alarm": 0.005}),
        json.dumps({**GOOD, "alarm": float("nan")}),
        json.dumps({**GOOD, "alarm": "0.3"}),
        json.dumps({**GOOD, "structure": [0.5]}),
        json.dumps({**GOOD, "structure": [1, 2, 3]}),
        json.dumps({**GOOD, "structure": None}),
        json.dumps({**GOOD, "structure": "ab"}),
        json.dumps({**GOOD, "structure": [0.5, float("inf")]}),
        json.dumps({**GOOD, "more": 1}),
        b"\xff\xfe",
    ],
)
def test_damaged_thresholds_are_refused_before_any_work(
    folders: dict[str, Path], content: str | bytes
) -> None:
    path = folders["dinov3"] / calibration.BESIDE
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    config = UpscaleConfig(dino=str(folders["dinov3"]), dino_strength=0)
    try:
        with pytest.raises(UsageError, match=r"--dino .* holds no thresholds .*; remake it"):
            resolve(config)
    finally:
        path.unlink()
    assert resolve(config).dino == str(folders["dinov3"])
