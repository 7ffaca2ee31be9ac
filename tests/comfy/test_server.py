"""In a real ComfyUI server, driven as a browser does. One command:

COMFYUI_PATH=… COMFYUI_PYTHON=… scripts/test -m slow tests/comfy
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyserver import CONDITIONING_NODES, Seen, Server, make_checkpoint, serve
from PIL import Image

from dino_ray import upscale
from dino_ray.comfy import __file__ as comfy_init

COMFYUI, PYTHON = os.environ.get("COMFYUI_PATH"), os.environ.get("COMFYUI_PYTHON", sys.executable)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not COMFYUI, reason="COMFYUI_PATH names no checkout of ComfyUI"),
]

WORKFLOWS = Path(comfy_init).parent / "workflows"
WIDTHS = {"sd15": (768, 768), "sdxl": (2048, 1280), "flux": (4096, 768)}
"""Of text embeddings, and of pooled ones."""
SIZE = 48, 40
"""Of the source; tiles of 64 px of a result twice as large are two by two."""
NODE, SAVE, REPORT = "5", "6", "8"
"""Of the workflow with a MODEL."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert COMFYUI
    folder = tmp_path_factory.mktemp("comfyui")
    models = Path(os.environ.get("COMFYUI_TEST_MODELS", tmp_path_factory.mktemp("models")))
    for kind in WIDTHS:
        make_checkpoint(COMFYUI, PYTHON, models, kind)
    (folder / "input").mkdir()
    source().save(folder / "input" / "source.png")
    with serve(COMFYUI, PYTHON, folder, models, nodes=CONDITIONING_NODES) as running:
        yield running


def source() -> Image.Image:
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    pixels = np.stack([128 + 100 * np.sin(x / 3), 128 + 90 * np.cos(y / 4), (x * y) % 256], -1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def shipped(name: str) -> dict[str, Any]:
    graph: dict[str, Any] = json.loads((WORKFLOWS / f"{name}_api.json").read_text())
    for node in graph.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = "source.png"
    return graph


def with_model(kind: str, **over: Any) -> dict[str, Any]:
    """The shipped workflow, for the random checkpoints; those without text encoders get embeddings of no text."""
    graph = shipped("upscale")
    graph[NODE]["inputs"] |= {
        "tile_width": 64, "tile_height": 64, "overlap": 16, "steps": 2, "dino": "bundled", "dino_strength": 0.0, **over,
    }  # fmt: skip
    if kind == "sd15":
        graph["2"]["inputs"]["ckpt_name"] = "sd15.safetensors"
        return graph
    graph["2"] = {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": f"{kind}.safetensors", "weight_dtype": "default"},
    }
    graph["9"] = {"class_type": "VAELoader", "inputs": {"vae_name": f"{kind}-tiny.safetensors"}}
    graph[NODE]["inputs"]["vae"] = ["9", 0]
    width, pooled = WIDTHS[kind]
    for seed, node in enumerate(("3", "4")):
        told = {"tokens": 8, "width": width, "pooled": pooled, "seed": 1 + seed}
        graph[node] = {"class_type": "RandomConditioning", "inputs": told}
    return graph


def report(seen: Seen, node: str = REPORT) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(seen.outputs[node]["text"][0])
    return said


def pixels(server: Server, seen: Seen, node: str = SAVE) -> np.ndarray:
    return np.asarray(Image.open(server.image(seen, node)))


@pytest.mark.parametrize("kind", WIDTHS)
def test_the_workflow_with_a_model_runs_and_shows_its_progress(server: Server, kind: str) -> None:
    seen = server.run(with_model(kind))
    assert seen.error is None
    assert pixels(server, seen).shape == (2 * SIZE[1], 2 * SIZE[0], 3)
    bar = seen.progress(NODE)
    assert len({value for value, _ in bar}) > 2
    assert bar[-1][0] == bar[-1][1]
    assert seen.previews >= 4
    image = report(seen)["images"][0]
    assert not image["poisoned"]
    assert image["tiles"] == sum(image["fidelity"]["actions"].values())
    assert image["stages"]["steps"]["seconds"] > 0


def test_loras_and_controlnets_reach_the_pixels_and_control_images_are_cut_to_tiles(server: Server) -> None:
    plain = with_model("sd15", dino_enabled=False)
    patched = copy.deepcopy(plain)
    lora = {"model": ["2", 0], "lora_name": "sd15.safetensors", "strength_model": 1.0}
    patched["10"] = {"class_type": "LoraLoaderModelOnly", "inputs": lora}
    patched[NODE]["inputs"]["model"] = ["10", 0]
    held = copy.deepcopy(plain)
    held["10"] = {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "sd15.safetensors"}}
    applied = {
        "positive": ["3", 0],
        "negative": ["4", 0],
        "control_net": ["10", 0],
        "image": ["1", 0],
        "strength": 1.0,
    }
    held["11"] = {
        "class_type": "ControlNetApplyAdvanced",
        "inputs": applied | {"start_percent": 0.0, "end_percent": 1.0},
    }
    held[NODE]["inputs"] |= {"positive": ["11", 0], "negative": ["11", 1]}
    runs = [server.run(graph) for graph in (plain, patched, held)]
    assert [seen.error for seen in runs] == [None, None, None]
    first, *others = (pixels(server, seen) for seen in runs)
    for other in others:
        assert not np.array_equal(first, other)


