"""Stable Diffusion 1, 2 and XL as denoisers, against the stock pipelines on tiny random weights of the real classes."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from parity import batched, latents, refined
from tiny_stable_diffusion import make_tiny_stable_diffusion

from dino_ray.diffusion import loading
from dino_ray.diffusion.denoiser import Conditioning
from dino_ray.diffusion.families.discrete_schedule import DiscreteSchedule

KINDS = ("sd", "sd-v", "sdxl", "sdxl-refiner")
H, W = 16, 24  # latent; not square, so that swapped axes show
SCALE = 4.25


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return make_tiny_stable_diffusion(tmp_path_factory.mktemp("sd") / request.param, request.param)


@pytest.fixture(scope="module")
def denoiser(folder):
    return loading.load(str(folder), "cpu", "float32")


@pytest.fixture(scope="module")
def stock(folder):
    import diffusers

    kind = "StableDiffusionXLImg2ImgPipeline" if "xl" in folder.name else "StableDiffusionImg2ImgPipeline"
    pipeline = getattr(diffusers, kind).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def conditioning(folder, denoiser):
    text = loading.encode_texts(str(folder), ["a red fox", "dull"], "cpu")
    return Conditioning(text=text["a red fox"], negative=text["dull"], cfg=SCALE)


def theirs(stock, denoiser, conditioning, sigmas, start, *, negative=True, scale=SCALE, **more):
    """Latents of the stock pipeline, from where ours start: in its own terms, signal of full size plus noise."""
    levels = (sigmas / (1 - sigmas)).tolist()
    schedule = stock.scheduler
    batch = len(start)
    text = batched(conditioning.text, batch)
    if negative and conditioning.negative:
        text |= {f"negative_{name}": value for name, value in batched(conditioning.negative, batch).items()}

    def prepared(*args, **kwargs):
        return start / (1 - sigmas[0])

    # Stock would noise by timesteps of its own choice: it gets the latents that ours start from.
    stock.prepare_latents = prepared
    once = schedule.set_timesteps
    schedule.set_timesteps = lambda *args, **kwargs: once(sigmas=levels)
    stock.get_timesteps = lambda steps, *args, **kwargs: (schedule.timesteps, len(schedule.timesteps))
    try:
        side = denoiser.description.latent_scale
        large = denoiser.description.family == "sdxl"
        sizes = dict.fromkeys(("original_size", "target_size"), (H * side, W * side)) if large else {}
        return stock(
            image=torch.zeros(batch, 3, H * side, W * side),
            num_inference_steps=len(levels) - 1,
            guidance_scale=scale,
            output_type="latent",
            **sizes,
            **text,
            **more,
        ).images
    finally:
        schedule.set_timesteps = once


@pytest.mark.parametrize(("denoise", "steps"), [(0.2, 1), (0.25, 3), (0.6, 4)])
def test_our_loop_gives_the_latents_of_the_stock_pipeline(denoiser, conditioning, stock, denoise, steps):
    sigmas, start, ours = refined(denoiser, conditioning, denoise, steps, H, W)
    stocks = theirs(stock, denoiser, conditioning, sigmas, start)
    assert (stocks - ours).abs().max() < 1e-4
    assert (ours - start).abs().max() > 0.05  # the model did something


def test_without_a_negative_prompt_sdxl_gets_zeros_and_others_ask_for_one(denoiser, conditioning, stock):
    silent = dataclasses.replace(conditioning, negative={})
    if denoiser.description.negative_prompt is not None:
        with pytest.raises(ValueError, match="negative prompt"):
            denoiser.predict(latents(denoiser, H, W), 0.3, silent)
        return
    ours = refined(denoiser, silent, 0.4, 2, H, W)[2]
    zeros = {name: torch.zeros_like(value) for name, value in conditioning.text.items()}
    told = dataclasses.replace(conditioning, negative=zeros)
    assert torch.equal(ours, refined(denoiser, told, 0.4, 2, H, W)[2])


def test_at_a_scale_of_1_the_model_is_asked_once(denoiser, conditioning):
    calls = []
    hook = denoiser._core.register_forward_pre_hook(lambda *args: calls.append(1))
    x = latents(denoiser, H, W)
    denoiser.predict(x, 0.3, dataclasses.replace(conditioning, cfg=1.0, negative={}))
    assert len(calls) == 1
    denoiser.predict(x, 0.3, conditioning)
    hook.remove()
    assert len(calls) == 3


def test_text_negative_text_scale_and_level_reach_the_model(denoiser, conditioning):
    x = latents(denoiser, H, W)
    reference = denoiser.predict(x, 0.5, conditioning)

    def change(**changes):
        return (
            (denoiser.predict(x, 0.5, dataclasses.replace(conditioning, **changes)) - reference).abs().max()
        )

    assert change(cfg=1.5) > 1e-3
    for what in ("text", "negative"):
        for name, value in getattr(conditioning, what).items():
            assert change(**{what: getattr(conditioning, what) | {name: -value}}) > 1e-4, (what, name)


def test_the_prompts_embeddings_are_the_stock_pipelines(folder, stock, conditioning):
    made = stock.encode_prompt(
        "a red fox", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(conditioning.text["prompt_embeds"], made[0])
    if len(made) == 4:
        assert torch.equal(conditioning.text["pooled_prompt_embeds"], made[2])


@pytest.mark.parametrize("zero_snr", [False, True])
def test_timesteps_and_levels_are_the_stock_schedulers(zero_snr):
    from diffusers import EulerDiscreteScheduler

    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
              "rescale_betas_zero_snr": zero_snr}  # fmt: skip
    stock, ours = EulerDiscreteScheduler(**config), DiscreteSchedule.from_config(config)
    levels = [0.02, 0.25, 0.5, 0.9]
    stock.set_timesteps(sigmas=[level / (1 - level) for level in levels[::-1]] + [0.0])
    found = [ours.timestep(level) for level in levels[::-1]]
    torch.testing.assert_close(torch.tensor(found), stock.timesteps.float(), atol=1e-2, rtol=0)
    assert ours.level(ours.timestep(0.3)) == pytest.approx(0.3)
    assert 0.9 < ours.noisiest < 1


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_levels_go_down_from_the_one_asked_for_to_nothing(denoiser, steps):
    sigmas = denoiser.sigmas(0.25, steps, (H, W)).tolist()
    assert len(sigmas) == steps + 1
    assert sigmas[0] == 0.25
    assert sigmas[-1] == 0
    assert all(a > b for a, b in pairwise(sigmas))


def test_from_pure_noise_the_spacing_is_the_stock_schedulers(denoiser, stock):
    schedule = DiscreteSchedule.from_config(stock.scheduler.config)
    from diffusers import EulerDiscreteScheduler

    trailing = EulerDiscreteScheduler.from_config(stock.scheduler.config, timestep_spacing="trailing")
    trailing.set_timesteps(10)
    ours = torch.tensor(schedule.sigmas(schedule.noisiest, 10))
    stocks = trailing.sigmas / (1 + trailing.sigmas)
    torch.testing.assert_close(ours, stocks, atol=1e-4, rtol=0)
