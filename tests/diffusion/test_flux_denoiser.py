"""FLUX.1 as a denoiser, against the stock pipeline on tiny random weights of the real classes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from parity import before_shift
from tiny import LATENT_CHANNELS, make_tiny_flux

from dino_ray.diffusion import loading
from dino_ray.diffusion.denoiser import Conditioning, DinoTokens
from dino_ray.diffusion.families.flux import pack, position_ids, unpack
from dino_ray.diffusion.sampler import sample

KINDS = ("schnell", "dev")
SIDE_H, SIDE_W = 16, 24  # latent; not square, so that swapped axes show
GUIDANCE = 4.25


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return make_tiny_flux(tmp_path_factory.mktemp("flux") / request.param, request.param)


@pytest.fixture(scope="module")
def denoiser(folder):
    return loading.load(str(folder), "cpu", "float32")


@pytest.fixture(scope="module")
def conditioning(folder):
    text = loading.encode_text(str(folder), "a red fox in the snow", "cpu")
    return Conditioning(text=text, cfg=GUIDANCE if "dev" in folder.name else None)


@pytest.fixture(scope="module")
def stock(folder):
    from diffusers import FluxImg2ImgPipeline

    pipeline = FluxImg2ImgPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, LATENT_CHANNELS, SIDE_H, SIDE_W, generator=generator)


def unshifted(pipeline, sigmas):
    """The sigmas that the stock scheduler will shift to ``sigmas``."""
    config = pipeline.scheduler.config
    if not config.use_dynamic_shifting:
        alpha = config.shift
    else:
        tokens = SIDE_H * SIDE_W // 4
        slope = (config.max_shift - config.base_shift) / (
            config.max_image_seq_len - config.base_image_seq_len
        )
        alpha = torch.tensor(config.base_shift + slope * (tokens - config.base_image_seq_len)).exp().item()
    return before_shift(sigmas, alpha)


@pytest.mark.parametrize(("denoise", "steps"), [(0.2, 1), (0.25, 3), (0.6, 4), (1.0, 5)])
def test_our_loop_gives_the_latents_of_the_stock_pipeline(denoiser, conditioning, stock, denoise, steps):
    sigmas = denoiser.sigmas(denoise, steps, (SIDE_H, SIDE_W))
    start = denoiser.noised(latents(2), latents(2, seed=1), denoise)
    ours = sample(denoiser, start, sigmas, conditioning)

    theirs = stock(
        image=torch.zeros(2, 3, SIDE_H * 8, SIDE_W * 8),  # not looked at, where latents are given
        height=SIDE_H * 8,
        width=SIDE_W * 8,
        latents=pack(start),
        strength=1.0,
        sigmas=unshifted(stock, sigmas[:-1]),
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        output_type="latent",
        **{name: embedding.expand(2, *embedding.shape[1:]) for name, embedding in conditioning.text.items()},
    ).images
    torch.testing.assert_close(stock.scheduler.sigmas, sigmas, rtol=0, atol=1e-6)
    difference = (unpack(theirs, SIDE_H, SIDE_W) - ours).abs().max().item()
    moved = (ours - start).abs().max().item()
    assert difference < 1e-4
    assert moved > 0.05  # the model did something


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_from_pure_noise_the_spacing_is_the_stock_pipelines(denoiser, stock, steps):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    even = [1 - i / steps for i in range(steps)]
    stock.scheduler.set_timesteps(sigmas=even, mu=calculate_shift(SIDE_H * SIDE_W // 4))
    ours = denoiser.sigmas(1.0, steps, (SIDE_H, SIDE_W))
    torch.testing.assert_close(ours, stock.scheduler.sigmas, rtol=0, atol=1e-6)


def test_noising_and_pixels_are_the_stock_pipelines(denoiser, stock):
    z, noise = latents(), latents(seed=1)
    stock.scheduler.set_timesteps(sigmas=[0.8, 0.4], mu=0.5)
    sigma = stock.scheduler.sigmas[0].item()
    stock.scheduler.set_begin_index(0)
    theirs = stock.scheduler.scale_noise(z, stock.scheduler.timesteps[:1], noise)
    torch.testing.assert_close(denoiser.noised(z, noise, sigma), theirs, rtol=0, atol=1e-6)

    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    vae, config = stock.vae, stock.vae.config
    encoded = vae.encode(stock.image_processor.preprocess(pixels)).latent_dist.mode()
    encoded = (encoded - config.shift_factor) * config.scaling_factor
    assert (denoiser.encode(pixels) - encoded).abs().max() < 1e-5
    decoded = vae.decode(encoded / config.scaling_factor + config.shift_factor).sample
    assert (denoiser.decode(encoded) - (decoded + 1) / 2).abs().max() < 1e-5


def test_encoding_draws_no_random_numbers(denoiser):
    pixels = torch.rand(1, 3, 32, 32)
    state = torch.get_rng_state()
    first = denoiser.encode(pixels)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(denoiser.encode(pixels), first)


def test_tiles_keep_their_size_through_encode_and_decode(denoiser):
    description = denoiser.description
    pixels = torch.rand(2, 3, 48, 80)
    z = denoiser.encode(pixels)
    assert z.shape == (
        2,
        description.latent_channels,
        48 // description.latent_scale,
        80 // description.latent_scale,
    )
    assert z.dtype == torch.float32
    assert denoiser.decode(z).shape == pixels.shape


def test_a_batch_gives_what_its_tiles_give_alone(denoiser, conditioning):
    x = latents(2)
    together = denoiser.predict(x, 0.3, conditioning)
    alone = torch.cat([denoiser.predict(tile[None], 0.3, conditioning) for tile in x])
    assert (together - alone).abs().max() < 1e-5


def test_a_batch_passes_all_stages_as_its_tiles_do_alone(denoiser, conditioning):
    pixels = torch.rand(3, 3, 48, 64, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(3, LATENT_CHANNELS, 6, 8, generator=torch.Generator().manual_seed(4))

    def refined(some, its_noise):
        sigmas = denoiser.sigmas(0.4, 2, (6, 8))
        start = denoiser.noised(denoiser.encode(some), its_noise, 0.4)
        return denoiser.decode(sample(denoiser, start, sigmas, conditioning))

    together = refined(pixels, noise)
    alone = torch.cat([refined(pixels[i : i + 1], noise[i : i + 1]) for i in range(3)])
    assert (together - alone).abs().max() < 1e-5
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_saving_memory_has_the_vae_work_in_smaller_and_smaller_windows(folder):
    ours = loading.load(str(folder), "cpu", "float32")
    pixels = torch.rand(1, 3, 544, 320, generator=torch.Generator().manual_seed(5))
    seen = []
    ours._vae.model.encoder.register_forward_pre_hook(
        lambda module, args: seen.append(max(args[0].shape[2:]))
    )
    ours._vae.model.decoder.register_forward_pre_hook(
        lambda module, args: seen.append(8 * max(args[0].shape[2:]))
    )

    def there_and_back():
        seen.clear()
        return ours.decode(ours.encode(pixels)), max(seen)

    whole, largest = there_and_back()
    assert largest == 544
    for side in (512, 256):
        assert ours.save_memory() == f"VAE tiling of {side} px"
        tiled, largest = there_and_back()
        assert largest == side
        assert tiled.shape == whole.shape
        alike = torch.corrcoef(torch.stack([tiled.flatten(), whole.flatten()]))[0, 1]
        assert alike > 0.8  # of random weights, whose normalisation acts more than that of trained ones
    assert ours.save_memory() is None


def test_text_and_position_and_noise_level_reach_the_transformer(denoiser, conditioning):
    x = latents()
    reference = denoiser.predict(x, 0.5, conditioning)

    def change(**text):
        return (
            (
                denoiser.predict(x, 0.5, dataclasses.replace(conditioning, text=conditioning.text | text))
                - reference
            )
            .abs()
            .max()
        )

    assert change(prompt_embeds=-conditioning.text["prompt_embeds"]) > 1e-3
    assert change(pooled_prompt_embeds=-conditioning.text["pooled_prompt_embeds"]) > 1e-3
    v = (x - reference) / 0.5
    assert ((x - denoiser.predict(x, 0.9, conditioning)) / 0.9 - v).abs().max() > 1e-3
    flipped = denoiser.predict(x.flip(-1), 0.5, conditioning).flip(-1)
    assert (flipped - reference).abs().max() > 1e-3


def test_guidance_acts_where_it_is_embedded_and_only_there(denoiser, conditioning):
    x = latents()
    low, high = (denoiser.predict(x, 0.5, dataclasses.replace(conditioning, cfg=cfg)) for cfg in (1.0, 7.0))
    default = denoiser.predict(x, 0.5, dataclasses.replace(conditioning, cfg=None))
    if denoiser.description.guidance == "embedded":
        assert (low - high).abs().max() > 1e-3
        own = dataclasses.replace(conditioning, cfg=denoiser.description.cfg)
        assert torch.equal(default, denoiser.predict(x, 0.5, own))
    else:
        assert torch.equal(low, high)
        assert torch.equal(low, default)


def test_no_graph_is_recorded_unless_the_caller_asks_for_a_gradient(denoiser, conditioning):
    x = latents()
    assert not denoiser.predict(x, 0.5, conditioning).requires_grad
    assert not denoiser.decode(x).requires_grad
    x.requires_grad_()
    denoiser.decode(x).sum().backward()
    assert x.grad.abs().max() > 0


def test_bfloat16_weights_keep_float32_at_the_border(folder, denoiser, conditioning):
    half = loading.load(str(folder), "cpu", "bfloat16")
    x = latents()
    ours, exact = half.predict(x, 0.5, conditioning), denoiser.predict(x, 0.5, conditioning)
    assert ours.dtype == torch.float32
    assert 0 < (ours - exact).abs().max() < 0.1
    pixels = torch.rand(1, 3, 32, 32)
    assert half.encode(pixels).dtype == half.decode(half.encode(pixels)).dtype == torch.float32


def test_missing_text_and_foreign_dino_tokens_are_refused(denoiser, conditioning):
    with pytest.raises(ValueError, match="prompt_embeds"):
        denoiser.predict(latents(), 0.5, Conditioning())
    tokens = DinoTokens(torch.zeros(1, 2, 2, 8), strength=1.0)
    with pytest.raises(ValueError, match="DINO"):
        denoiser.predict(latents(), 0.5, dataclasses.replace(conditioning, dino=tokens))


def test_packing_round_trips_and_follows_the_stock_pipeline():
    from diffusers import FluxImg2ImgPipeline

    x = latents(2)
    assert torch.equal(unpack(pack(x), SIDE_H, SIDE_W), x)
    stock = FluxImg2ImgPipeline._pack_latents(x, 2, LATENT_CHANNELS, SIDE_H, SIDE_W)
    assert torch.equal(pack(x), stock)
    ids = FluxImg2ImgPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    assert torch.equal(position_ids(3, 5), ids)


def test_a_sketch_passes_gradients_to_the_latents_and_keeps_few_activations(denoiser):
    asked = latents().requires_grad_()
    torch.testing.assert_close(denoiser.sketch(asked), denoiser.decode(asked))
    denoiser.sketch(asked).sum().backward()
    assert asked.grad.abs().sum() > 0

    def kept() -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            denoiser.sketch(latents().requires_grad_())
        return sum(sizes)

    sparing = kept()
    denoiser._vae.model.decoder.gradient_checkpointing = False
    assert sparing < kept() / 2
    denoiser._vae.model.decoder.gradient_checkpointing = True
