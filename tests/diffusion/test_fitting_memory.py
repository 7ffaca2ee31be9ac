"""How weights are kept, quantised, cast and left waiting: each option acts, and what can't be had is refused first."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from parity import latents
from tiny import make_tiny_flux
from tiny_stable_diffusion import make_tiny_stable_diffusion

from dino_ray.config import UpscaleConfig
from dino_ray.diffusion import components, loading, storage
from dino_ray.diffusion.denoiser import Conditioning
from dino_ray.diffusion.model_options import ModelOptions
from dino_ray.errors import UsageError
from dino_ray.loaders import replica_spec
from dino_ray.resolve import resolve

H, W = 8, 12
WEIGHT_ONLY = ("torchao-int8", "torchao-fp8")  # these run on a CPU


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return str(make_tiny_flux(tmp_path_factory.mktemp("fit") / "flux"))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return str(make_tiny_stable_diffusion(tmp_path_factory.mktemp("fit") / "sdxl", "sdxl"))


@pytest.fixture(scope="module")
def conditioning(flux):
    return Conditioning(text=loading.encode_text(flux, "a red fox", "cpu"))


@pytest.fixture(scope="module")
def plain(flux):
    return loading.load(flux, "cpu")


def size(model) -> int:
    """Bytes of a model's parameters; of a quantised one, of the tensors that it is made of."""

    def of(tensor):
        if hasattr(tensor, "__tensor_flatten__"):
            return sum(of(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
        return tensor.numel() * tensor.element_size()

    return sum(of(parameter.data) for parameter in model.parameters())


def types(model) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


def off_by(one, other, conditioning) -> float:
    x = latents(one, H, W)
    with torch.inference_mode():
        return (one.predict(x, 0.5, conditioning) - other.predict(x, 0.5, conditioning)).abs().max().item()


def refused(**options) -> str:
    with pytest.raises(UsageError) as error:
        resolve(UpscaleConfig.parse({"device": "cpu", "address": "none", **options}))
    assert "\n" not in str(error.value)
    return str(error.value)


# What is typed


@pytest.mark.parametrize(
    ("typed", "core", "vae"),
    [
        ("bf16", "bf16", "bf16"),
        ("float16", "fp16", "fp16"),
        ("transformer=fp8, vae=fp32", "fp8", "fp32"),
        ("default=bf16,vae=fp32", "bf16", "fp32"),
        ({"vae": "fp32"}, "auto", "fp32"),
    ],
)
def test_a_type_is_read_for_all_components_or_by_name_and_written_as_it_is_read(typed, core, vae):
    config = UpscaleConfig.parse({"dtype": typed})
    assert (config.dtype.of("transformer"), config.dtype.of("vae")) == (core, vae)
    assert UpscaleConfig.parse(config.model_dump(exclude_unset=True)) == config


@pytest.mark.parametrize("typed", ["int4", "vae=", "vae", "=bf16", "vae=fp32,vae=bf16", "bf16,vae=fp32"])
def test_what_is_no_type_is_refused_with_what_may_be_typed(typed):
    with pytest.raises(UsageError, match=r"--dtype .*auto\|fp32") as error:
        UpscaleConfig.parse({"dtype": typed})
    assert "\n" not in str(error.value)


def test_a_component_that_a_model_lacks_is_named_with_those_it_has(flux):
    said = refused(model=flux, dtype="unet=bf16")
    assert "no unet" in said
    assert "transformer, vae, text_encoder, text_encoder_2" in said


# Types


def test_each_component_has_the_type_that_was_asked_for(flux):
    models = loading.load(flux, "cpu", "transformer=bf16,vae=fp32")
    assert types(models._core) == {torch.bfloat16}
    assert types(models._vae.model) == {torch.float32}


def test_text_encoders_have_theirs(flux, conditioning):
    some = loading.encode_texts(flux, ["a red fox"], "cpu", "text_encoder_2=bf16")["a red fox"]
    assert torch.equal(some["pooled_prompt_embeds"], conditioning.text["pooled_prompt_embeds"])
    assert not torch.equal(some["prompt_embeds"], conditioning.text["prompt_embeds"])


def test_fp16_spares_a_vae_that_overflows_unless_it_is_named(sdxl, tmp_path):
    def vae(folder, dtype):
        return types(loading.load(str(folder), "cpu", dtype)._vae.model)

    assert vae(sdxl, "fp16") == {torch.float32}
    assert vae(sdxl, "vae=fp16") == {torch.float16}
    mended = shutil.copytree(sdxl, tmp_path / "mended")
    config = mended / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": False}))
    assert vae(mended, "fp16") == {torch.float16}


def test_fp8_keeps_weights_in_8_bits_and_computes_in_another_type(flux, plain, conditioning):
    models = loading.load(flux, "cpu", "fp8")
    assert torch.float8_e4m3fn in types(models._core)
    assert types(models._vae.model) == {torch.float32}
    assert size(models._core) < size(plain._core) / 2
    assert 0 < off_by(models, plain, conditioning) < 0.1
    half = loading.load(flux, "cpu", "transformer=fp8,default=bf16")
    assert half._place.dtype == torch.bfloat16
    assert types(half._vae.model) == {torch.bfloat16}


def test_fp8_is_of_large_text_encoders_as_well(flux, conditioning):
    some = loading.encode_texts(flux, ["a red fox"], "cpu", "fp8")["a red fox"]
    assert torch.equal(some["pooled_prompt_embeds"], conditioning.text["pooled_prompt_embeds"])
    assert 0 < (some["prompt_embeds"] - conditioning.text["prompt_embeds"]).abs().max() < 0.5


def test_a_vae_in_fp8_is_refused(flux):
    assert "vae=fp8" in refused(model=flux, dtype="vae=fp8")


# Quantised


@pytest.mark.parametrize("method", WEIGHT_ONLY)
def test_quantising_makes_the_model_smaller_and_changes_little(flux, plain, conditioning, method):
    config = UpscaleConfig.parse({"model": flux, "device": "cpu", "quantize": method, "address": "none"})
    models = replica_spec(config, resolve(config)).denoiser()
    assert size(models._core) < size(plain._core) / 2
    assert size(models._vae.model) == size(plain._vae.model)
    assert 0 < off_by(models, plain, conditioning) < 0.1


@pytest.mark.parametrize("method", WEIGHT_ONLY)
def test_large_text_encoders_are_quantised_and_clip_is_not(flux, conditioning, method):
    options = ModelOptions(quantize=method)
    some = loading.encode_texts(flux, ["a red fox"], "cpu", options=options)["a red fox"]
    assert torch.equal(some["pooled_prompt_embeds"], conditioning.text["pooled_prompt_embeds"])
    assert 0 < (some["prompt_embeds"] - conditioning.text["prompt_embeds"]).abs().max() < 0.5


def prequantised(flux, tmp_path, part, cls, method):
    library = "diffusers" if part == "transformer" else "transformers"
    folder = shutil.copytree(flux, tmp_path / "quantised")
    files = components.PartFiles(part, library, cls, folder / part)
    model = components.load_model(files, storage.Kept("fp32", quantize=method), "cpu")
    shutil.rmtree(folder / part)
    model.save_pretrained(folder / part)
    return str(folder)


@pytest.mark.parametrize("method", WEIGHT_ONLY)
def test_a_checkpoint_that_is_quantised_is_loaded_as_it_is_and_no_further(
    flux, tmp_path, plain, conditioning, method
):
    folder = prequantised(flux, tmp_path, "transformer", "FluxTransformer2DModel", method)
    models = loading.load(folder, "cpu")
    assert size(models._core) < size(plain._core) / 2
    again = loading.load(flux, "cpu", options=ModelOptions(quantize=method))
    assert off_by(models, again, conditioning) == 0
    assert "quantised already, by torchao" in refused(model=folder, quantize="torchao-int8")
    assert "fp8" in refused(model=folder, dtype="fp8")


def test_a_text_encoder_quantised_by_bitsandbytes_runs_on_a_cpu_and_is_not_quantised_again(
    flux, tmp_path, conditioning
):
    folder = prequantised(flux, tmp_path, "text_encoder_2", "T5EncoderModel", "int8")
    resolve(UpscaleConfig.parse({"model": folder, "device": "cpu", "address": "none"}))
    some = loading.encode_text(folder, "a red fox", "cpu")
    assert 0 < (some["prompt_embeds"] - conditioning.text["prompt_embeds"]).abs().max() < 0.5
    assert "text_encoder_2 is quantised already" in refused(model=folder, quantize="torchao-int8")


@pytest.mark.parametrize(
    ("method", "words"), [("bitsandbytes", "CUDA"), ("awq", "only files of bitsandbytes and torchao")]
)
def test_a_quantised_checkpoint_that_cannot_run_here_is_refused(flux, tmp_path, method, words):
    folder = shutil.copytree(flux, tmp_path / "m")
    config = folder / "transformer" / "config.json"
    quantised = {"quantization_config": {"quant_method": method}}
    config.write_text(json.dumps(json.loads(config.read_text()) | quantised))
    assert words in refused(model=str(folder))
    with pytest.raises(UsageError, match=words):
        loading.load(str(folder), "cpu")


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_bitsandbytes_without_cuda_is_refused_with_what_runs_there(flux, method):
    said = refused(model=flux, quantize=method)
    assert said.startswith(f"--quantize {method}")
    assert "CUDA" in said
    assert "torchao-int8" in said
    with pytest.raises(UsageError, match="CUDA"):
        loading.load(flux, "cpu", options=ModelOptions(quantize=method))


def test_a_package_that_is_not_installed_is_named_with_how_to_get_it(flux, monkeypatch):
    monkeypatch.setattr(storage, "find_spec", lambda name: None)
    assert 'needs torchao; pip install "dino-ray[quantize]"' in refused(model=flux, quantize="torchao-int8")


def test_fp8_and_quantised_together_are_refused(flux):
    assert "can't be kept in fp8 and quantised" in refused(model=flux, quantize="torchao-int8", dtype="fp8")


def test_a_job_for_other_machines_is_not_judged_by_this_one(flux):
    config = UpscaleConfig.parse({"model": flux, "quantize": "nf4", "offload": "model", "address": "auto"})
    assert resolve(config).model_options == ModelOptions(quantize="nf4", offload="model")


# Offloaded


def used(denoiser, conditioning):
    """All that a replica does with a model, in the modes in which it does it."""
    with torch.inference_mode():
        base = denoiser.encode(torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(3)))
        x = denoiser.predict(base, 0.5, conditioning)
        with torch.inference_mode(False), torch.enable_grad():
            seen = x.clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(denoiser.sketch(seen).square().mean(), seen)
        again = denoiser.predict(x, 0.3, conditioning)
        return base, slope, denoiser.decode(again)


@pytest.fixture
def here(monkeypatch):
    """Let weights wait in, and come to, one and the same memory: where they are told to go is seen nevertheless."""
    monkeypatch.setattr(storage, "check_device", lambda *args: None)


@pytest.mark.parametrize(("how", "dtype"), [("model", "fp32"), ("group", "fp8"), ("sequential", "fp8")])
def test_offloading_changes_no_bit_of_what_is_made(flux, conditioning, here, how, dtype):
    plain = loading.load(flux, "cpu", dtype)
    waiting = loading.load(flux, "cpu", dtype, options=ModelOptions(offload=how))
    for ours, theirs in zip(used(waiting, conditioning), used(plain, conditioning), strict=True):
        assert torch.equal(ours, theirs)


def test_layer_by_layer_no_weight_stays_between_two_uses(flux, conditioning, here):
    denoiser = loading.load(flux, "cpu", options=ModelOptions(offload="sequential"))
    used(denoiser, conditioning)
    for model in (denoiser._core, denoiser._vae.model):
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_in_groups_each_block_comes_and_goes(flux, conditioning, here, monkeypatch):
    from diffusers.hooks.group_offloading import ModuleGroup

    moves = []
    for name in ("onload_", "offload_"):
        monkeypatch.setattr(ModuleGroup, name, lambda self, name=name: moves.append(name))
    denoiser = loading.load(flux, "cpu", options=ModelOptions(offload="group"))
    moves.clear()
    denoiser.predict(latents(denoiser, H, W), 0.5, conditioning)
    blocks = 1 + 1
    assert moves.count("onload_") > blocks  # and what is no block
    assert moves.count("offload_") >= blocks


def test_whole_models_take_turns(flux, conditioning, here):
    denoiser = loading.load(flux, "cpu", options=ModelOptions(offload="model"))
    core, vae = denoiser._core, denoiser._vae.model
    assert core._hf_hook.prev_module_hook.model is vae
    assert vae._hf_hook.prev_module_hook.model is core
    seen = []
    for name, model in (("core", core), ("vae", vae)):
        hook, once = model._hf_hook, model._hf_hook.pre_forward
        hook.pre_forward = lambda *a, name=name, once=once, **k: seen.append(name) or once(*a, **k)
    used(denoiser, conditioning)
    assert seen == ["vae", "core", "vae", "core", "vae"]


def test_weights_that_came_in_inference_mode_can_take_part_in_a_gradient(flux, here, monkeypatch):
    vae = (denoiser := loading.load(flux, "cpu", options=ModelOptions(offload="model")))._vae.model
    moved = []
    monkeypatch.setattr(vae, "to", lambda device: moved.append(torch.is_inference_mode_enabled()))
    monkeypatch.setattr(vae._hf_hook, "execution_device", torch.device("meta"))  # where it is not
    with torch.inference_mode():
        denoiser.encode(torch.rand(1, 3, 32, 32))
    assert moved == [False]


@pytest.mark.parametrize("how", ["group", "sequential"])
def test_text_encoders_wait_as_well_and_say_the_same(flux, sdxl, here, how):
    for folder in (flux, sdxl):
        plain = loading.encode_text(folder, "a red fox", "cpu")
        options = ModelOptions(offload=how)
        waiting = loading.encode_texts(folder, ["a red fox"], "cpu", options=options)["a red fox"]
        assert all(torch.equal(waiting[name], plain[name]) for name in plain)


@pytest.mark.parametrize("how", ["model", "group", "sequential"])
def test_offloading_on_a_cpu_is_refused(flux, how):
    assert f"--offload {how}" in refused(model=flux, offload=how)
    with pytest.raises(UsageError, match="--offload"):
        loading.load(flux, "cpu", options=ModelOptions(offload=how))


@pytest.mark.parametrize(
    ("method", "how"), [("nf4", "group"), ("int8", "sequential"), ("torchao-fp8", "sequential")]
)
def test_quantised_weights_that_cannot_be_moved_piece_by_piece_are_refused(flux, method, how):
    assert "piece by piece" in refused(
        model=flux, quantize=method, offload=how, address="auto", device="auto"
    )


# The VAE


def shapes_seen(model, use):
    """Shapes of what goes into a module while it is used."""
    seen = []
    hook = model.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    try:
        return use(), seen
    finally:
        hook.remove()


def test_tiles_of_a_batch_pass_the_vae_one_by_one_and_are_as_they_are_alone(plain):
    z = latents(plain, H, W, batch=3)
    made, seen = shapes_seen(plain._vae.model.decoder, lambda: plain.decode(z))
    assert [shape[0] for shape in seen] == [1, 1, 1]
    assert torch.equal(made, torch.cat([plain.decode(each[None]) for each in z]))
    pixels = torch.rand(2, 3, 32, 32)
    assert [s[0] for s in shapes_seen(plain._vae.model.encoder, lambda: plain.encode(pixels))[1]] == [1, 1]


def test_the_vae_works_in_windows_from_the_start(flux, plain):
    config = UpscaleConfig.parse({"model": flux, "device": "cpu", "vae_tile": 64, "address": "none"})
    denoiser = replica_spec(config, resolve(config)).denoiser()
    z = latents(plain, 16, 24)
    made, seen = shapes_seen(denoiser._vae.model.decoder, lambda: denoiser.decode(z))
    assert len(seen) > 1
    assert max(max(shape[-2:]) for shape in seen) == 64 // 8
    whole = plain.decode(z)
    assert made.shape == whole.shape
    assert not torch.equal(made, whole)
    assert denoiser.encode(torch.rand(1, 3, 128, 192)).shape == z.shape


@pytest.mark.parametrize(
    ("side", "words"), [(72, "multiple of 32"), (128, "nothing to act on"), (4096, "leave it out")]
)
def test_windows_that_do_not_fit_are_refused(flux, side, words):
    assert words in refused(model=flux, vae_tile=side, tile=128)


# Models that have no use for it


@pytest.mark.parametrize(
    "options", [{"quantize": "torchao-int8"}, {"offload": "model"}, {"vae_tile": 64}, {"dtype": "fp8"}]
)
@pytest.mark.parametrize("model", ["bundled", "none"])
def test_the_bundled_model_and_none_refuse_what_they_have_no_use_for(model, options):
    assert f"--{next(iter(options)).replace('_', '-')}" in refused(model=model, **options)


def test_the_bundled_model_has_the_type_of_its_transformer():
    made = loading.load("bundled", "cpu", "transformer=bf16")
    assert made._transformer.dtype == torch.bfloat16
    assert "no vae" in refused(model="bundled", dtype="vae=bf16")


# What pixels depend on


def test_pixels_depend_on_types_quantisation_and_windows_and_not_on_offloading(flux):
    from dino_ray import identity

    def of(**options):
        config = UpscaleConfig.parse({"model": flux, "address": "auto", "tile": 128, **options})
        import numpy as np

        return identity.of_pixels(np.zeros((4, 4, 3), np.uint8), config, resolve(config), 8, False)

    plain = of()
    assert json.dumps(plain)
    for options in ({"dtype": "vae=fp32"}, {"quantize": "nf4"}, {"vae_tile": 64}):
        assert of(**options) != plain
    assert of(offload="group") == plain


def test_the_doctor_says_which_quantisers_are_at_hand(monkeypatch):
    from dino_ray import doctor

    assert "torchao-int8, torchao-fp8" in doctor._quantizers()
    assert torch.cuda.is_available() or "bitsandbytes needs a CUDA device" in doctor._quantizers()
    monkeypatch.setattr(storage, "find_spec", lambda name: None)
    assert "torchao is not installed" in doctor._quantizers()


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["nf4", "int8", *WEIGHT_ONLY])
def test_every_quantiser_runs_on_a_gpu(tmp_path, method):
    folder = str(make_tiny_flux(tmp_path / "flux"))
    text = loading.encode_texts(folder, ["a"], "cuda", options=ModelOptions(quantize=method))["a"]
    given = Conditioning(text=text)
    plain = loading.load(folder, "cuda")
    models = loading.load(folder, "cuda", options=ModelOptions(quantize=method))
    assert size(models._core) < size(plain._core)
    x = latents(plain, H, W).cuda()
    off = (models.predict(x, 0.5, given) - plain.predict(x, 0.5, given)).abs().max().item()
    assert 0 < off < 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["model", "group", "sequential"])
def test_offloaded_weights_leave_the_gpu_and_change_no_bit(tmp_path, how):
    folder = str(make_tiny_flux(tmp_path / "flux"))
    given = Conditioning(text=loading.encode_text(folder, "a", "cuda"))
    plain = used(loading.load(folder, "cuda"), given)
    waiting = loading.load(folder, "cuda", options=ModelOptions(offload=how))
    for ours, theirs in zip(used(waiting, given), plain, strict=True):
        assert torch.equal(ours, theirs)
    on_gpu = {parameter.device.type for parameter in waiting._core.parameters()}
    assert "cuda" not in on_gpu  # decoding came last
    waiting.predict(latents(waiting, H, W).cuda(), 0.5, given)
    assert how != "model" or next(waiting._vae.model.parameters()).device.type == "cpu"
