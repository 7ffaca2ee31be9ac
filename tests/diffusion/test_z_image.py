"""Z-Image, Turbo and base, as denoisers, against the stock pipeline on tiny random weights of the real classes."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
from parity import following, latents, refined
from tiny_z_image import make_tiny_z_image

from dino_ray.diffusion import loading
from dino_ray.diffusion.denoiser import Conditioning, stacked
from dino_ray.errors import UsageError

KINDS = ("turbo", "base")
H, W = 8, 12  # latent; not square, so that swapped axes show
SCALE = 4.25
PROMPTS = ("a red fox in the snow", "dull")


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return make_tiny_z_image(tmp_path_factory.mktemp("z") / request.param, request.param)


@pytest.fixture(scope="module")
def denoiser(folder):
    return loading.load(str(folder), "cpu", "float32")


@pytest.fixture(scope="module")
def guided(denoiser):
    return denoiser.description.guidance == "classifier-free"


@pytest.fixture(scope="module")
def stock(folder):
    from diffusers import ZImageImg2ImgPipeline

    pipeline = ZImageImg2ImgPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def texts(folder):
    return loading.encode_texts(str(folder), PROMPTS, "cpu")


@pytest.fixture(scope="module")
def conditioning(texts, guided):
    text, negative = (texts[prompt] for prompt in PROMPTS)
    return Conditioning(text, negative, SCALE) if guided else Conditioning(text)


def theirs(stock, prompts, negative, sigmas, start):
    """Latents of the stock pipeline, from where ours start; its scale is 0 where ours is 1."""
    listed = [each["prompt_embeds"][0] for each in prompts]
    with following(stock.scheduler, sigmas):
        return stock(
            image=torch.zeros(len(start), 3, H * 8, W * 8),
            strength=1.0,
            latents=start,
            num_inference_steps=len(sigmas) - 1,
            prompt_embeds=listed,
            negative_prompt_embeds=[negative["prompt_embeds"][0]] * len(start) if negative else None,
            guidance_scale=SCALE - 1 if negative else 0.0,
            output_type="latent",
        ).images


@pytest.mark.parametrize(("denoise", "steps"), [(0.2, 1), (0.25, 3), (1.0, 4)])
def test_our_loop_gives_the_latents_of_the_stock_pipeline(denoiser, conditioning, stock, denoise, steps):
    sigmas, start, ours = refined(denoiser, conditioning, denoise, steps, H, W)
    stocks = theirs(stock, [conditioning.text] * 2, conditioning.negative, sigmas, start)
    assert (stocks - ours).abs().max() < 1e-4
    assert (ours - start).abs().max() > 0.05  # the model did something


def test_prompts_of_different_lengths_in_one_batch_count_as_each_alone(denoiser, conditioning, texts, stock):
    long, short = (
        {name: value[:, :tokens] for name, value in texts[PROMPTS[0]].items()} for tokens in (40, 20)
    )
    told = dataclasses.replace(conditioning, text=stacked([long, short]))
    sigmas, start, ours = refined(denoiser, told, 1.0, 2, H, W)
    assert (theirs(stock, [long, short], conditioning.negative, sigmas, start) - ours).abs().max() < 1e-4
    for i, text in enumerate((long, short)):
        alone = denoiser.predict(start[i : i + 1], 1.0, dataclasses.replace(conditioning, text=text))
        assert (denoiser.predict(start, 1.0, told)[i] - alone[0]).abs().max() < 1e-4


@pytest.mark.parametrize("steps", [1, 8])
def test_from_pure_noise_the_spacing_is_the_stock_pipelines(denoiser, stock, steps):
    stock.scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    torch.testing.assert_close(denoiser.sigmas(1.0, steps, (H, W)), stock.scheduler.sigmas, rtol=0, atol=1e-6)


def test_pixels_are_the_stock_pipelines(denoiser, stock):
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    config = stock.vae.config
    with torch.no_grad():
        encoded = stock.vae.encode(pixels * 2 - 1).latent_dist.mode()
        encoded = (encoded - config.shift_factor) * config.scaling_factor
        decoded = stock.vae.decode(encoded / config.scaling_factor + config.shift_factor).sample
    assert (denoiser.encode(pixels) - encoded).abs().max() < 1e-5
    assert (denoiser.decode(encoded) - (decoded + 1) / 2).abs().max() < 1e-5


def test_the_prompts_embeddings_are_the_stock_pipelines(stock, texts):
    for prompt in PROMPTS:
        (expected,), _ = stock.encode_prompt(prompt, do_classifier_free_guidance=False)
        assert torch.equal(texts[prompt]["prompt_embeds"][0], expected)
        assert texts[prompt]["prompt_embeds_mask"].shape == (1, len(expected))
        assert texts[prompt]["prompt_embeds_mask"].all()


def test_a_prompt_that_is_cut_is_warned_of(folder, caplog):
    with caplog.at_level(logging.WARNING):
        text = loading.encode_text(str(folder), "word " * 200, "cpu")
    assert text["prompt_embeds"].shape[1] == 512
    assert "cut" in caplog.text


def test_text_negative_scale_and_level_reach_the_model(denoiser, conditioning, guided):
    x = latents(denoiser, H, W)
    reference = denoiser.predict(x, 0.5, conditioning)

    def change(**changes):
        told = dataclasses.replace(conditioning, **changes)
        return (denoiser.predict(x, 0.5, told) - reference).abs().max()

    def turned(text):
        return text | {"prompt_embeds": -text["prompt_embeds"]}

    assert change(text=turned(conditioning.text)) > 1e-3
    if guided:
        assert change(negative=turned(conditioning.negative)) > 1e-3
        assert change(cfg=1.5) > 1e-3
    velocity = (x - reference) / 0.5
    assert ((x - denoiser.predict(x, 0.9, conditioning)) / 0.9 - velocity).abs().max() > 1e-3


def test_turbo_takes_no_guidance_and_few_steps(folder, denoiser, guided):
    description = denoiser.description
    assert guided == (folder.name == "base")
    assert (description.cfg is not None) == guided
    assert description.steps == (8 if guided else 2)
    assert description.largest_tile == 64 * 16  # the positions that it knows, of tokens of 16 px


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"in_channels": 33}, "33 channels"),
        ({"siglip_feat_dim": 1152}, "SigLIP"),
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel"),
    ],
)
def test_what_is_not_driven_is_refused_by_its_config(tmp_path, change, says):
    folder = make_tiny_z_image(tmp_path / "model")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UsageError, match=says):
        loading.describe(str(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_job_runs_with_a_negative_prompt_where_there_is_guidance(kind, tmp_path):
    import dino_ray

    folder = make_tiny_z_image(tmp_path / "model", kind)
    source = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    how = {"model": str(folder), "address": "none", "base": "lanczos", "tile": 64, "overlap": 16, "steps": 1,
           "denoise": 0.8, "dino_strength": 0, "adaptive": 0, "verify": False, "consistency": 0}  # fmt: skip
    made, report = dino_ray.upscale(source, prompt="a fox", **how)
    assert made.shape[:2] == (64, 96)
    assert report.tiles > 1
    assert report.stages["text"].count == 1
    if kind == "turbo":
        other, _ = dino_ray.upscale(source, prompt="a hen", **how)
        with pytest.raises(UsageError, match="takes none"):
            dino_ray.upscale(source, negative_prompt="fog", **how)
    else:
        other, _ = dino_ray.upscale(source, prompt="a fox", negative_prompt="fog", **how)
    assert (made != other).any()
