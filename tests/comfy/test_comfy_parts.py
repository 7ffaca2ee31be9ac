"""Levels and schedules, crops, and the folder in ComfyUI."""

from __future__ import annotations

import ast
import json
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import fake_comfy
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import dino_ray.comfy
from dino_ray.cli import main
from dino_ray.comfy import NODE_CLASS_MAPPINGS, crops
from dino_ray.comfy.install import install, uninstall
from dino_ray.comfy.levels import Levels, tail
from dino_ray.errors import UsageError


@given(st.floats(0, 0.9), st.booleans())
def test_a_level_and_its_sigma_are_one(level: float, flow: bool) -> None:
    levels = Levels(flow, 14.6)
    assert levels.level(levels.sigma(level)) == pytest.approx(level)


@given(st.floats(0.05, 1), st.integers(1, 12), st.sampled_from([1, 2, 7]))
def test_the_end_of_a_schedule_starts_where_it_is_told_and_falls(
    start: float, steps: int, power: int
) -> None:
    def schedule(n: int) -> list[float]:
        return [(1 - i / n) ** power for i in range(n + 1)]

    sigmas = tail(schedule, steps, start)
    assert sigmas[0] == start
    assert len(sigmas) == steps + 1
    assert all(a > b for a, b in pairwise(sigmas))
    assert sigmas[-1] == 0


def test_a_whole_schedule_is_taken_as_it_is() -> None:
    assert tail(lambda n: [1 - i / n for i in range(n + 1)], 4, 1.0) == [1, 0.75, 0.5, 0.25, 0]


def test_a_schedule_without_so_many_steps_is_refused() -> None:
    with pytest.raises(UsageError, match="fewer steps"):
        tail(lambda n: [1.0, 0.5, 0.0], 6, 0.4)


def test_crops_of_an_image_of_the_canvas_are_its_own_samples() -> None:
    image = torch.rand(1, 3, 40, 60)
    made = crops.cropped(image, (20 / 60, 8 / 40, 30 / 60, 24 / 40), (30, 24))
    assert torch.equal(made, image[:, :, 8:32, 20:50])
    beyond = crops.cropped(image, (40 / 60, 0, 40 / 60, 1), (40, 40))
    assert torch.equal(beyond[..., :20], image[..., 40:])
    assert torch.equal(beyond[..., 20:], image[..., -1:].expand(-1, -1, -1, 20))
    around = crops.cropped(image, (40 / 60, 0, 40 / 60, 1), (40, 40), closed=True)
    assert torch.equal(around[..., 20:], image[..., :20])


def test_masks_and_areas_are_those_of_the_tile() -> None:
    left = [torch.zeros(1), {"area": ("percentage", 1.0, 0.5, 0.0, 0.0)}]
    masked = [torch.zeros(1), {"mask": torch.arange(64.0).repeat(1, 64, 1)}]
    on_left = crops.for_tile([left, masked], (0.0, 0.0, 0.5, 0.5), (32, 32), closed=False)
    assert on_left[0][1]["area"] == ("percentage", 1.0, 1.0, 0.0, 0.0)
    on_right = crops.for_tile([left, masked], (0.5, 0.0, 0.5, 0.5), (32, 32), closed=False)
    assert len(on_right) == 1
    assert torch.equal(on_right[0][1]["mask"][0, 0], torch.arange(32.0, 64.0))
    assert "area" not in crops.for_tile([left], (0.5, 0.0, 0.5, 0.5), (32, 32), closed=False)[0][1]


def test_a_control_that_two_conditionings_share_stays_one_and_those_before_it_are_cropped() -> None:
    first, second = fake_comfy.Control(torch.rand(1, 3, 8, 8)), fake_comfy.Control(torch.rand(1, 3, 8, 8))
    second.set_previous_controlnet(first)
    both = [[torch.zeros(1), {"control": second}], [torch.zeros(1), {"control": second}]]
    one, other = (own["control"] for _, own in crops.for_tile(both, (0, 0, 0.5, 1), (4, 8), closed=False))
    assert one is other
    assert torch.equal(one.previous_controlnet.cond_hint_original, first.cond_hint_original[..., :4])
    assert second.cond_hint_original.shape[-1] == 8


