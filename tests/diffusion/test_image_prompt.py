"""Image prompts against the stock pipelines' own, on tiny models and adapters of the real formats."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parity import latents, refined
from PIL import Image
from safetensors.torch import load_file, save_file
from test_flux_denoiser import unshifted
from test_stable_diffusion import theirs
from tiny import TEXT_WIDTH, make_tiny_flux
from tiny_image_prompt import make_clip_vision, make_ip_adapter, make_redux
from tiny_stable_diffusion import make_tiny_stable_diffusion

import dino_ray
from dino_ray import hub
from dino_ray.config import UpscaleConfig
from dino_ray.diffusion import image_prompt_file, loading
from dino_ray.diffusion.denoiser import Conditioning
from dino_ray.diffusion.families.flux import pack, unpack
from dino_ray.diffusion.model_options import ModelOptions
from dino_ray.errors import JobError, UsageError
from dino_ray.resolve import resolve

H, W = 16, 24  # latent
SCALE = 0.8
LEVELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
PICTURE = LEVELS.astype(np.float32) / 255


def prompt_of(path, scale=SCALE):
    return image_prompt_file.parse(str(path), "image", scale)


def load(model, prompt):
    return loading.load(str(model), "cpu", "float32", options=ModelOptions(image_prompt=prompt))


@pytest.fixture(scope="module", params=["sd plain", "sdxl plain", "sd plus"])
def unets(request, tmp_path_factory):
    """A Stable Diffusion with an IP-Adapter, ours and the stock one."""
    import diffusers

    folder = tmp_path_factory.mktemp("unets")
    family, kind = request.param.split()
    model = make_tiny_stable_diffusion(folder / family, family)
    cls = {"sd": "StableDiffusionImg2ImgPipeline", "sdxl": "StableDiffusionXLImg2ImgPipeline"}[family]
    stock = getattr(diffusers, cls).from_pretrained(model)
    stock.set_progress_bar_config(disable=True)
    file = make_ip_adapter(folder / "ip.safetensors", stock.unet, kind)
    stock.load_ip_adapter(folder, subfolder="", weight_name=file.name, image_encoder_folder="image_encoder")
    stock.set_ip_adapter_scale(SCALE)
    return SimpleNamespace(model=model, file=file, stock=stock, ours=load(model, prompt_of(file)))


def test_an_ip_adapter_gives_the_latents_of_the_stock_pipeline(unets):
    texts = loading.encode_texts(str(unets.model), ["a red fox", "dull"], "cpu")
    seen = loading.load_image_encoder(prompt_of(unets.file), "cpu", "float32")([PICTURE])
    conditioning = Conditioning(texts["a red fox"], texts["dull"], cfg=4.25, image=seen)
    sigmas, start, ours = refined(unets.ours, conditioning, 0.5, 3, H, W)
    stocks = theirs(
        unets.stock, unets.ours, conditioning, sigmas, start, ip_adapter_image=Image.fromarray(LEVELS)
    )
    assert (ours - stocks).abs().max() < 1e-4
    without = refined(
        loading.load(str(unets.model), "cpu"), dataclasses.replace(conditioning, image={}), 0.5, 3, H, W
    )
    assert (ours - without[2]).abs().max() > 1e-2
    other = loading.load_image_encoder(prompt_of(unets.file), "cpu", "float32")([PICTURE[::-1] ** 3])
    turned = refined(unets.ours, dataclasses.replace(conditioning, image=other), 0.5, 3, H, W)[2]
    assert (ours - turned).abs().max() > 1e-3


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """A FLUX.1-dev and a Redux."""
    folder = tmp_path_factory.mktemp("flux")
    return SimpleNamespace(
        model=make_tiny_flux(folder / "dev", "dev"), redux=make_redux(folder / "redux", TEXT_WIDTH)
    )


def flux_stock(model):
    from diffusers import FluxImg2ImgPipeline

    stock = FluxImg2ImgPipeline.from_pretrained(model)
    stock.set_progress_bar_config(disable=True)
    return stock


def flux_latents(stock, sigmas, start, text, **more):
    """Latents of the stock pipeline, from where ours start."""
    made = stock(
        image=torch.zeros(2, 3, H * 8, W * 8), height=H * 8, width=W * 8, latents=pack(start), strength=1.0,
        sigmas=unshifted(stock, sigmas[:-1]), num_inference_steps=len(sigmas) - 1, guidance_scale=3.5,
        output_type="latent", **{name: value.expand(2, *value.shape[1:]) for name, value in text.items()}, **more,
    )  # fmt: skip
    return unpack(made.images, H, W)


def test_redux_gives_the_latents_of_the_stock_pipelines(flux):
    from diffusers import FluxPriorReduxPipeline

    stock = flux_stock(flux.model)
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    prior = FluxPriorReduxPipeline.from_pretrained(
        flux.redux, **{name: getattr(stock, name) for name in names}
    )
    told = prior(Image.fromarray(LEVELS), prompt="a red fox")
    text = loading.encode_text(str(flux.model), "a red fox", "cpu")
    seen = loading.load_image_encoder(prompt_of(flux.redux, 1.0), "cpu", "float32")([PICTURE])
    denoiser = load(flux.model, prompt_of(flux.redux, 1.0))
    sigmas, start, ours = refined(denoiser, Conditioning(text, image=seen), 0.5, 3, H, W)
    stocks = flux_latents(stock, sigmas, start, dict(told))
    assert (ours - stocks).abs().max() < 1e-4
    assert (ours - refined(denoiser, Conditioning(text), 0.5, 3, H, W)[2]).abs().max() > 1e-3
    half = loading.load_image_encoder(prompt_of(flux.redux, 0.5), "cpu", "float32")([PICTURE])
    torch.testing.assert_close(half["image_tokens"], seen["image_tokens"] / 2)


def test_fluxs_ip_adapter_gives_the_latents_of_the_stock_pipeline(flux, tmp_path):
    stock = flux_stock(flux.model)
    file = make_ip_adapter(tmp_path / "ip.safetensors", stock.transformer)
    stock.load_ip_adapter(
        tmp_path,
        weight_name=file.name,
        image_encoder_pretrained_model_name_or_path=tmp_path / "image_encoder",
        image_encoder_dtype=torch.float32,
    )
    stock.set_ip_adapter_scale(SCALE)
    text = loading.encode_text(str(flux.model), "a red fox", "cpu")
    seen = loading.load_image_encoder(prompt_of(file), "cpu", "float32")([PICTURE])
    sigmas, start, ours = refined(
        load(flux.model, prompt_of(file)), Conditioning(text, image=seen), 0.5, 3, H, W
    )
    stocks = flux_latents(stock, sigmas, start, text, ip_adapter_image=Image.fromarray(LEVELS))
    assert (ours - stocks).abs().max() < 1e-4
    plain = refined(loading.load(str(flux.model), "cpu"), Conditioning(text), 0.5, 3, H, W)[2]
    assert (ours - plain).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", ["fp8", "bf16"])
def test_an_ip_adapter_works_beside_weights_of_fewer_bits(flux, unets, dtype, tmp_path):
    stock = flux_stock(flux.model)
    file = make_ip_adapter(tmp_path / "ip.safetensors", stock.transformer)
    for model, adapter in ((flux.model, file), (unets.model, unets.file)):
        prompt = prompt_of(adapter)
        seen = loading.load_image_encoder(prompt, "cpu", "float32")([PICTURE])
        told = Conditioning(loading.encode_text(str(model), "a red fox", "cpu"), cfg=1.0, image=seen)
        few = loading.load(str(model), "cpu", dtype, options=ModelOptions(image_prompt=prompt))
        whole = load(model, prompt)
        x = latents(whole, H, W)
        exact, near = whole.predict(x, 0.5, told), few.predict(x, 0.5, told)
        assert torch.corrcoef(torch.stack([exact.flatten(), near.flatten()]))[0, 1] > 0.99


def test_tiles_of_a_batch_are_told_what_each_shows(unets):
    encoder = loading.load_image_encoder(prompt_of(unets.file), "cpu", "float32")
    text = loading.encode_text(str(unets.model), "a red fox", "cpu")
    x, others = latents(unets.ours, H, W, 2), [PICTURE, PICTURE[::-1] ** 3]

    def predicted(x, pictures):
        told = Conditioning(text, cfg=1.0, image=encoder(pictures))
        return unets.ours.predict(x, 0.5, told)

    together = predicted(x, others)
    for i in range(2):
        alone = predicted(x[i : i + 1], [others[i]])
        assert (together[i : i + 1] - alone).abs().max() < 1e-5
    assert (predicted(x[:1], [others[1]]) - together[:1]).abs().max() > 1e-4


def test_a_whole_job_looks_at_the_image_once_or_at_each_tile(flux, monkeypatch):
    from dino_ray.diffusion.image_prompt import ImageEncoder

    looked, once = [], ImageEncoder.__call__
    monkeypatch.setattr(
        ImageEncoder,
        "__call__",
        lambda self, seen: looked.append([each.shape for each in seen]) or once(self, seen),
    )

    def made(**options):
        looked.clear()
        job = {"scale": 2, "tile": 64, "overlap": 8, "steps": 1, "denoise": 0.5, "dino_strength": 0, "adaptive": 0,
               "verify": False, "consistency": 0, "address": "none", "color_lock": "off"}  # fmt: skip
        image, _ = dino_ray.upscale(LEVELS[:32], model=str(flux.model), prompt="a red fox", **job, **options)
        return np.asarray(image, np.float32)

    plain = made()
    assert looked == []
    image = made(image_prompt=str(flux.redux))
    assert looked == [[(32, 60, 3)]]
    tile = made(image_prompt=str(flux.redux), image_prompt_of="tile")
    assert len(looked) > 1
    assert {shape for shapes in looked for shape in shapes} == {(64, 64, 3)}
    less = made(image_prompt=str(flux.redux), image_prompt_scale=0.2)
    for one, other in ((plain, image), (image, tile), (image, less)):
        assert np.abs(one - other).max() >= 1


def test_an_image_prompt_for_another_model_is_refused(unets, flux, tmp_path):
    with pytest.raises(UsageError, match=r"is FLUX\.1 Redux, .* takes an IP-Adapter, an IP-Adapter Plus"):
        resolve(UpscaleConfig(model=str(unets.model), image_prompt=str(flux.redux)))
    with pytest.raises(UsageError, match=r"the model .* takes none"):
        resolve(UpscaleConfig(model="bundled", image_prompt=str(flux.redux)))
    with pytest.raises(UsageError, match="--image-prompt needs a diffusion model"):
        resolve(UpscaleConfig(model="none", image_prompt=str(flux.redux)))
    wide = make_redux(tmp_path / "wide", 2 * TEXT_WIDTH)
    with pytest.raises(UsageError, match=r"makes tokens of 64 channels, the model dev reads 32"):
        resolve(UpscaleConfig(model=str(flux.model), image_prompt=str(wide)))
    with pytest.raises(UsageError, match="--image-prompt-scale needs --image-prompt"):
        resolve(UpscaleConfig(model=str(flux.model), image_prompt_scale=0.5))
    with pytest.raises(UsageError, match="--image-prompt-of needs --image-prompt"):
        resolve(UpscaleConfig(model=str(flux.model), image_prompt_of="tile"))


def test_what_is_no_image_prompt_is_refused(unets, flux, tmp_path):
    weights = load_file(unets.file)
    file = tmp_path / "alone" / "deep" / "ip.safetensors"
    file.parent.mkdir(parents=True)
    for wrong, says in [
        ("no/such/thing/here", "no such file or folder|can't be reached"),
        (str(flux.model), "is a FluxPipeline"),
    ]:
        with pytest.raises(UsageError, match=says):
            prompt_of(wrong)
    save_file(weights, file)
    with pytest.raises(UsageError, match=r"needs the CLIP .* looked in .*/image_encoder"):
        prompt_of(file)
    make_clip_vision(file.parents[1] / "models" / "image_encoder")
    assert prompt_of(file).encoder == str(file.parents[1] / "models" / "image_encoder")
    save_file({name: value for name, value in weights.items() if name.startswith("ip_adapter")}, file)
    with pytest.raises(UsageError, match="is no IP-Adapter"):
        prompt_of(file)
    file.write_text("not found")
    with pytest.raises(UsageError, match="can't be read as safetensors"):
        prompt_of(file)
    file.with_suffix(".bin").touch()
    with pytest.raises(UsageError, match="can run any code"):
        prompt_of(file.with_suffix(".bin"))


def test_one_of_the_hub_is_found_with_its_encoder(flux, unets, tmp_path, monkeypatch):
    (tmp_path / "sdxl_models").mkdir()
    shutil.copy(unets.file, tmp_path / "sdxl_models" / "ip.safetensors")
    make_clip_vision(tmp_path / "models" / "image_encoder")
    shutil.copytree(flux.redux, tmp_path, dirs_exist_ok=True)
    asked = []
    monkeypatch.setattr(hub, "snapshot", lambda repo, names, whole: asked.extend(names) or tmp_path)
    adapter = prompt_of("some/adapters/sdxl_models/ip.safetensors")
    assert adapter.encoder == "some/adapters/models/image_encoder"
    assert image_prompt_file.files(adapter) == {
        "adapter": tmp_path / "sdxl_models" / "ip.safetensors",
        "image_encoder": tmp_path / "models" / "image_encoder",
    }
    redux = prompt_of("some/redux")
    assert image_prompt_file.files(redux)["image_embedder"] == tmp_path / "image_embedder"
    assert {"sdxl_models/ip.safetensors", "model_index.json", "image_embedder/*.safetensors"} <= set(asked)


def test_damaged_or_missing_weights_are_said(unets, tmp_path):
    file = tmp_path / "ip.safetensors"
    weights = load_file(unets.file)
    shutil.copytree(unets.file.parent / "image_encoder", tmp_path / "image_encoder")
    gone = next(name for name in weights if name.startswith("ip_adapter.3"))
    save_file({name: value for name, value in weights.items() if name != gone}, file)
    prompt = prompt_of(file)
    with pytest.raises(JobError, match=r"--image-prompt .*can't be applied"):
        load(unets.model, prompt)
    (tmp_path / "image_encoder" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has no \.safetensors file"):
        loading.load_image_encoder(prompt, "cpu")


def test_a_resumed_job_knows_its_image_prompt_again(flux):
    from dino_ray import identity

    def known(**options):
        config = UpscaleConfig(model=str(flux.model), **options)
        return identity.of_pixels(LEVELS, config, resolve(config), 8, False)

    redux = {"image_prompt": str(flux.redux)}
    kinds = [{}, redux, redux | {"image_prompt_of": "tile"}, redux | {"image_prompt_scale": 0.5}]
    found = [known(**options) for options in kinds]
    assert all(one != other for i, one in enumerate(found) for other in found[:i])
    assert known(**redux) == found[1]
