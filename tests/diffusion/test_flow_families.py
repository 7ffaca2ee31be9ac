"""FLUX.1 Kontext, FLUX.2 and Stable Diffusion 3 as denoisers, against the stock pipelines on tiny random weights."""

from __future__ import annotations

import dataclasses

import diffusers
import PIL.Image
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from parity import batched, before_shift, latents, refined
from tiny_flows import make_tiny
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from transformers import AutoTokenizer

from dino_ray.diffusion import loading
from dino_ray.diffusion.denoiser import Conditioning
from dino_ray.diffusion.families.flux import pack, unpack

KINDS = ("kontext", "flux2", "klein", "klein-base", "klein-kv", "sd3", "sd3.5", "sd3-turbo")
H, W = 8, 12  # latent; not square, so that swapped axes show
TOKENS = H * W // 4
SCALE = 3.25
PROMPT, NEGATIVE = "a red fox", "dull"


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("flows") / kind, kind)


@pytest.fixture(scope="module")
def denoiser(folder):
    return loading.load(str(folder), "cpu", "float32")


@pytest.fixture(scope="module")
def stock(kind, folder):
    without = {"flux2": ["tokenizer"], "sd3.5": ["text_encoder_3", "tokenizer_3"]}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **dict.fromkeys(without.get(kind, ())))
    if kind == "flux2":  # whose own processor needs torchvision
        pipeline.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    if kind.startswith("sd3"):
        pipeline = diffusers.StableDiffusion3Img2ImgPipeline(**pipeline.components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def base(denoiser):
    """A tile's base, as a picture."""
    side = denoiser.description.latent_scale
    pixels = torch.rand(H * side, W * side, 3, generator=torch.Generator().manual_seed(3))
    return PIL.Image.fromarray((pixels * 255).byte().numpy())


@pytest.fixture(scope="module")
def conditioning(folder, denoiser, base):
    text = loading.encode_texts(str(folder), [PROMPT, NEGATIVE], "cpu")
    guided = denoiser.description.cfg not in (None, 1)  # SD3 Turbo's own scale
    return Conditioning(
        text=text[PROMPT],
        negative=text[NEGATIVE] if guided and denoiser.description.guidance == "classifier-free" else {},
        cfg=SCALE if guided else None,
        reference=denoiser.encode(pixels(base)[None]) if denoiser.description.takes_reference else None,
    )


def pixels(image):
    """(3, H, W) in [0, 1]."""
    return torch.tensor(list(image.getdata())).reshape(*image.size[::-1], 3).permute(2, 0, 1) / 255


def alpha(kind, steps):
    if kind.startswith("sd3"):
        return 3.0
    mu = calculate_shift(TOKENS) if kind == "kontext" else compute_empirical_mu(TOKENS, steps)
    return torch.tensor(mu, dtype=torch.float64).exp().item()


def theirs(kind, stock, denoiser, conditioning, base, sigmas, start):
    """Latents of the stock pipeline, from where ours start, as ours are."""
    batch, steps = len(start), len(sigmas) - 1
    given = dict(
        sigmas=before_shift(sigmas[:-1], alpha(kind, steps)),
        num_inference_steps=steps,
        output_type="latent",
        height=base.height,
        width=base.width,
        **batched(conditioning.text, batch),
    )
    if conditioning.negative:
        given |= {f"negative_{name}": value for name, value in batched(conditioning.negative, batch).items()}
    if kind != "klein-kv":
        given["guidance_scale"] = conditioning.cfg or 1.0
    if kind == "kontext":
        given |= {"image": conditioning.reference, "latents": pack(start), "_auto_resize": False}
        given["max_area"] = base.height * base.width
        return unpack(stock(**given).images, H, W)
    if kind.startswith("sd3"):
        return stock(
            image=torch.zeros(batch, 3, base.height, base.width), strength=1.0, latents=start, **given
        ).images
    made = stock(image=base, latents=pixel_unshuffle(start, 2), **given).images
    if kind == "flux2":
        return unpack(made, H, W)
    mean, variance = (
        each.view(1, -1, 1, 1) for each in (stock.vae.bn.running_mean, stock.vae.bn.running_var)
    )
    deviation = (variance + stock.vae.config.batch_norm_eps).sqrt()
    return pixel_shuffle((pixel_unshuffle(made, 2) - mean) / deviation, 2)


@pytest.mark.parametrize(("denoise", "steps"), [(0.25, 3), (1.0, 4)])
def test_our_loop_gives_the_latents_of_the_stock_pipeline(
    kind, denoiser, conditioning, stock, base, denoise, steps
):
    if denoise != denoiser.description.within(denoise):
        pytest.skip("it starts from pure noise alone")
    if conditioning.reference is not None:
        reference = conditioning.reference.expand(2, -1, -1, -1)
        conditioning = dataclasses.replace(conditioning, reference=reference)
    sigmas, start, ours = refined(denoiser, conditioning, denoise, steps, H, W)
    stocks = theirs(kind, stock, denoiser, conditioning, base, sigmas, start)
    torch.testing.assert_close(stock.scheduler.sigmas, sigmas, rtol=0, atol=1e-6)
    assert (stocks - ours).abs().max() < 1e-4
    assert (ours - start).abs().max() > 0.05  # the model did something


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_from_pure_noise_the_spacing_is_the_stock_pipelines(kind, denoiser, stock, steps):
    even = [1 - i / steps for i in range(steps)]
    mu = calculate_shift(TOKENS) if kind == "kontext" else compute_empirical_mu(TOKENS, steps)
    stock.scheduler.set_timesteps(sigmas=even, mu=mu)  # of which SD3's, whose shift is fixed, makes nothing
    ours = denoiser.sigmas(1.0, steps, (H, W))
    torch.testing.assert_close(ours, stock.scheduler.sigmas, rtol=0, atol=1e-6)


def test_the_prompts_embeddings_are_the_stock_pipelines(stock, conditioning):
    more = {"prompt_2": None, "prompt_3": None} if hasattr(stock, "text_encoder_3") else {}
    if hasattr(stock, "text_encoder_2") and not more:
        more = {"prompt_2": None}
    with torch.no_grad():
        made = stock.encode_prompt(PROMPT, device="cpu", **more)
    assert torch.equal(conditioning.text["prompt_embeds"], made[0])
    if "pooled_prompt_embeds" in conditioning.text:
        assert torch.equal(conditioning.text["pooled_prompt_embeds"], made[2 if len(made) == 4 else 1])


def test_pixels_pass_the_vae_as_in_the_stock_pipeline(kind, denoiser, stock, base):
    image = pixels(base)[None]
    signed = stock.image_processor.preprocess(image)
    with torch.no_grad():
        if kind in ("flux2", "klein", "klein-base", "klein-kv"):
            packed = stock._encode_vae_image(signed, generator=None)
            encoded = pixel_shuffle(packed, 2)
            raw = stock.vae.encode(signed).latent_dist.mode()
        else:
            raw = stock.vae.encode(signed).latent_dist.mode()
            encoded = (raw - stock.vae.config.shift_factor) * stock.vae.config.scaling_factor
        decoded = stock.vae.decode(raw).sample / 2 + 0.5
    ours = denoiser.encode(image)
    assert ours.shape[1] == denoiser.description.latent_channels
    assert (ours - encoded).abs().max() < 1e-5
    assert (denoiser.decode(ours) - decoded).abs().max() < 1e-5
    assert denoiser.save_memory() == "VAE tiling of 512 px"


def test_all_that_conditions_a_prediction_reaches_the_model(denoiser, conditioning):
    x = latents(denoiser, H, W)
    plain = denoiser.predict(x, 0.5, conditioning)

    def change(level=0.5, **changes):
        told = dataclasses.replace(conditioning, **changes)
        return ((x - denoiser.predict(x, level, told)) / level - (x - plain) / 0.5).abs().max()

    assert change() == 0
    assert change(level=0.9) > 1e-4
    if conditioning.cfg is not None:
        assert change(cfg=1.5) > 1e-4
    for what in ("text", "negative"):
        for name, value in getattr(conditioning, what).items():
            assert change(**{what: getattr(conditioning, what) | {name: -value}}) > 1e-4, (what, name)
    if conditioning.reference is not None:
        assert change(reference=-conditioning.reference) > 1e-4
        assert change(reference=conditioning.reference.flip(-1)) > 1e-4, "places count"


def test_each_tile_of_a_batch_has_its_own_reference_and_one_is_asked_for(denoiser, conditioning):
    x, other = latents(denoiser, H, W, 2), latents(denoiser, H, W, 2, seed=5)
    if not denoiser.description.takes_reference:
        with pytest.raises(ValueError, match="takes no reference"):
            denoiser.predict(x, 0.5, dataclasses.replace(conditioning, reference=other))
        return
    with pytest.raises(ValueError, match="reference"):
        denoiser.predict(x, 0.5, dataclasses.replace(conditioning, reference=None))
    together = denoiser.predict(x, 0.5, dataclasses.replace(conditioning, reference=other))
    alone = [
        denoiser.predict(x[i : i + 1], 0.5, dataclasses.replace(conditioning, reference=other[i : i + 1]))
        for i in range(2)
    ]
    assert (together - torch.cat(alone)).abs().max() < 1e-5


def test_gradients_pass_to_the_latents_through_decoding(denoiser):
    x = latents(denoiser, H, W).requires_grad_()
    denoiser.sketch(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_prompt_that_flux2_may_have_cut_is_warned_of(kind, folder, caplog):
    if kind not in ("flux2", "klein"):
        pytest.skip("it is one of these, or the stock pipeline itself says so")
    loading.encode_text(str(folder), "a" * 200, "cpu")
    assert not caplog.records
    loading.encode_text(str(folder), "a" * 600, "cpu")
    assert "the prompt fills the 512 tokens" in caplog.text
