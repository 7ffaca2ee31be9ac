"""The nodes without ComfyUI: a few lines stand in for its modules."""

from __future__ import annotations

import json
from typing import Any

import fake_comfy
import numpy as np
import pytest
import torch
from torch import Tensor

from dino_ray.comfy import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, recent
from dino_ray.comfy.ray_node import DinoRayUpscale, options_of
from dino_ray.comfy.running import NodeError
from dino_ray.comfy.upscale_node import DinoUpscale
from dino_ray.comfy.widgets import MOST_SCALE
from dino_ray.config import UpscaleConfig


@pytest.fixture(autouse=True)
def comfy(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_comfy.install(monkeypatch)
    recent.guides.clear()
    recent.bases.clear()


def picture(h: int = 48, w: int = 56, batch: int = 1) -> Tensor:
    y, x = np.mgrid[:h, :w]
    one = np.stack([128 + 100 * np.sin(x / 3), 128 + 90 * np.cos(y / 4), (x * y) % 256], -1)
    pixels = torch.from_numpy(one.clip(0, 255).round().astype(np.float32) / 255)
    return torch.stack([pixels.roll(i, 0) for i in range(batch)])


def run(**over: Any) -> tuple[Any, ...]:
    given: dict[str, Any] = {
        "image": picture(), "model": fake_comfy.Patcher(), "vae": fake_comfy.Vae(),
        "positive": fake_comfy.told(0.1), "negative": fake_comfy.told(0.0), "scale_factor": 2.0, "denoise": 0.3,
        "tile_width": 128, "tile_height": 128, "overlap": 32, "sampler_name": "euler", "scheduler": "simple",
        "steps": 2, "cfg": 1.5, "dino_enabled": False, "dino_strength": 0.5, "seed": 3, "wrap": "auto",
        "dino": "bundled", "node": "7",
    } | over  # fmt: skip
    return DinoUpscale().run(**given)


def fault(**over: Any) -> str:
    with pytest.raises(NodeError) as raised:
        run(**over)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ---- definitions


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
def test_each_node_says_what_comfyui_asks_for(name: str) -> None:
    node = NODE_CLASS_MAPPINGS[name]
    inputs = node.INPUT_TYPES()
    assert "required" in inputs
    assert callable(getattr(node, node.FUNCTION))
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    assert node.CATEGORY == "image/upscaling"
    assert NODE_DISPLAY_NAME_MAPPINGS[name].startswith("DINO")
    json.dumps(inputs)


@pytest.mark.parametrize("node", [DinoUpscale, DinoRayUpscale])
def test_ranges_and_texts_are_those_of_the_options(node: Any) -> None:
    fields = {"scale_factor": "scale", "tile_width": "tile", "tile_height": "tile"}
    schema = UpscaleConfig.model_json_schema()["properties"]
    seen = set()
    for inputs in (node.INPUT_TYPES()["required"], node.INPUT_TYPES()["optional"]):
        for name, (kind, *options) in inputs.items():
            field = fields.get(name, name)
            if kind not in ("INT", "FLOAT") or field not in schema:
                continue
            said = next(
                part for part in (schema[field], *schema[field].get("anyOf", ())) if "minimum" in part
            )
            low, high = options[0]["min"], options[0]["max"]
            most = said.get("maximum", said.get("exclusiveMaximum", 0) - 1)
            assert high == (min(most, MOST_SCALE) if name == "scale_factor" else most), name
            assert low == said["minimum"] or (node is DinoRayUpscale and low in (0, -1)), name
            assert UpscaleConfig.model_fields[field].description in options[0]["tooltip"]
            seen.add(field)
    assert {"scale", "denoise", "tile", "overlap", "steps", "cfg", "dino_strength", "seed"} <= seen


def test_samplers_and_schedulers_are_comfyuis_own() -> None:
    required = DinoUpscale.INPUT_TYPES()["required"]
    assert required["sampler_name"][0] is fake_comfy.SAMPLERS
    assert required["scheduler"][0] is fake_comfy.SCHEDULERS


def test_values_that_say_nothing_are_left_to_the_model() -> None:
    defaults = {
        name: options[0]["default"]
        for inputs in (DinoRayUpscale.INPUT_TYPES()["required"], DinoRayUpscale.INPUT_TYPES()["optional"])
        for name, (kind, *options) in inputs.items()
        if options and "default" in options[0]
    }
    config = UpscaleConfig.parse(options_of(**defaults))
    assert config == UpscaleConfig()
    named = options_of(**defaults | {"denoise": 0.0, "overlap": 0, "tile": 512, "dino_enabled": False})
    assert {name: named[name] for name in ("denoise", "overlap", "tile", "dino_strength", "verify")} == {
        "denoise": 0.0, "overlap": 0, "tile": 512, "dino_strength": 0.0, "verify": False,
    }  # fmt: skip
    assert "seed" not in options_of(**defaults | {"model": "none", "seed": 5})


# ---- what comes out


def test_the_steps_are_those_of_a_loop_by_hand() -> None:
    from dino_ray.plan import noise
    from dino_ray.plan.geometry import Rect

    patcher, vae = fake_comfy.Patcher(), fake_comfy.Vae()
    image = picture(32, 32)
    run(image=image, model=patcher, vae=vae, scale_factor=1.0, steps=2, denoise=0.4, cfg=1.5)
    (first, sigma, cfg), (second, lower, _) = patcher.model.asked
    assert (sigma, cfg) == (pytest.approx(0.4), 1.5)
    # ComfyUI's schedule here is a straight line from 1; the end of the one of 6 steps that starts at 2/6.
    assert lower == pytest.approx(1 / 6, abs=1e-6)
    padded = nn_pad(image)
    base = 2 * vae.encode(padded)
    field = torch.from_numpy(noise.field(3, 4, Rect(0, 0, 8, 8)))[None]
    start = 0.6 * base + 0.4 * field
    assert (first - start).abs().max() < 1e-4
    x0 = start * (1 - 0.4 / 3) + 0.15
    assert (second - (x0 + (1 / 6) / 0.4 * (start - x0))).abs().max() < 1e-4


def nn_pad(image: Tensor) -> Tensor:
    """To a tile of 64 px: the picture goes on as its edge."""
    return torch.nn.functional.pad(image.movedim(-1, 1), (0, 32, 0, 32), mode="replicate").movedim(1, -1)


def test_a_model_that_adds_noise_sees_it_at_its_own_sigma() -> None:
    patcher = fake_comfy.Patcher(fake_comfy.EPS())
    run(model=patcher, denoise=0.25, steps=1)
    x, sigma, _ = patcher.model.asked[0]
    assert sigma == pytest.approx(0.25 / 0.75)
    flow = fake_comfy.Patcher()
    run(model=flow, denoise=0.25, steps=1)
    assert (0.75 * x - flow.model.asked[0][0]).abs().max() < 1e-4


class FramesVae(fake_comfy.Vae):
    """Of a model of images whose VAE is a video's: one frame."""

    latent_dim = 3

    def encode(self, pixels: Tensor) -> Tensor:
        return super().encode(pixels).unsqueeze(2)

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents[:, :, 0]).unsqueeze(1)


