"""LoRAs against the stock pipelines' own loading, on tiny models and LoRAs of the real formats."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from parity import refined
from safetensors.torch import load_file, save_file
from tiny import make_tiny_flux
from tiny_flows import make_tiny
from tiny_lora import make_kohya_lora, make_lora
from tiny_qwen_image import make_tiny_qwen_image
from tiny_stable_diffusion import make_tiny_stable_diffusion
from tiny_z_image import make_tiny_z_image

from dino_ray import hub
from dino_ray.config import UpscaleConfig
from dino_ray.diffusion import loading, lora_file
from dino_ray.diffusion.denoiser import Conditioning
from dino_ray.diffusion.families import FAMILIES
from dino_ray.diffusion.model_options import ModelOptions
from dino_ray.errors import JobError, UsageError

KINDS = ("flux", "sd", "sdxl")
PROMPT = "a red fox"
WEIGHTS = {"peft": 0.7, "kohya": -0.4}
H, W = 16, 24  # latent


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def options(*loras) -> ModelOptions:
    return ModelOptions(loras=lora_file.parse([str(lora) for lora in loras]))


@pytest.fixture(scope="module", params=KINDS)
def world(request, tmp_path_factory):
    """A model, its stock pipeline and two LoRAs for it."""
    import diffusers

    folder = tmp_path_factory.mktemp("lora")
    kind = request.param
    model = (
        make_tiny_flux(folder / kind) if kind == "flux" else make_tiny_stable_diffusion(folder / kind, kind)
    )
    stock = diffusers.DiffusionPipeline.from_pretrained(model)
    files = {
        "peft": make_lora(stock, folder / "peft.safetensors"),
        "kohya": make_kohya_lora(stock, folder / "kohya.safetensors"),
    }
    return SimpleNamespace(kind=kind, model=str(model), stock=stock, files=files)


def weighed(world, factor=1.0) -> list[str]:
    return [f"{world.files[name]}:{factor * weight}" for name, weight in WEIGHTS.items()]


@pytest.fixture(scope="module")
def with_both(world):
    """Our model with both LoRAs, what it is told, and the stock pipeline with them."""
    chosen = options(*weighed(world))
    denoiser = loading.load(world.model, "cpu", "float32", options=chosen)
    texts = loading.encode_texts(world.model, [PROMPT], "cpu", options=chosen)
    for name, file in world.files.items():
        world.stock.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    world.stock.set_adapters(list(WEIGHTS), list(WEIGHTS.values()))
    return denoiser, texts[PROMPT]


def test_prompts_are_read_as_the_stock_pipeline_with_both_reads_them(world, with_both):
    _, text = with_both
    plain = loading.encode_text(world.model, PROMPT, "cpu")
    if world.kind == "flux":
        embeds, pooled, _ = world.stock.encode_prompt(PROMPT, PROMPT, max_sequence_length=256)
    else:
        made = world.stock.encode_prompt(
            PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        embeds, pooled = made[0], made[2] if len(made) == 4 else None
    changed = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    for name, ours in text.items():
        assert (ours - changed[name]).abs().max() < 1e-5
    name = "pooled_prompt_embeds" if world.kind == "flux" else "prompt_embeds"
    assert (text[name] - plain[name]).abs().max() > 1e-3


def test_two_weighted_loras_give_the_latents_of_the_stock_pipeline(world, with_both):
    denoiser, text = with_both
    plain = loading.load(world.model, "cpu", "float32")
    cfg = 1.0 if world.kind != "flux" else None  # one prompt shows what LoRAs do
    conditioning = Conditioning(text=text, cfg=cfg)
    ours = refined(denoiser, conditioning, 0.5, 2, H, W)[2]
    stocks = refined(loading_with(world.stock, plain), conditioning, 0.5, 2, H, W)[2]
    assert (ours - stocks).abs().max() < 1e-4
    assert (ours - refined(plain, conditioning, 0.5, 2, H, W)[2]).abs().max() > 1e-3


def loading_with(stock, denoiser):
    """Our loop, whose own parity with the stock one is shown elsewhere, over the stock pipeline's network."""
    import copy

    other = copy.copy(denoiser)
    other._core = stock.unet if hasattr(stock, "unet") else stock.transformer
    return other


