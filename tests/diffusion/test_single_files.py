"""Single files of weights: what they are told to hold, what they lack and get elsewhere, and what is made of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from single_files import (
    header_only,
    original_checkpoint,
    original_flux2,
    original_unet,
    original_vae,
    original_z_image,
    save,
    save_gguf,
    weights,
)
from tiny import make_tiny_flux
from tiny_flows import make_tiny
from tiny_qwen_image import make_tiny_qwen_image
from tiny_stable_diffusion import make_tiny_stable_diffusion
from tiny_z_image import make_tiny_z_image

from dino_ray.diffusion import checkpoint, loading, model_files
from dino_ray.diffusion.denoiser import Conditioning
from dino_ray.diffusion.model_options import ModelOptions
from dino_ray.errors import JobError, UsageError


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return make_tiny_stable_diffusion(tmp_path_factory.mktemp("sd") / "sd", "sd")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return make_tiny_stable_diffusion(tmp_path_factory.mktemp("sdxl") / "sdxl", "sdxl")


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return make_tiny_flux(tmp_path_factory.mktemp("flux") / "flux", "dev")


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def assert_same_weights(ours, theirs):
    for part in (lambda model: model._core, lambda model: model._vae.model):
        mine, other = part(ours).state_dict(), part(theirs).state_dict()
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in other)


# What a file holds

UNET, COND = "model.diffusion_model.", "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"


def unet(width, label=None, inputs=4):
    shapes = {"input_blocks.0.0.weight": (320, inputs, 3, 3), COND: (640, width)}
    return shapes | ({} if label is None else {"label_emb.0.0.weight": (1280, label)})


def flux_original(inputs=64, guided=True, width=3072):
    shapes = {"img_in.weight": (width, inputs), "double_blocks.0.img_attn.norm.key_norm.scale": (128,)}
    return shapes | ({"guidance_in.in_layer.bias": (width,)} if guided else {})


def flux_diffusers(guided=True):
    shapes = {"x_embedder.weight": (3072, 64), "single_transformer_blocks.0.proj_mlp.weight": (12288, 8)}
    guidance = {"time_text_embed.guidance_embedder.linear_1.weight": (3072, 256)}
    return shapes | (guidance if guided else {})


def sd3(places, width):
    return {"joint_blocks.0.x_block.attn.qkv.weight": (3 * width, 8), "pos_embed": (1, places, width)}


def flux2(width):
    return {"img_in.weight": (width, 128), "single_stream_modulation.lin.weight": (8, 8)}


QWEN = {"transformer_blocks.0.img_mod.1.weight": (18432, 8), "img_in.weight": (3072, 64)}
Z = {"noise_refiner.0.attention.qkv.weight": (8, 8), "cap_embedder.1.weight": (3840, 2560)}
SD_DIFFUSERS = {
    "conv_in.weight": (320, 4, 3, 3),
    "down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 768),
}


@pytest.mark.parametrize(
    ("name", "shapes", "title", "model"),
    [
        ("a", unet(768), "Stable Diffusion 1", "sd15"),
        ("a", SD_DIFFUSERS, "Stable Diffusion 1", "sd15"),
        ("a", unet(1024), "Stable Diffusion 2", "sd21"),
        ("a", unet(2048, 2816), "Stable Diffusion XL", "sdxl"),
        ("a", unet(1280, 2560), "Stable Diffusion XL refiner", "sdxl-refiner"),
        ("a", flux_original(), "FLUX.1 dev", "flux-dev"),
        ("a", flux_original(guided=False), "FLUX.1 schnell", "flux-schnell"),
        ("flux1-dev-kontext_fp8", flux_original(), "FLUX.1 Kontext", "flux-kontext"),
        ("a", flux_diffusers(), "FLUX.1 dev", "flux-dev"),
        ("a", flux_diffusers(guided=False), "FLUX.1 schnell", "flux-schnell"),
        ("a", flux_original(width=64), "FLUX.1", None),
        ("a", sd3(36864, 1536), "Stable Diffusion 3", "sd3-medium"),
        ("a", sd3(147456, 1536), "Stable Diffusion 3", "sd35-medium"),
        ("a", sd3(36864, 2432), "Stable Diffusion 3", "sd35-large"),
        ("a", flux2(6144), "FLUX.2", "flux2-dev"),
        ("a", flux2(3072), "FLUX.2", "flux2-klein"),
        ("flux-2-klein-base-4b", flux2(3072), "FLUX.2", None),
        ("a", flux2(4096), "FLUX.2", "flux2-klein-9b"),
        ("a", QWEN, "Qwen-Image", "qwen-image"),
        ("qwen_image_edit_2509_bf16", QWEN, "Qwen-Image", "qwen-image-edit-2509"),
        ("qwen_image_edit_fp8", QWEN, "Qwen-Image", "qwen-image-edit"),
        ("z_image_turbo", Z, "Z-Image", "z-image-turbo"),
    ],
)
@pytest.mark.parametrize("prefix", ["", UNET])
def test_a_model_is_told_by_its_files_header(tmp_path, name, shapes, title, model, prefix):
    file = header_only(
        tmp_path / f"{name}.safetensors", {prefix + key: shape for key, shape in shapes.items()}
    )
    held = checkpoint.contents(file)
    assert (held.title, held.model) == (title, model)
    assert held.parts == {held.core: prefix}
    assert held.core == ("unet" if "Diffusion" in title and "3" not in title else "transformer")


def test_a_file_that_names_itself_is_believed(tmp_path):
    file = header_only(
        tmp_path / "mine.safetensors", flux_original(), **{"modelspec.title": "FLUX.1 Kontext tune"}
    )
    assert checkpoint.contents(file).model == "flux-kontext"


def test_whole_checkpoints_hold_a_vae_and_text_encoders_too(tmp_path):
    clip, t5 = "text_encoders.clip_l.transformer.", "text_encoders.t5xxl.transformer."
    more = {"vae.decoder.conv_in.weight": (8, 8), f"{clip}x": (1,), f"{t5}y": (1,)}
    whole = {UNET + key: shape for key, shape in flux_original().items()} | more
    parts = {"transformer": UNET, "vae": "vae.", "text_encoder": clip, "text_encoder_2": t5}
    assert checkpoint.contents(header_only(tmp_path / "flux.safetensors", whole)).parts == parts
    whole = {UNET + key: shape for key, shape in sd3(36864, 1536).items()} | more
    assert checkpoint.contents(header_only(tmp_path / "sd3.safetensors", whole)).parts["text_encoder_3"] == t5


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (unet(768, inputs=9), "inpainting"),
        (flux_original(inputs=384), "fill and control"),
        (flux_original() | {"distilled_guidance_layer.in_proj.bias": (8,)}, "Chroma"),
        ({"transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight": (8, 8)}, "LoRA"),
        (flux_original() | {"double_blocks.0.img_mlp.0.weight.absmax": (8,)}, "bitsandbytes"),
        ({"some.weight": (8, 8)}, "no model that is known"),
    ],
)
def test_what_cannot_be_driven_is_named(tmp_path, shapes, says):
    file = header_only(tmp_path / "x.safetensors", shapes)
    with pytest.raises(UsageError, match=says) as error:
        loading.describe(str(file))
    assert str(file) in one_line(error)


def test_velocity_is_told_by_marks_metadata_or_one_bias(tmp_path):
    def predicts(name, tensors, **metadata):
        return checkpoint.contents(save(tmp_path / name, tensors, **metadata)).scheduler

    wide = {name: torch.zeros(shape) for name, shape in unet(1024).items()}
    bias = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    noisy = torch.randn(320, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for spread, says in ((0.2, "v_prediction"), (0.05, "epsilon")):
            made = predicts(f"{dtype}{spread}.safetensors", wide | {bias: (noisy * spread).to(dtype)})
            assert made == {"prediction_type": says}
    xl = {name: torch.zeros(shape) for name, shape in unet(2048, 2816).items()}
    marks = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    both = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    assert predicts("marked.safetensors", xl | marks) == both
    said = predicts("said.safetensors", xl, **{"modelspec.prediction_type": "v"})
    assert said == {"prediction_type": "v_prediction"}
    assert predicts("plain.safetensors", xl) == {}


def test_describing_a_file_imports_neither_torch_nor_diffusers(tmp_path, sd, flux):
    files = [
        save(tmp_path / "sd.safetensors", original_checkpoint(sd)),
        save_gguf(tmp_path / "flux.gguf", weights(flux, "transformer")),
    ]
    program = (
        "import sys; from dino_ray.diffusion import loading, model_options; "
        "pairs = zip(sys.argv[1::2], sys.argv[2::2]); "
        "[loading.describe(f, options=model_options.ModelOptions(components=c)) for f, c in pairs]; "
        "print([name for name in ('torch', 'diffusers', 'transformers', 'ray') if name in sys.modules])"
    )
    arguments = [str(files[0]), str(sd), str(files[1]), str(flux)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# Loading


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_whole_checkpoint_is_the_model_that_it_was_made_of(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    file = save(tmp_path / "my-tune.safetensors", original_checkpoint(folder))
    # Tokenizers and configuration alone come from elsewhere.
    lean = tmp_path / "components"
    shutil.copytree(folder, lean, ignore=shutil.ignore_patterns("*.safetensors"))
    options = ModelOptions(components=str(lean))
    description = loading.describe(str(file), options=options)
    assert description.name == "my-tune"
    ours = loading.load(str(file), "cpu", "float32", options=options)
    assert ours.description == description
    assert_same_weights(ours, loading.load(str(folder), "cpu", "float32"))
    text = loading.encode_texts(str(file), ["a fox"], "cpu", options=options)["a fox"]
    expected = loading.encode_text(str(folder), "a fox", "cpu")
    assert text.keys() == expected.keys()
    assert all(torch.equal(text[name], expected[name]) for name in expected)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_core_alone_gets_the_rest_from_its_components(sd, tmp_path, prefix, layout):
    tensors = weights(sd, "unet")
    tensors = original_unet(tensors) if layout == "original" else tensors
    file = save(tmp_path / "unet.safetensors", {prefix + name: value * 2 for name, value in tensors.items()})
    options = ModelOptions(components=str(sd))
    ours, plain = loading.load(str(file), "cpu", "float32", options=options), loading.load(str(sd), "cpu")
    mine, theirs = ours._core.state_dict(), plain._core.state_dict()
    assert all(torch.equal(mine[name], 2 * theirs[name]) for name in theirs)
    mine, theirs = ours._vae.model.state_dict(), plain._vae.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert loading.encode_texts(str(file), ["a fox"], "cpu", options=options)["a fox"]


@pytest.mark.parametrize(("dtype", "near"), [("float32", 0.02), ("bfloat16", 0.1)])
def test_a_gguf_stays_quantised_and_predicts_nearly_as_its_source(flux, tmp_path, dtype, near):
    file = save_gguf(tmp_path / "flux-Q8_0.gguf", weights(flux, "transformer"))
    options = ModelOptions(components=str(flux))
    ours, source = loading.load(str(file), "cpu", dtype, options=options), loading.load(str(flux), "cpu")
    assert ours._core.x_embedder.weight.dtype == torch.uint8
    text = loading.encode_texts(str(file), ["a fox"], "cpu", options=options)["a fox"]
    x = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    made, expected = (model.predict(x, 0.5, Conditioning(text=text)) for model in (ours, source))
    assert 0 < (made - expected).abs().max() < near
    assert (expected - x).abs().max() > 10 * near or dtype == "bfloat16"


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
def test_8_bit_weights_with_a_scale_are_multiplied_by_it(flux, tmp_path, scale):
    tensors = weights(flux, "transformer")
    name = "x_embedder.weight"
    factor = tensors[name].abs().max() / 448
    scaled = tensors | {
        name: (tensors[name] / factor).to(torch.float8_e4m3fn),
        f"x_embedder.{scale}": factor,
        "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn),
    }
    file = save(tmp_path / "flux-fp8.safetensors", scaled)
    made = loading.load(str(file), "cpu", "float32", options=ModelOptions(components=str(flux)))
    found = made._core.x_embedder.weight
    assert 0 < (found - tensors[name]).abs().max() < tensors[name].abs().max() / 16


@pytest.mark.parametrize("shape", ["file", "file-in-diffusers-layout", "folder", "model"])
def test_another_vae_takes_the_place_of_the_models_own(sd, tmp_path, shape):
    tensors = {name: value * 0.5 for name, value in weights(sd, "vae").items()}
    place = tmp_path / "other"
    shutil.copytree(sd / "vae", place / "vae")
    save(place / "vae" / "diffusion_pytorch_model.safetensors", tensors, format="pt")
    if shape == "model":
        (place / "model_index.json").write_text((sd / "model_index.json").read_text())
    name = {
        "file": lambda: save(tmp_path / "vae.safetensors", original_vae(tensors)),
        "file-in-diffusers-layout": lambda: save(tmp_path / "vae.safetensors", tensors),
        "folder": lambda: place / "vae",
        "model": lambda: place,
    }[shape]()
    options = ModelOptions(vae=str(name))
    loading.describe(str(sd), options=options)
    made = loading.load(str(sd), "cpu", "float32", options=options)._vae.model.state_dict()
    assert all(torch.equal(made[key], tensors[key]) for key in tensors)


def test_a_vaes_own_configuration_goes_with_it(sd, tmp_path):
    shutil.copytree(sd / "vae", tmp_path / "vae")
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    made = loading.load(str(sd), "cpu", options=ModelOptions(vae=str(tmp_path / "vae")))
    assert made._vae._factor == 0.5


FLOWS = {
    "sd3": lambda folder: make_tiny(folder, "sd3"),
    "flux2-dev": lambda folder: make_tiny(folder, "flux2-dev"),
    "qwen-image": lambda folder: make_tiny_qwen_image(folder),
    "z-image": lambda folder: make_tiny_z_image(folder),
}


@pytest.mark.parametrize("kind", FLOWS)
def test_other_families_transformers_are_read_from_a_single_file(kind, tmp_path):
    folder = FLOWS[kind](tmp_path / kind)
    tensors = weights(folder, "transformer")
    options = ModelOptions(components=str(folder))
    theirs = loading.load(str(folder), "cpu", "float32")
    authors = {"flux2-dev": original_flux2, "z-image": original_z_image}.get(kind, lambda named: named)
    for named in (tensors, {UNET + name: value for name, value in authors(tensors).items()}):
        file = save(tmp_path / "x.safetensors", named)
        loading.describe(str(file), options=options)
        assert_same_weights(loading.load(str(file), "cpu", "float32", options=options), theirs)


# Refusals


def test_a_truncated_file_is_refused(sd, tmp_path):
    file = save(tmp_path / "x.safetensors", original_checkpoint(sd))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UsageError, match="get it again"):
        loading.describe(str(file), options=ModelOptions(components=str(sd)))
    gguf = save_gguf(tmp_path / "x.gguf", {"a": torch.zeros(64, 64)})
    gguf.write_bytes(gguf.read_bytes()[:100])
    with pytest.raises(UsageError, match="get it again"):
        loading.describe(str(gguf))


@pytest.mark.parametrize(
    "lost",
    [
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    ],
)
def test_a_file_that_lacks_a_tensor_fails_and_none_is_made_up(sd, tmp_path, lost):
    tensors = original_checkpoint(sd)
    del tensors[lost]
    file, options = save(tmp_path / "x.safetensors", tensors), ModelOptions(components=str(sd))

    def use():
        if lost.startswith("model."):
            loading.load(str(file), "cpu", options=options)
        else:
            loading.encode_texts(str(file), [""], "cpu", options=options)

    with pytest.raises(JobError, match="weights lack") as error:
        use()
    assert str(file) in one_line(error)


def test_components_of_another_kind_are_refused(sd, flux, tmp_path):
    file = save(tmp_path / "x.safetensors", weights(flux, "transformer"))
    with pytest.raises(UsageError, match=r"--components .*UNet2DConditionModel.*FluxTransformer2DModel"):
        loading.describe(str(file), options=ModelOptions(components=str(sd)))


def test_a_shape_that_was_never_published_asks_for_its_components(flux, tmp_path):
    file = save(tmp_path / "x.safetensors", weights(flux, "transformer"))
    with pytest.raises(UsageError, match="--components"):
        loading.describe(str(file))


def test_components_go_with_single_files_alone(sd, flux):
    with pytest.raises(UsageError, match="--components"):
        loading.describe(str(sd), options=ModelOptions(components=str(flux)))
    for options in (ModelOptions(components=str(flux)), ModelOptions(vae=str(sd))):
        with pytest.raises(UsageError, match="bundled"):
            loading.describe("bundled", options=options)


def test_a_model_given_as_a_vae_and_a_vae_given_as_a_model_are_refused(sd, tmp_path):
    core = save(tmp_path / "unet.safetensors", weights(sd, "unet"))
    with pytest.raises(UsageError, match=r"--vae .*holds no vae"):
        loading.describe(str(sd), options=ModelOptions(vae=str(core)))
    vae = save(tmp_path / "vae.safetensors", original_vae(weights(sd, "vae")))
    for components in (None, str(sd)):
        with pytest.raises(UsageError, match="holds a VAE alone"):
            loading.describe(str(vae), options=ModelOptions(components=components))


def test_without_a_tokenizer_a_file_is_refused_before_anything_is_loaded(sd, tmp_path):
    file = save(tmp_path / "x.safetensors", original_checkpoint(sd))
    lean = tmp_path / "components"
    shutil.copytree(sd, lean, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer"))
    with pytest.raises(UsageError, match=r"tokenizer/.*--components"):
        loading.describe(str(file), options=ModelOptions(components=str(lean)))


# Pickles


class Harmless:
    """What a trainer leaves in its checkpoints besides weights."""


def test_a_pickled_file_is_refused_and_with_leave_it_is_loaded(sd, tmp_path, caplog):
    tensors = original_checkpoint(sd)
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": tensors, "global_step": 7}, file)
    with pytest.raises(UsageError, match="--allow-pickle"):
        loading.describe(str(file), options=ModelOptions(components=str(sd)))
    options = ModelOptions(components=str(sd), allow_pickle=True)
    assert loading.describe(str(file), options=options).family == "sd"
    made = loading.load(str(file), "cpu", "float32", options=options)
    assert_same_weights(made, loading.load(str(sd), "cpu", "float32"))
    assert "more than weights" not in caplog.text


def test_a_pickle_that_runs_code_is_read_with_a_warning(sd, tmp_path, caplog):
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": original_checkpoint(sd), "callbacks": Harmless()}, file)
    options = ModelOptions(components=str(sd), allow_pickle=True)
    loading.load(str(file), "cpu", options=options)
    assert "any code in it is run" in caplog.text


def test_pickled_components_of_a_folder_are_loaded_with_leave(sd, tmp_path):
    for part in ("unet", "text_encoder"):
        folder = tmp_path / part
        shutil.copytree(sd, folder)
        weights_file = next((folder / part).glob("*.safetensors"))
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(weights(sd, part), folder / part / name)
        weights_file.unlink()
        with pytest.raises(UsageError, match="--allow-pickle"):
            loading.describe(str(folder))
        options = ModelOptions(allow_pickle=True)
        loading.describe(str(folder), options=options)
        assert_same_weights(loading.load(str(folder), "cpu", options=options), loading.load(str(sd), "cpu"))
        text = loading.encode_texts(str(folder), ["a fox"], "cpu", options=options)["a fox"]
        expected = loading.encode_text(str(sd), "a fox", "cpu")
        assert torch.equal(text["prompt_embeds"], expected["prompt_embeds"])


# What it was made of


def test_all_that_weights_come_from_is_named(sd, flux, tmp_path):
    whole = save(tmp_path / "x.safetensors", original_checkpoint(sd))
    core = save(tmp_path / "y.safetensors", weights(flux, "transformer"))
    vae = tmp_path / "vae"
    shutil.copytree(flux / "vae", vae)

    def places(model, **options):
        return {
            Path(place).name
            for place in model_files.weight_places(model_files.resolve(str(model), ModelOptions(**options)))
        }

    assert places(whole, components=str(sd)) == {"x.safetensors", "sd"}  # whose tokenizer it needs
    assert places(core, components=str(flux), vae=str(vae)) == {"y.safetensors", "flux", "vae"}
    assert places(flux, vae=str(vae)) == {"flux", "vae"}


def test_a_small_decoder_is_looked_for_on_this_machine_alone(flux, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        model_files.hub,
        "snapshot",
        lambda repo, *_, cached, **__: asked.append((repo.id, cached)) or tmp_path,
    )
    file = save(tmp_path / "x.safetensors", weights(flux, "transformer"))
    found = loading.find_sketch(str(file), ModelOptions(components=str(flux)))
    assert found == "madebyollin/taef1"
    assert asked == [(found, True)]


@pytest.mark.slow
def test_fluxs_own_layout_is_read_at_its_real_width(flux, tmp_path):
    """Diffusers' converter has the width of FLUX.1 written into it: half a billion parameters are the small test."""
    from diffusers import FluxTransformer2DModel

    folder = tmp_path / "wide"
    shutil.copytree(flux, folder)
    shutil.rmtree(folder / "transformer")
    config = FluxTransformer2DModel.load_config(flux / "transformer")
    wide = dict(config) | {
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "axes_dims_rope": (16, 56, 56),
    }
    with torch.device("meta"):
        meta = FluxTransformer2DModel.from_config(wide)
    FluxTransformer2DModel.from_config(wide).to(torch.bfloat16).save_pretrained(folder / "transformer")
    assert sum(value.numel() for value in meta.parameters()) > 4e8
    tensors = weights(folder, "transformer")
    file = save(
        tmp_path / "flux.safetensors", {UNET + name: value for name, value in original_flux(tensors).items()}
    )
    made = loading.load(str(file), "cpu", "bfloat16", options=ModelOptions(components=str(folder)))
    found = made._core.state_dict()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