# ---- the folder in ComfyUI


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text("")
    (tmp_path / "comfy").mkdir()
    return tmp_path


def test_install_writes_a_folder_that_shows_the_nodes_and_uninstall_takes_it_away(comfyui: Path) -> None:
    made = CliRunner().invoke(main, ["comfyui", "install", str(comfyui)])
    assert made.exit_code == 0, made.output
    init = comfyui / "custom_nodes" / "dino_ray" / "__init__.py"
    found: dict[str, Any] = {}
    exec(compile(ast.parse(init.read_text()), str(init), "exec"), found)
    assert found["NODE_CLASS_MAPPINGS"] is NODE_CLASS_MAPPINGS
    before = init.stat().st_mtime_ns
    install(comfyui)
    assert init.stat().st_mtime_ns == before
    assert uninstall(comfyui) == init.parent
    assert not init.parent.exists()
    assert uninstall(comfyui) is None


def test_what_is_no_comfyui_or_not_ours_is_left_alone(comfyui: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    refused = CliRunner().invoke(main, ["comfyui", "install", str(tmp_path / "other")])
    assert refused.exit_code == 2
    assert "is no ComfyUI" in refused.output
    checkout = comfyui / "custom_nodes" / "dino_ray"
    checkout.mkdir(parents=True)
    (checkout / "__init__.py").write_text("mine = 1")
    for act in (install, uninstall):
        with pytest.raises(UsageError, match="was not written by"):
            act(comfyui)
    assert (checkout / "__init__.py").read_text() == "mine = 1"


def test_a_checkout_in_custom_nodes_shows_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setenv("PYTHONPATH", "")
    init = Path(dino_ray.comfy.__file__).parents[2] / "__init__.py"
    spec = importlib.util.spec_from_file_location("custom_nodes.dino_ray", init)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS is NODE_CLASS_MAPPINGS


def test_requirements_in_comfyui_are_the_packages_own_but_torch() -> None:
    root = Path(dino_ray.comfy.__file__).parents[2]
    asked = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = [
        line for line in (root / "requirements.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert lines == [each for each in asked if not each.startswith("torch>")]
    assert len(lines) == len(asked) - 1


@pytest.mark.parametrize("name", ["upscale", "ray_upscale"])
def test_the_workflows_fit_the_nodes_in_both_formats(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_comfy.install(monkeypatch)
    folder = Path(dino_ray.comfy.__file__).parent / "workflows"
    graph = json.loads((folder / f"{name}_api.json").read_text())
    drawn = json.loads((folder / f"{name}.json").read_text())
    kinds = {str(node["id"]): node for node in drawn["nodes"]}
    for number, node in graph.items():
        assert kinds[number]["type"] == node["class_type"]
        if node["class_type"] not in NODE_CLASS_MAPPINGS:
            continue
        known = NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()
        inputs = known["required"] | known["optional"]
        assert set(node["inputs"]) <= set(inputs)
        assert set(known["required"]) <= set(node["inputs"])
        # A drawn workflow has the widgets' values in the order of the node's inputs.
        widgets = [key for key in inputs if isinstance(inputs[key][0], list) or inputs[key][0] in WIDGETS]
        values = [node["inputs"][key] for key in widgets]
        at = widgets.index("seed") + 1
        assert kinds[number]["widgets_values"] == [*values[:at], "fixed", *values[at:]]
    ends = {link[0]: link for link in drawn["links"]}
    for node in drawn["nodes"]:
        for slot, put in enumerate(node["inputs"]):
            assert ends[put["link"]][3:5] == [node["id"], slot]


WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN")