def test_fused_loras_leave_the_network_as_plain_as_it_was(world, with_both):
    plain = loading.load(world.model, "cpu", "float32")
    assert [type(module) for module in with_both[0]._core.modules()] == [
        type(module) for module in plain._core.modules()
    ]


def test_every_family_says_how_its_loras_are_known():
    assert [family.name for family in FAMILIES if family.lora is None] == []


MADE = {
    **dict.fromkeys(("kontext", "klein", "sd3"), make_tiny),
    **dict.fromkeys(("qwen-image", "edit-plus"), make_tiny_qwen_image),
    "turbo": make_tiny_z_image,
}


@pytest.mark.parametrize("kind", MADE)
def test_weights_of_other_families_become_those_of_the_stock_pipeline(kind, tmp_path):
    import diffusers

    model = MADE[kind](tmp_path / kind, kind)
    without = {"edit-plus": {"processor": None}}  # which needs torchvision
    stock = diffusers.DiffusionPipeline.from_pretrained(model, **without.get(kind, {}))
    plain = {name: value.clone() for name, value in stock.transformer.state_dict().items()}
    files = [make_lora(stock, tmp_path / f"{i}.safetensors", seed=i) for i in (1, 2)]
    chosen = options(f"{files[0]}:0.7", f"{files[1]}:-0.4")
    loading.describe(str(model), options=chosen)
    ours = loading.load(str(model), "cpu", "float32", options=chosen)._core.state_dict()
    for i, file in enumerate(files):
        stock.load_lora_weights(tmp_path, weight_name=file.name, adapter_name=str(i))
    stock.set_adapters(["0", "1"], [0.7, -0.4])
    stock.fuse_lora(components=["transformer"], adapter_names=["0", "1"])
    stock.unload_lora_weights()
    theirs = stock.transformer.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() < 1e-5, name
    assert max((ours[name] - value).abs().max() for name, value in plain.items()) > 1e-2


def test_what_comfyui_names_is_what_sd_scripts_names(world, tmp_path):
    named = {
        "flux": ("lora_unet_double_blocks_0_img_attn_qkv", "diffusion_model.double_blocks.0.img_attn.qkv", 32, 96),
        "sd": ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
               "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k", 32, 32),
        "sdxl": ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
                 "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k", 64, 32),
    }  # fmt: skip
    kohya, comfy, reads, writes = named[world.kind]
    down, up = torch.randn(4, reads), torch.randn(writes, 4)
    made = []
    for layer, factors in ((kohya, ("down", "up")), (comfy, ("down", "up")), (comfy, ("A", "B"))):
        file = tmp_path / "x.safetensors"
        names = [f"{layer}.lora_{factor}.weight" for factor in factors]
        save_file(dict(zip(names, (down, up), strict=True)) | {f"{layer}.alpha": torch.tensor(2.0)}, file)
        loading.describe(world.model, options=options(file))
        made.append(loading.load(world.model, "cpu", options=options(file))._core.state_dict())
    plain = loading.load(world.model, "cpu")._core.state_dict()
    assert any((made[0][name] - plain[name]).abs().max() > 1e-2 for name in plain)
    for other in made[1:]:
        for name, value in other.items():
            assert torch.equal(value, made[0][name]), name


