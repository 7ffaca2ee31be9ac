"""ControlNets, against the stock pipelines on tiny random weights of the real classes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from parity import batched, latents, refined
from test_flux_denoiser import unshifted
from tiny import make_tiny_flux
from tiny_stable_diffusion import make_tiny_stable_diffusion

import dino_ray
from dino_ray.config import UpscaleConfig
from dino_ray.diffusion import loading
from dino_ray.diffusion.denoiser import Conditioning, Control
from dino_ray.diffusion.families.flux import pack, unpack
from dino_ray.diffusion.model_options import ModelOptions
from dino_ray.errors import UsageError
from dino_ray.resolve import resolve

H, W, STEPS = 16, 24, 3
EVERYWHERE = (0.0, 1.0)


def grown(control):
    """A ControlNet whose zero-initialised layers are not: an untrained one adds nothing."""
    with torch.no_grad():
        for parameter in control.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return control


def flux_controlnet(folder, model):
    from diffusers import FluxControlNetModel

    config = json.loads((model / "transformer" / "config.json").read_text())
    sizes = ("in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim",
             "pooled_projection_dim", "guidance_embeds", "axes_dims_rope")  # fmt: skip
    made = FluxControlNetModel(
        num_layers=1,
        num_single_layers=1,
        **{name: config[name] for name in sizes},
    )
    grown(made).save_pretrained(folder)
    return folder


def sd_controlnet(folder, model):
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(model / "unet")
    made = ControlNetModel.from_unet(
        unet, conditioning_channels=3, conditioning_embedding_out_channels=(4, 8)
    )
    grown(made).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["flux", "sd", "sdxl"])
def folders(request, tmp_path_factory):
    where = tmp_path_factory.mktemp(request.param)
    if request.param == "flux":
        model = make_tiny_flux(where / "model", "dev")
        return model, flux_controlnet(where / "control", model)
    model = make_tiny_stable_diffusion(where / "model", request.param)
    return model, sd_controlnet(where / "control", model)


@pytest.fixture(scope="module")
def denoiser(folders):
    model, control = folders
    return loading.load(str(model), "cpu", "float32", options=ModelOptions(controlnet=str(control)))


@pytest.fixture(scope="module")
def conditioning(folders, denoiser):
    text = loading.encode_texts(str(folders[0]), ["a fox", "dull"], "cpu")
    side = denoiser.description.latent_scale
    pixels = torch.rand(2, 3, H * side, W * side, generator=torch.Generator().manual_seed(3))
    negative = text["dull"] if denoiser.description.guidance == "classifier-free" else {}
    control = Control(pixels, denoiser.encode(pixels), 0.7, EVERYWHERE)
    return Conditioning(text=text["a fox"], negative=negative, cfg=4.25, control=control)


def stock_flux(folders, conditioning, sigmas, start, monkeypatch, **asked):
    from diffusers import FluxControlNetImg2ImgPipeline, FluxControlNetModel

    stock = FluxControlNetImg2ImgPipeline.from_pretrained(
        folders[0], controlnet=FluxControlNetModel.from_pretrained(folders[1])
    )
    monkeypatch.setattr(stock, "prepare_latents", lambda *args: (pack(start), ids(stock)))
    side = 8
    # Its own would draw the control's latents at random.
    from diffusers.pipelines.flux import pipeline_flux_controlnet_image_to_image as module

    monkeypatch.setattr(module, "retrieve_latents", lambda encoded, generator: encoded.latent_dist.mode())
    made = stock(
        control_image=conditioning.control.pixels * 2 - 1,  # of tensors it takes the range for granted
        image=conditioning.control.pixels,
        height=H * side,
        width=W * side,
        strength=1.0,
        sigmas=unshifted(stock, sigmas[:-1]),
        num_inference_steps=len(sigmas) - 1,
        guidance_scale=4.25,
        output_type="latent",
        **asked,
        **batched(conditioning.text, len(start)),
    ).images
    return unpack(made, H, W)


def ids(stock):
    return stock._prepare_latent_image_ids(1, H // 2, W // 2, "cpu", torch.float32)


def stock_sd(folders, denoiser, conditioning, sigmas, start, monkeypatch, **asked):
    import diffusers

    large = denoiser.description.family == "sdxl"
    name = f"StableDiffusion{'XL' if large else ''}ControlNetImg2ImgPipeline"
    control = diffusers.ControlNetModel.from_pretrained(folders[1])
    stock = getattr(diffusers, name).from_pretrained(folders[0], controlnet=control)
    schedule, once = stock.scheduler, stock.scheduler.set_timesteps
    levels = (sigmas / (1 - sigmas)).tolist()
    monkeypatch.setattr(schedule, "set_timesteps", lambda *args, **kwargs: once(sigmas=levels))
    monkeypatch.setattr(
        stock, "get_timesteps", lambda steps, *args: (schedule.timesteps, len(schedule.timesteps))
    )
    monkeypatch.setattr(stock, "prepare_latents", lambda *args, **kwargs: start / (1 - sigmas[0]))
    text = batched(conditioning.text, len(start))
    text |= {f"negative_{name}": value for name, value in batched(conditioning.negative, len(start)).items()}
    return stock(
        image=conditioning.control.pixels,
        control_image=conditioning.control.pixels,
        num_inference_steps=len(levels) - 1,
        guidance_scale=4.25,
        output_type="latent",
        **asked,
        **text,
    ).images


@pytest.mark.parametrize("kept", [(0.0, 1.0), (0.0, 0.7)])
def test_our_loop_gives_the_latents_of_the_stock_pipeline(folders, denoiser, conditioning, monkeypatch, kept):
    sigmas = denoiser.sigmas(0.6, STEPS, (H, W)).tolist()
    acting = [level for i, level in enumerate(sigmas[:-1]) if (i + 1) / STEPS <= kept[1]]
    control = dataclasses.replace(conditioning.control, levels=(min(acting), max(acting)))
    sigmas, start, ours = refined(
        denoiser, dataclasses.replace(conditioning, control=control), 0.6, STEPS, H, W
    )
    asked = {"controlnet_conditioning_scale": 0.7, "control_guidance_end": kept[1]}
    if denoiser.description.family == "flux":
        theirs = stock_flux(folders, conditioning, sigmas, start, monkeypatch, **asked)
    else:
        theirs = stock_sd(folders, denoiser, conditioning, sigmas, start, monkeypatch, **asked)
    assert (theirs - ours).abs().max() < 1e-4
    without = refined(denoiser, dataclasses.replace(conditioning, control=None), 0.6, STEPS, H, W)[2]
    assert (without - ours).abs().max() > 1e-3


def test_pixels_scale_and_range_reach_the_model(denoiser, conditioning):
    x = latents(denoiser, H, W, 2)
    reference = denoiser.predict(x, 0.5, conditioning)

    def change(**changes):
        control = dataclasses.replace(conditioning.control, **changes)
        return (
            (denoiser.predict(x, 0.5, dataclasses.replace(conditioning, control=control)) - reference)
            .abs()
            .max()
        )

    pixels = 1 - conditioning.control.pixels
    assert change(pixels=pixels, latents=denoiser.encode(pixels)) > 1e-4
    assert change(scale=0.2) > 1e-4
    assert change(levels=(0.6, 1.0)) > 1e-4
    assert change(levels=(0.4, 0.6)) == 0


def test_a_model_without_a_controlnet_takes_no_control(folders, denoiser, conditioning):
    plain = loading.load(str(folders[0]), "cpu", "float32")
    assert not plain.description.takes_control
    described = loading.describe(str(folders[0]), options=ModelOptions(controlnet=str(folders[1])))
    assert described == denoiser.description
    assert described.takes_control
    with pytest.raises(ValueError, match="without a ControlNet"):
        plain.predict(latents(plain, H, W), 0.5, conditioning)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"_class_name": "FluxControlNetModel2"}, "is a FluxControlNetModel2; "),
        ({"in_channels": 999}, "was trained for another model, with in_channels 999"),
        ({"num_mode": 7}, "many modes in one"),
        (None, "can't be read"),
    ],
)
def test_what_is_no_controlnet_of_the_model_is_refused(folders, tmp_path, change, says):
    for file in folders[1].iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = tmp_path / "config.json"
    known = json.loads(config.read_text())
    config.unlink()
    config.write_text("{" if change is None else json.dumps(known | change))
    with pytest.raises(UsageError, match=says) as error:
        loading.describe(str(folders[0]), options=ModelOptions(controlnet=str(tmp_path)))
    assert "--controlnet" in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "none", "controlnet": "x"}, "needs a diffusion model"),
        ({"controlnet": "x"}, "the model bundled takes none"),
        ({"control_scale": 1.0}, "without --controlnet"),
        ({"controlnet": "x", "control_scale": 0}, "no effect"),
        ({"controlnet": "x", "control_start": 0.5, "control_end": 0.5}, "must lie after"),
    ],
)
def test_options_that_would_be_ignored_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        resolve(UpscaleConfig.parse(options))


def test_a_whole_job_holds_its_tiles_by_the_controlnet_for_as_long_as_was_asked(folders):
    model, control = folders
    source = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    plain = {"model": str(model), "tile": 64, "overlap": 0, "steps": 4, "denoise": 0.6, "base": "lanczos",
             "address": "none", "dino_strength": 0, "verify": False, "adaptive": 0, "consistency": 0,
             "color_lock": "off"}  # fmt: skip

    def made(**more):
        return np.asarray(dino_ray.upscale(source, **plain, **more).image)

    held = {"controlnet": str(control), "control_scale": 2.0}
    without, whole, half, none = (
        made(), made(**held), made(**held, control_end=0.5), made(**held, control_start=0.9)
    )  # fmt: skip
    assert (whole != without).any()
    assert (half != without).any()
    assert (half != whole).any()
    assert (none == without).all()  # no step lies wholly within its last tenth