_FLUX_EDGES = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
               "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
               "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
               "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
               "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
               "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
               "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer"}  # fmt: skip
_FLUX_DOUBLE = {"norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin", "attn.to_out.0": "img_attn.proj",
                "attn.to_add_out": "txt_attn.proj", "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
                "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2"}  # fmt: skip
_FLUX_NORMS = {"img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
               "txt_attn.norm.query_norm": "attn.norm_added_q",
               "txt_attn.norm.key_norm": "attn.norm_added_k"}  # fmt: skip


def original_flux(tensors):
    """One double and one single block, as Black Forest Labs names them."""
    made = {}
    for end in ("weight", "bias"):
        for theirs, ours in _FLUX_EDGES.items():
            made[f"{ours}.{end}"] = tensors[f"{theirs}.{end}"]
        scale, shift = tensors[f"norm_out.linear.{end}"].chunk(2)
        made[f"final_layer.adaLN_modulation.1.{end}"] = torch.cat([shift, scale])
        double, single = "transformer_blocks.0.", "single_transformer_blocks.0."
        for theirs, ours in _FLUX_DOUBLE.items():
            made[f"double_blocks.0.{ours}.{end}"] = tensors[f"{double}{theirs}.{end}"]
        for side, names in (
            ("img", ("to_q", "to_k", "to_v")),
            ("txt", ("add_q_proj", "add_k_proj", "add_v_proj")),
        ):
            parts = [tensors[f"{double}attn.{name}.{end}"] for name in names]
            made[f"double_blocks.0.{side}_attn.qkv.{end}"] = torch.cat(parts)
        parts = [
            tensors[f"{single}{name}.{end}"] for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        ]
        made[f"single_blocks.0.linear1.{end}"] = torch.cat(parts)
        made[f"single_blocks.0.linear2.{end}"] = tensors[f"{single}proj_out.{end}"]
        made[f"single_blocks.0.modulation.lin.{end}"] = tensors[f"{single}norm.linear.{end}"]
    for ours, theirs in _FLUX_NORMS.items():
        made[f"double_blocks.0.{ours}.scale"] = tensors[f"{double}{theirs}.weight"]
    for ours, theirs in (("query_norm", "norm_q"), ("key_norm", "norm_k")):
        made[f"single_blocks.0.norm.{ours}.scale"] = tensors[f"{single}attn.{theirs}.weight"]
    return made