def test_beside_quantised_weights_they_do_the_same(tmp_path, caplog):
    import diffusers
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    from dino_ray.diffusion.lora import Loras

    model = make_tiny_flux(tmp_path / "flux")
    file = make_lora(
        diffusers.DiffusionPipeline.from_pretrained(model), tmp_path / "x.safetensors", text=False
    )
    told = {"hidden_states": torch.randn(1, 6, 64), "encoder_hidden_states": torch.randn(1, 4, 32),
            "pooled_projections": torch.randn(1, 32), "timestep": torch.tensor([0.5]),
            "img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(4, 3)}  # fmt: skip
    int8 = diffusers.TorchAoConfig(Int8WeightOnlyConfig(version=2))
    changes = []
    for config in (None, int8, "as single files are"):
        core = diffusers.FluxTransformer2DModel.from_pretrained(
            model,
            subfolder="transformer",
            quantization_config=config if config is int8 else None,
            torch_dtype=torch.float32,
        )
        if isinstance(config, str):
            quantize_(core, Int8WeightOnlyConfig(version=2))
        loras = Loras(lora_file.parse([f"{file}:0.5"]), diffusers.FluxPipeline, "transformer", core.config)
        with torch.no_grad(), caplog.at_level(logging.INFO):
            before = core(**told).sample
            loras.into("transformer", core)
            changes.append(core(**told).sample - before)
    assert "1 LoRAs are fused into FluxTransformer2DModel's weights" in caplog.text
    assert "1 LoRAs are computed beside FluxTransformer2DModel's quantised weights" in caplog.text
    plain = changes[0]
    assert plain.abs().max() > 0.1
    for quantised in changes[1:]:
        assert (plain - quantised).abs().max() < 0.1 * plain.abs().max()
    assert caplog.text.count("quantised weights") == 2


def test_weights_kept_in_fp8_are_cast_after_what_is_added_to_them(world):
    kept = {name: loading.load(world.model, "cpu", "fp8", options=chosen)._core.state_dict()
            for name, chosen in (("plain", options()), ("both", options(*weighed(world))))}  # fmt: skip
    whole = loading.load(world.model, "cpu", "float32", options=options(*weighed(world)))._core.state_dict()
    assert any(value.dtype == torch.float8_e4m3fn for value in kept["both"].values())
    moved = 0.0
    for name, value in kept["both"].items():
        torch.testing.assert_close(value.float(), whole[name].to(value.dtype).float(), rtol=0, atol=0)
        moved = max(moved, (value.float() - kept["plain"][name].float()).abs().max().item())
    assert moved > 1e-2


def test_their_order_does_not_matter_and_their_weight_does(world, with_both):
    core = with_both[0]._core
    turned = loading.load(world.model, "cpu", "float32", options=options(*weighed(world)[::-1]))._core
    half = loading.load(world.model, "cpu", "float32", options=options(*weighed(world, 0.5)))._core
    plain = loading.load(world.model, "cpu", "float32")._core
    for (name, both), other in zip(core.named_parameters(), turned.parameters(), strict=True):
        assert torch.equal(both, other), name
    moved = 0.0
    for both, some, none in zip(core.parameters(), half.parameters(), plain.parameters(), strict=True):
        assert (both - none - 2 * (some - none)).abs().max() < 1e-5
        moved = max(moved, (both - none).abs().max().item())
    assert moved > 1e-2


def test_a_lora_for_another_model_is_refused_by_its_header_with_what_it_is_for(world, tmp_path):
    for layer, width, title in (
        ("transformer.single_transformer_blocks.3.attn.to_q", 3072, "FLUX.1"),
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 768, "Stable Diffusion 1.x"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 2048, "Stable Diffusion XL"),
        ("lora_unet_double_blocks_18_img_attn_qkv", 3072, "FLUX.1"),
        ("transformer.single_transformer_blocks.3.attn.to_qkv_mlp_proj", 6144, "FLUX.2 dev"),
        ("transformer.transformer_blocks.3.attn.add_q_proj", 1536, "Stable Diffusion 3 medium"),
        ("transformer_blocks.59.img_mod.1", 3072, "Qwen-Image"),
        ("diffusion_model.layers.3.attention.to_k", 3840, "Z-Image"),
    ):
        file = tmp_path / "other.safetensors"
        save_file({f"{layer}.lora_down.weight": torch.zeros(4, width)}, file)
        with pytest.raises(UsageError) as error:
            loading.describe(world.model, options=options(file))
        assert f"is for {title}," in one_line(error)
    for file in world.files.values():
        loading.describe(world.model, options=options(file))


def test_a_lora_for_more_blocks_is_refused(tmp_path):
    model = make_tiny_flux(tmp_path / "flux")
    file = tmp_path / "more.safetensors"
    save_file({"transformer.transformer_blocks.1.attn.to_q.lora_A.weight": torch.zeros(4, 32)}, file)
    with pytest.raises(UsageError, match="more blocks"):
        loading.describe(str(model), options=options(file))