def test_an_image_model_with_a_videos_vae_gets_its_frame() -> None:
    patcher = fake_comfy.Patcher(dimensions=3)
    patcher.model = type("QwenImage", (fake_comfy.Model,), {})()
    made = run(model=patcher, vae=FramesVae())[0]
    assert patcher.model.asked[0][0].ndim == 5
    assert torch.equal(made, run()[0])


def test_the_result_has_the_images_batch_and_each_gets_a_map() -> None:
    image, heat, report, mask = run(image=picture(batch=2))
    assert image.shape == (2, 96, 112, 3)
    assert heat.shape[0] == 2
    assert mask.shape == (2, 96, 112)
    assert mask.max() == 0
    assert len(json.loads(report)["images"]) == 2
    assert not torch.equal(image[0], image[1])


def test_a_mask_is_enlarged_with_the_image() -> None:
    mask = torch.zeros(1, 48, 56)
    mask[:, :, 28:] = 1
    made = run(mask=mask)[3]
    assert made[0, 48, 10] == 0
    assert made[0, 48, 100] == 1


def test_the_seed_and_what_is_told_reach_the_pixels() -> None:
    plain = run()[0]
    assert torch.equal(plain, run()[0])
    for over in ({"seed": 4}, {"positive": fake_comfy.told(0.5)}, {"cfg": 3.0}, {"sampler_name": "heun"}):
        assert not torch.equal(plain, run(**over)[0]), over
    assert torch.equal(plain, run(sampler_name="ddim")[0])