# Kept in less memory


def test_a_single_file_is_quantised_and_kept_in_8_bits_as_a_folder_is(flux, tmp_path):
    file = save(tmp_path / "x.safetensors", weights(flux, "transformer"))
    text = loading.encode_text(str(flux), "a fox", "cpu")
    x = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(1))

    def predicted(model, dtype="float32", **options):
        loaded = loading.load(str(model), "cpu", dtype, options=ModelOptions(**options))
        return loaded.predict(x, 0.5, Conditioning(text=text))

    plain = predicted(flux)
    for dtype, more in (("float32", {"quantize": "torchao-int8"}), ("transformer=fp8,default=fp32", {})):
        made = predicted(file, dtype, components=str(flux), **more)
        assert torch.equal(made, predicted(flux, dtype, **more))
        assert not torch.equal(made, plain)


def test_a_gguf_is_not_quantised_again(flux, tmp_path):
    from dino_ray.diffusion import keeping

    file = save_gguf(tmp_path / "x.gguf", weights(flux, "transformer"))
    for dtype, more, says in (
        ("auto", {"quantize": "torchao-int8"}, "--quantize torchao-int8.*gguf"),
        ("fp8", {}, "--dtype fp8.*gguf"),
        ("auto", {"offload": "sequential"}, "--offload sequential.*gguf"),
    ):
        with pytest.raises(UsageError, match=says):
            keeping.check(str(file), dtype, ModelOptions(components=str(flux), **more), 1024, None)


def test_what_is_quantised_from_a_folder_only_is_said_before_loading(flux, tmp_path):
    from dino_ray.diffusion import keeping

    options = ModelOptions(components=str(flux), quantize="nf4")
    file = save(tmp_path / "x.safetensors", weights(flux, "transformer"))
    with pytest.raises(UsageError, match=r"--quantize nf4.*bitsandbytes.*torchao-int8"):
        keeping.check(str(file), "auto", options, 1024, None)


def test_text_encoders_in_a_single_file_are_not_quantised(sd, tmp_path, monkeypatch):
    from dino_ray.diffusion import keeping, storage

    monkeypatch.setattr(storage, "SMALL_ENCODERS", ())
    file = save(tmp_path / "x.safetensors", original_checkpoint(sd))
    options = ModelOptions(components=str(sd), quantize="torchao-int8")
    with pytest.raises(UsageError, match="--quantize torchao-int8: text_encoder lies in a single file"):
        keeping.check(str(file), "auto", options, 512, None)
