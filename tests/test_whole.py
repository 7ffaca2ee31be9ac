"""Promises of the whole command with models: bundled, and FLUX of tiny size from a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner
from single_files import original_checkpoint, save
from skimage import data
from tiny import make_tiny_flux
from tiny_stable_diffusion import make_tiny_stable_diffusion

import dino_ray
from dino_ray.cli import main
from dino_ray.report.metrics import luma, psnr

HERE: dict[str, Any] = {"address": "none"}


def reduced(truth: np.ndarray) -> np.ndarray:
    height, width = truth.shape[:2]
    return np.asarray(
        PIL.Image.fromarray(truth).resize((width // 2, height // 2), PIL.Image.Resampling.BICUBIC)
    )


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """192² of a photograph, with an eye in it."""
    return data.astronaut()[32:224, 128:320]


def test_the_bundled_model_restores_what_a_reduction_took(face: np.ndarray) -> None:
    small = reduced(face)
    lanczos = PIL.Image.fromarray(small).resize(face.shape[1::-1], PIL.Image.Resampling.LANCZOS)
    result, report = dino_ray.upscale(small, scale=2, **HERE)
    gain = psnr(luma(result), luma(face), border=4) - psnr(luma(np.asarray(lanczos)), luma(face), border=4)
    assert gain > 1.5
    assert report.model is not None
    assert report.model["name"] == "bundled"


def test_dino_strength_changes_pixels_and_the_report_says_how_much(face: np.ndarray) -> None:
    small = reduced(face)
    with_dino, report = dino_ray.upscale(small, **HERE)
    without, silent = dino_ray.upscale(small, dino_strength=0, **HERE)
    half, _ = dino_ray.upscale(small, dino_strength=0.5, **HERE)
    assert report.dino is not None
    assert report.dino["effect"] > 0
    assert silent.dino is None
    results = [np.asarray(image).astype(int) for image in (with_dino, half, without)]
    assert (results[0] != results[2]).any()
    assert (results[0] != results[1]).any()
    assert (results[1] != results[2]).any()


def test_the_effect_of_dino_is_measured_where_the_model_was_asked(face: np.ndarray) -> None:
    framed = np.pad(reduced(face)[:48, :48], ((0, 192), (0, 192), (0, 0)), constant_values=90)
    _, report = dino_ray.upscale(framed, tile=96, overlap=32, **HERE)
    assert report.fidelity is not None
    tiles = {row["tile"]: row["action"] for row in report.fidelity["tiles"]}
    assert tiles[len(tiles) // 2] == "skipped"
    assert report.dino is not None
    assert tiles[report.dino["probe_tile"]] == "accepted"
    assert report.dino["effect"] > 0
    _, blank = dino_ray.upscale(np.full((40, 40, 3), 90, np.uint8), **HERE)
    assert blank.dino is not None
    assert blank.dino["effect"] == 0


def test_another_images_features_change_the_pixels(face: np.ndarray, tmp_path: Path) -> None:
    """The tokens are read, not only counted: same tile, same noise, features of another photograph."""
    from dataclasses import replace

    from dino_ray.dino.extract import extract
    from dino_ray.dino.loading import load
    from dino_ray.engine.protocol import Guide, ImageTask, TileCall
    from dino_ray.engine.replica import Replica
    from dino_ray.loaders import replica_spec
    from dino_ray.raster.canvas import Canvas
    from dino_ray.raster.source import ingest_array
    from dino_ray.resolve import resolve

    config = dino_ray.UpscaleConfig(address="none")
    settings = resolve(config)
    source = ingest_array(reduced(face), tmp_path / "source.zarr")
    scaling, grid = settings.layout(source.info)
    canvas = Canvas.create(
        tmp_path / "c.zarr", grid.width, grid.height, 3, "uint8", (grid.ys.cell, grid.xs.cell)
    )
    task = ImageTask(source, scaling, grid, canvas, denoise=settings.denoise, steps=settings.steps,
                     dino_strength=1.0)  # fmt: skip
    replica = Replica(replica_spec(config, settings))
    own, _ = replica.prepare(task)
    cup = np.asarray(data.coffee()[100:196, 200:296], np.float32) / 255
    windows = np.pad(cup, ((96, 96), (96, 96), (0, 0)), mode="edge")
    other = extract(
        load("bundled"),
        lambda r: windows[r.y + 96 : r.y1 + 96, r.x + 96 : r.x1 + 96],
        source.info.width,
        source.info.height,
    )
    (with_own,), _ = replica.refine(task, own, TileCall(0, (0,)))
    (again,), _ = replica.refine(task, own, TileCall(0, (0,)))
    (with_other,), _ = replica.refine(task, replace(own, features=other), TileCall(0, (0,)))
    assert isinstance(own, Guide)
    assert (with_own == again).all()
    assert (with_own != with_other).mean() > 0.5


def test_the_net_is_chosen_by_the_sources_grain_and_the_report_says_so(face: np.ndarray) -> None:
    small = reduced(face)
    noise = np.random.default_rng(0).normal(0, 4, small.shape)
    noisy = np.clip(np.rint(small + noise), 0, 255).astype(np.uint8)
    made: dict[tuple[str, str], Any] = {}
    for name, source in (("clean", small), ("worn", noisy)):
        for net in ("auto", "clean", "worn"):
            image, report = dino_ray.upscale(source, model="none", base="net", net=net, **HERE)
            made[name, net] = np.asarray(image)
            if net == "auto":
                assert report.condition is not None
                assert report.condition["worn"] == (name == "worn")
                assert (report.condition["noise"] > 3) == (name == "worn")
        assert (made[name, "auto"] == made[name, name]).all()
        assert (made[name, "clean"] != made[name, "worn"]).mean() > 0.5


def test_a_worn_sources_noise_does_not_come_back(face: np.ndarray) -> None:
    small = reduced(face)
    noise = np.random.default_rng(0).normal(0, 6, small.shape)
    noisy = np.clip(np.rint(small + noise), 0, 255).astype(np.uint8)
    base, _ = dino_ray.upscale(noisy, model="none", base="net", **HERE)
    made, _ = dino_ray.upscale(noisy, **HERE)
    loose, _ = dino_ray.upscale(noisy, consistency=0, **HERE)
    wanted, held, free = (reduced(np.asarray(image)).astype(float) for image in (base, made, loose))
    assert np.abs(held - wanted).mean() < 0.5
    assert np.abs(held - wanted).mean() < np.abs(free - wanted).mean()


def test_denoise_0_is_the_base_untouched(face: np.ndarray) -> None:
    small = reduced(face)
    base, _ = dino_ray.upscale(small, model="none", base="net", tile=128, overlap=32, **HERE)
    untouched, _ = dino_ray.upscale(small, denoise=0, tile=128, overlap=32, **HERE)
    assert (np.asarray(base) == np.asarray(untouched)).all()


@pytest.mark.parametrize("kind", ["schnell", "dev"])
def test_a_flux_folder_runs_through_the_whole_command(tmp_path: Path, kind: Any) -> None:
    folder = make_tiny_flux(tmp_path / "model", kind)
    source, output, report = tmp_path / "in.png", tmp_path / "out.png", tmp_path / "r.json"
    PIL.Image.fromarray(data.astronaut()[:60, :80]).save(source)
    args = ["upscale", source, "-o", output, "--model", folder, "--prompt", "a portrait", "--denoise", "0.6",
            "--steps", "2", "--tile", "64", "--overlap", "16", "--base", "lanczos", "--address", "none",
            "--report", report]  # fmt: skip
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    said = json.loads(report.read_text())
    assert said["model"]["family"] == "flux"
    assert said["dino"]["model"] == "bundled"
    assert said["dino"]["strength"] == 0.5, "it attends to no features, and is guided all the same"
    assert {"text", "encode", "steps", "decode"} <= set(said["stages"])
    assert said["stages"]["text"]["count"] == 1, "the prompt is encoded once, whatever the number of tiles"
    assert said["tiles"] > 1
    with PIL.Image.open(output) as image:
        assert image.size == (160, 120)


def test_a_single_file_found_by_its_name_runs_through_the_whole_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_stable_diffusion(tmp_path / "parts", "sd")
    (tmp_path / "models").mkdir()
    save(tmp_path / "models" / "tune.safetensors", original_checkpoint(folder))
    monkeypatch.setenv("DINO_RAY_MODELS", str(tmp_path / "models"))
    source, output, report = tmp_path / "in.png", tmp_path / "out.png", tmp_path / "r.json"
    PIL.Image.fromarray(data.astronaut()[:40, :40]).save(source)
    args = ["upscale", source, "-o", output, "--model", "tune", "--components", folder, "--denoise", "0.6",
            "--steps", "1", "--tile", "64", "--overlap", "16", "--base", "lanczos", "--address", "none",
            "--dino-strength", "0", "--adaptive", "0", "--no-verify", "--report", report]  # fmt: skip
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    said = json.loads(report.read_text())
    assert (said["model"]["name"], said["model"]["family"]) == ("tune", "sd")
    with PIL.Image.open(output) as image:
        assert image.size == (80, 80)


def name_colour(part: np.ndarray) -> str:
    """A captioner."""
    return "a dark room" if part.mean() < 128 else "snow"


def test_tiles_are_told_what_their_region_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny_flux(tmp_path / "model", "schnell")
    monkeypatch.setitem(sys.modules, "captions", ModuleType("captions"))
    sys.modules["captions"].name_colour = name_colour  # type: ignore[attr-defined]
    source = data.astronaut()[:60, :80]
    right = tmp_path / "regions.json"
    right.write_text('{"units": "fraction", "regions": [{"prompt": "snow", "box": [0.5, 0, 0.5, 1]}]}')
    options = {"model": str(folder), "denoise": 0.6, "steps": 1, "tile": 64, "overlap": 16, "base": "lanczos",
               "batch": 8, "dino_strength": 0, "verify": False, "adaptive": 0, "consistency": 0, "color_lock": "off",
               "address": "none"}  # fmt: skip

    def made(**more: Any) -> np.ndarray:
        return np.asarray(dino_ray.upscale(source, **options, **more).image)

    room, snow = made(prompt="a dark room"), made(prompt="snow")
    by_region = made(prompt="a dark room", prompts=str(right))
    assert (room != snow).any()
    assert (by_region[:, :40] == room[:, :40]).all()
    assert (by_region[:, -40:] == snow[:, -40:]).all()
    captioned = made(captioner="captions:name_colour", prompt="")
    assert (captioned == (room if source.mean() < 128 else snow)).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--dino", "/nowhere"], "--dino /nowhere"),
        (["--cfg", "3"], "takes no guidance scale"),
        (["--negative-prompt", "blur"], "has no classifier-free guidance"),
        (["--prompts", "absent.json"], "absent.json: can't be read"),
        (["--captioner", "no.such:thing"], "can't be imported"),
    ],
)
def test_what_schnell_cannot_do_is_refused(tmp_path: Path, options: list[str], says: str) -> None:
    folder = make_tiny_flux(tmp_path / "model", "schnell")
    source = tmp_path / "in.png"
    PIL.Image.new("RGB", (8, 8)).save(source)
    args = ["upscale", source, "-o", tmp_path / "out.png", "--model", folder, *options]
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == 2
    assert says in result.stderr


@pytest.mark.gpu
def test_a_gpu_gives_the_picture_that_a_cpu_gives(face: np.ndarray) -> None:
    small = reduced(face)
    by_gpu, by_cpu = (
        np.asarray(dino_ray.upscale(small, device=d, dtype="fp32", **HERE).image) for d in ("cuda", "cpu")
    )
    assert psnr(luma(by_gpu), luma(by_cpu)) > 50


@pytest.mark.ray
def test_one_worker_two_workers_and_this_process_give_the_same_bytes(face: np.ndarray) -> None:
    small = reduced(face)
    digests = {
        dino_ray.upscale(small, address=address, workers=workers).report.canvas_sha256
        for address, workers in (("none", "auto"), ("local", 1), ("local", 2))
    }
    assert len(digests) == 1