def test_weights_that_fit_no_layer_are_counted(world, tmp_path, caplog):
    file, odd = tmp_path / "partly.safetensors", world.kind == "flux"
    prefix = "transformer.transformer_blocks.0.attn.no_such" if odd else "unet.down_blocks.1.no_such"
    strange = {f"{prefix}.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"}
    weights = load_file(world.files["peft"])
    core = {name: value for name, value in weights.items() if name.startswith(("unet.", "transformer."))}
    save_file(core | strange, file)
    with caplog.at_level(logging.WARNING):
        loading.load(world.model, "cpu", options=options(file))
    assert f"2 of its {len(core) + 2} weights fit no layer" in caplog.text
    save_file(strange, file)
    with pytest.raises(JobError, match="none of its 2 weights fits a layer"):
        loading.load(world.model, "cpu", options=options(file))


def test_damaged_weights_are_said_where_they_are_loaded(world, tmp_path):
    file = tmp_path / "damaged.safetensors"
    weights = load_file(world.files["peft"])
    save_file({name: value[:, :3].contiguous() for name, value in weights.items()}, file)
    with pytest.raises(JobError, match=r"--lora .*damaged\.safetensors: can't be applied"):
        loading.load(world.model, "cpu", options=options(file))


def test_what_a_lora_option_may_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b.safetensors", "c:1.safetensors", "d.pt"):
        (tmp_path / name).touch()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x.safetensors").touch()
    here = str(tmp_path)
    parsed = lora_file.parse(["b.safetensors:0.5", "./a.safetensors", "c:1.safetensors:-2", "one:1e-1"])
    assert [(lora.location, lora.weight) for lora in parsed] == [
        (f"{here}/a.safetensors", 1.0),
        (f"{here}/b.safetensors", 0.5),
        (f"{here}/c:1.safetensors", -2.0),
        (f"{here}/one/x.safetensors", 0.1),
    ]
    assert lora_file.parse(["a.safetensors:0", "b.safetensors"]) == lora_file.parse(["b.safetensors"])
    for wrong, says in [
        ("d.pt", "can run any code"), ("e.safetensors", "no such file"), ("a.safetensors:11", "within -10 to 10"),
        ("a.safetensors:nan", "within"), (":0.5", "names no file"), (".", "name one of them: a.safetensors, b"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=says) as error:
            lora_file.parse([wrong])
        assert one_line(error).startswith("--lora")
    with pytest.raises(UsageError, match="twice"):
        lora_file.parse(["a.safetensors", "./a.safetensors:0.5"])


def test_a_bare_name_is_looked_for_among_the_users_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own, comfy = tmp_path / "own", tmp_path / "comfy"
    for folder in (own / "loras", comfy / "models" / "loras"):
        folder.mkdir(parents=True)
    (own / "loras" / "a.safetensors").touch()
    (comfy / "models" / "loras" / "a.safetensors").touch()
    (comfy / "models" / "loras" / "b.safetensors").touch()
    monkeypatch.setenv("DINO_RAY_MODELS", f"{tmp_path / 'absent'}:{own}")
    monkeypatch.setenv("COMFYUI_PATH", str(comfy))
    found = [lora.location for lora in lora_file.parse(["a:0.5", "b.safetensors"])]
    assert found == [str(comfy / "models" / "loras" / "b.safetensors"), str(own / "loras" / "a.safetensors")]
    (tmp_path / "a.safetensors").touch()
    assert lora_file.parse(["a"])[0].location == str(tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=f"looked in .*{own}/loras, {comfy}/models/loras"):
        lora_file.parse(["c"])


def test_a_lora_of_the_hub_is_found_by_its_repository_or_its_file(tmp_path, monkeypatch):
    (tmp_path / "style.safetensors").touch()
    asked = []
    monkeypatch.setattr(hub, "listing", lambda repo, patterns: frozenset({"style.safetensors"}))
    monkeypatch.setattr(
        hub, "snapshot", lambda repo, patterns, whole: asked.append((repo.id, patterns)) or tmp_path
    )
    (whole,), (named,) = (
        lora_file.parse(["some/lora:0.5"]),
        lora_file.parse(["some/lora/style.safetensors:0.5"]),
    )
    assert whole == named == lora_file.Lora("some/lora/style.safetensors", 0.5)
    assert lora_file.local_path(whole) == tmp_path / "style.safetensors"
    assert asked == [("some/lora", ["style.safetensors"])]
    two = frozenset({"a.safetensors", "b.safetensors"})
    monkeypatch.setattr(hub, "listing", lambda repo, patterns: two)
    with pytest.raises(UsageError, match=r"name one of them: a\.safetensors, b\.safetensors"):
        lora_file.parse(["some/lora"])


@pytest.mark.parametrize("spoilt", ["text", "no lora", "dora", "lokr"])
def test_what_is_no_plain_lora_is_refused_by_its_header(spoilt, tmp_path):
    model, file = make_tiny_flux(tmp_path / "flux"), tmp_path / "x.safetensors"
    layer = "transformer.transformer_blocks.0.attn.to_q"
    if spoilt == "text":
        file.write_text("<html>not found</html>")
    else:
        names = {
            "no lora": ["weight"],
            "dora": ["lora_A.weight", "lora_B.weight", "dora_scale"],
            "lokr": ["lokr_w1", "lokr_w2"],
        }[spoilt]
        save_file({f"{layer}.{name}": torch.zeros(4, 32) for name in names}, file)
    says = {"text": "can't be read", "no lora": "holds no LoRA weights"}.get(spoilt, "is no plain LoRA")
    with pytest.raises(UsageError, match=says) as error:
        loading.describe(str(model), options=options(file))
    one_line(error)


def test_models_that_take_none_refuse_one(world, tmp_path):
    from dino_ray.resolve import resolve

    file = str(world.files["peft"])
    with pytest.raises(UsageError, match=r"--lora .*bundled.* takes no LoRA"):
        resolve(UpscaleConfig(lora=(file,), model="bundled"))
    with pytest.raises(UsageError, match="--lora needs a diffusion model"):
        resolve(UpscaleConfig(lora=(file,), model="none"))


def test_a_header_is_judged_without_torch(tmp_path):
    model, file = make_tiny_flux(tmp_path / "flux"), tmp_path / "x.safetensors"
    save_file({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 32)}, file)
    program = (
        "import sys; from dino_ray.config import UpscaleConfig; from dino_ray.resolve import resolve; "
        "resolve(UpscaleConfig(model=sys.argv[1], lora=sys.argv[2:], dino_strength=0, adaptive=0, verify=False)); "
        "print([name for name in ('torch', 'diffusers', 'peft') if name in sys.modules])"
    )
    call = [sys.executable, "-c", program, str(model), str(file)]
    assert subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_resumed_job_knows_its_loras_again(world, tmp_path):
    from dino_ray import identity
    from dino_ray.resolve import resolve

    def known(*loras):
        config = UpscaleConfig(model=world.model, lora=loras)
        source = torch.zeros(8, 8, 3).numpy()
        return identity.of_pixels(source, config, resolve(config), 8, False)

    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(world.files["peft"].read_bytes())
    once = known(f"{copy}:0.5")
    assert once == known(f"{copy}:0.5")
    assert once != known(f"{copy}:0.6")
    weights = load_file(copy)
    save_file({name: value + 1 for name, value in weights.items()}, copy)
    assert once != known(f"{copy}:0.5")


def test_the_option_may_be_repeated_and_is_a_list_in_a_file(tmp_path):
    import click
    from click.testing import CliRunner

    from dino_ray.options import config_options

    seen = []

    @click.command()
    @config_options
    def command(config):
        seen.append(config.lora)

    file = tmp_path / "options.yaml"
    file.write_text("lora: [a.safetensors, 'b.safetensors:0.5']\n")
    for arguments in (["--lora", "a", "--lora", "b:2"], [], ["--config", str(file)],
                      ["--config", str(file), "--lora", "c"]):  # fmt: skip
        assert CliRunner().invoke(command, arguments).exit_code == 0
    assert seen == [("a", "b:2"), (), ("a.safetensors", "b.safetensors:0.5"), ("c",)]
    assert json.dumps(UpscaleConfig(lora=["a"]).model_dump(mode="json")["lora"]) == '["a"]'