def test_dino_strength_reaches_the_steps() -> None:
    second = []
    for strength in (0.0, 1.0):
        patcher = fake_comfy.Patcher()
        over = {
            "image": picture(32, 32),
            "scale_factor": 1.0,
            "dino_enabled": True,
            "dino_strength": strength,
        }
        run(model=patcher, **over)
        second.append(patcher.model.asked[1][0])  # what the second step sees is what the first has made
    assert not torch.equal(*second)


def test_what_a_seed_does_not_change_is_made_once() -> None:
    run(dino_enabled=True, dino_strength=0.0, seed=1)
    guides, bases = recent.guides.found, recent.bases.found
    report = json.loads(run(dino_enabled=True, dino_strength=0.0, seed=2)[2])
    assert recent.guides.found == guides + 1
    assert recent.bases.found > bases
    assert "dino" not in report["images"][0]["stages"]
    run(dino_enabled=True, dino_strength=0.0, seed=2, image=picture().flip(1))
    assert recent.guides.found == guides + 1


def test_another_sampler_is_run_by_comfyui_and_the_report_says_what_rests() -> None:
    patcher = fake_comfy.Patcher()
    report = run(model=patcher, sampler_name="fancy", dino_enabled=True)[2]
    assert "change map" in json.loads(report)["notes"][0]
    assert json.loads(run()[2])["notes"] == []


def test_control_images_are_cropped_to_each_tile() -> None:
    hint = torch.arange(112.0).repeat(1, 3, 96, 1)
    patcher = fake_comfy.Patcher()
    positive = fake_comfy.told(0.1, control=fake_comfy.Control(hint))
    run(model=patcher, positive=positive, tile_width=64, tile_height=64, overlap=0, steps=1)
    crops = [control.cond_hint_original for control in patcher.model.controls]
    assert {tuple(crop.shape) for crop in crops} == {(1, 3, 64, 64)}
    assert torch.equal(crops[0][0, 0, 0], torch.arange(64.0))
    assert float(crops[1][0, 0, 0, 0]) == 64


def test_progress_reaches_its_end_and_previews_come() -> None:
    run()
    (bar,) = fake_comfy.ProgressBar.made
    values = [value for value, _ in bar.updates]
    assert values == sorted(values)
    assert values[-1] == bar.total
    assert bar.node_id == "7"
    assert any(preview is not None for _, preview in bar.updates)


def test_cancel_ends_it_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    patcher = fake_comfy.Patcher()
    predict = patcher.model.predict

    def press(*args: Any) -> Tensor:
        fake_comfy.Management.pressed = True
        return predict(*args)

    monkeypatch.setattr(patcher.model, "predict", press)
    with pytest.raises(fake_comfy.InterruptProcessingException):
        run(model=patcher, steps=20)
    assert len(patcher.model.asked) == 1  # whose block, asked next, did not run