def test_another_seed_reuses_what_does_not_depend_on_it(server: Server) -> None:
    _, second = (server.run(with_model("sdxl", seed=seed, denoise=0.3)) for seed in (1, 2))
    cached = {node for data in second.of("execution_cached") for node in data["nodes"]}
    assert {"1", "2", "3", "9"} <= cached
    assert NODE not in cached
    stages = report(second)["images"][0]["stages"]
    assert not {"dino", "grain"} & set(stages)


def test_the_same_graph_again_runs_nothing(server: Server) -> None:
    graph = with_model("sdxl", seed=3, dino_enabled=False)
    made = pixels(server, server.run(graph))
    again = server.run(graph)
    assert NODE in {node for data in again.of("execution_cached") for node in data["nodes"]}
    other = server.run(with_model("sdxl", seed=4, dino_enabled=False))
    assert np.abs(pixels(server, other).astype(int) - made).max() > 0


def test_cancel_ends_it_and_the_next_prompt_runs(server: Server) -> None:
    long = with_model("flux", steps=20, dino_enabled=False, seed=9)
    seen = server.run(long, cancel_when=lambda seen: bool(seen.progress(NODE)))
    assert seen.of("execution_interrupted")
    value, total = seen.progress(NODE)[-1]
    assert value < total
    assert server.run(with_model("flux", dino_enabled=False, steps=1, seed=9)).error is None


def test_samplers_of_comfyui_run_and_the_report_says_what_rests(server: Server) -> None:
    seen = server.run(with_model("sdxl", sampler_name="dpmpp_2m", scheduler="karras", dino_strength=0.5))
    assert seen.error is None
    assert "change map" in report(seen)["notes"][0]
    assert seen.progress(NODE)[-1][0] == seen.progress(NODE)[-1][1]


@pytest.mark.parametrize(("model", "address"), [("none", "none"), ("bundled", "none"), ("bundled", "local")])
def test_the_node_without_a_model_makes_what_the_command_makes(
    server: Server, tmp_path: Path, model: str, address: str
) -> None:
    graph = shipped("ray_upscale")
    graph["2"]["inputs"] |= {"model": model, "address": address, "dino": "bundled"}
    seen = server.run(graph)
    assert seen.error is None
    source().save(tmp_path / "source.png")
    options = {} if model == "none" else {"dino": "bundled"}
    expected, made = upscale(str(tmp_path / "source.png"), scale=2, model=model, address="none", **options)
    assert np.array_equal(pixels(server, seen, "3"), np.asarray(expected))
    assert report(seen, "5")["images"][0]["canvas_sha256"] == made.canvas_sha256
    assert seen.previews >= 1


def test_what_can_t_be_done_is_said_in_one_sentence(server: Server) -> None:
    def said(change: dict[str, Any], base: str = "flux") -> str:
        graph = copy.deepcopy(with_model(base, steps=1))
        for node, inputs in change.items():
            graph.setdefault(node, {})
            graph[node] = {**graph[node], **{k: v for k, v in inputs.items() if k != "inputs"}}
            graph[node]["inputs"] = graph[node].get("inputs", {}) | inputs.get("inputs", {})
        error = server.run(graph).error
        assert error is not None
        assert "\n" not in error
        return error

    assert "makes latents of 4 channels" in said({"9": {"inputs": {"vae_name": "sdxl-tiny.safetensors"}}})
    assert "no number" in said(
        {
            "10": {"class_type": "NotANumber", "inputs": {"image": ["1", 0]}},
            NODE: {"inputs": {"image": ["10", 0]}},
        }
    )
    assert "tile_width" in said({NODE: {"inputs": {"tile_width": 72, "tile_height": 64}}})
    graph = shipped("ray_upscale")
    graph["2"]["inputs"] |= {"address": "127.0.0.1:1", "model": "none"}
    error = server.run(graph).error
    assert error is not None
    assert "\n" not in error
    assert "127.0.0.1:1" in error