def test_cancel_ends_the_node_without_a_model_too(monkeypatch: pytest.MonkeyPatch) -> None:
    show = fake_comfy.ProgressBar.update_absolute

    def press(bar: Any, *args: Any) -> None:
        fake_comfy.Management.pressed = True
        show(bar, *args)

    monkeypatch.setattr(fake_comfy.ProgressBar, "update_absolute", press)
    with pytest.raises(fake_comfy.InterruptProcessingException):
        DinoRayUpscale().run(image=picture(), model="none", address="none", scale_factor=2.0, tile=32)
    assert len(fake_comfy.ProgressBar.made[0].updates) == 1


def test_without_a_model_the_node_makes_what_the_command_makes() -> None:
    from dino_ray import upscale

    image = picture()
    made = DinoRayUpscale().run(image=image, model="none", address="none", scale_factor=2.0)[0]
    expected, _ = upscale((image[0] * 255).round().numpy().astype(np.uint8), model="none", address="none")
    assert np.array_equal((made[0] * 255).round().numpy(), expected)


# ---- what can't be done


class Inpaint(fake_comfy.Model):
    def concat_cond(self, **kwargs: Any) -> Tensor | None:
        return kwargs["noise"]


def test_what_can_t_be_done_is_said_in_a_sentence() -> None:
    assert fault(vae=None).startswith("vae: none is connected")
    inpaint = fake_comfy.Patcher()
    inpaint.model = Inpaint()
    assert "inpaint" in fault(model=inpaint)
    assert "video" in fault(model=fake_comfy.Patcher(dimensions=3))
    assert "makes no images" in fault(model=fake_comfy.Patcher(dimensions=1))
    assert "belongs to the MODEL" in fault(model=fake_comfy.Patcher(channels=16))
    assert "no number" in fault(image=picture() * float("nan"))
    assert "mixed sizes" in fault(image=[picture(), picture(40, 40)])
    assert "mask: is 8 x 8 px" in fault(mask=torch.zeros(1, 8, 8))
    assert fault(tile_height=64).startswith("tile_width and tile_height")
    assert fault(tile_width=72, tile_height=72).startswith("tile 72")
    assert fault(positive=None).startswith("positive: nothing says")
    assert fault(negative=None).startswith("negative: cfg above 1")
    assert "reference latents" in fault(positive=fake_comfy.told(0.0, reference_latents=[1]))
    assert "fewer steps" in fault(steps=1000, denoise=0.0001)
    uneven = fake_comfy.Vae()
    uneven.spacial_compression_decode = lambda: 4  # type: ignore[method-assign]
    assert "no grid of the picture" in fault(vae=uneven)


def test_a_cluster_that_can_t_be_had_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import dino_ray.job
    from dino_ray.errors import UsageError

    def unreachable(*args: Any) -> Any:
        raise UsageError("--address 10.0.0.1:6379: no cluster answers")

    monkeypatch.setattr(dino_ray.job, "engine_for", unreachable)
    with pytest.raises(NodeError, match=r"^address 10\.0\.0\.1:6379: no cluster"):
        DinoRayUpscale().run(image=picture(), model="none", address="10.0.0.1:6379", scale_factor=2.0)


# ---- nodes for those who compose


def test_features_and_fidelity_of_a_picture() -> None:
    features, shown, structure = NODE_CLASS_MAPPINGS["DinoFeatures"]().run(picture(), "bundled")
    assert len(features) == 1
    assert shown.shape == (1, 48, 56, 3)
    assert structure.shape == (1, 48, 56)
    compare = NODE_CLASS_MAPPINGS["DinoFidelity"]().run
    _, same, _, cosine = compare(picture(), picture(), "bundled")
    assert cosine == pytest.approx(1, abs=1e-4)
    assert same.max() == 0
    changed = picture()
    changed[:, :24] = changed[:, :24].flip(2)
    heat, drift, report, less = compare(picture(), changed, "bundled")
    assert less < cosine
    assert drift[0, :24].max() > drift[0, 40:].max()
    assert heat.shape == (1, 48, 56, 3)
    assert json.loads(report)["images"][0]["cosine_mean"] == less
