"""Promises of what makes a model's steps faster."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from parity import latents, refined
from tiny import make_tiny_flux
from tiny_flows import make_tiny
from tiny_qwen_image import make_tiny_qwen_image
from tiny_stable_diffusion import make_tiny_stable_diffusion

from dino_ray.config import UpscaleConfig
from dino_ray.diffusion import loading, speed
from dino_ray.diffusion.denoiser import Conditioning
from dino_ray.diffusion.model_options import ModelOptions
from dino_ray.diffusion.sampler import sample
from dino_ray.errors import UsageError
from dino_ray.resolve import resolve

STEPS = 6
"""Enough for a step cache to have something to take over."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("speed") / "flux")


@pytest.fixture(scope="module")
def text(folder: Path):
    return loading.encode_text(str(folder), "a red fox", "cpu")


def loaded(folder: Path, **options):
    return loading.load(str(folder), "cpu", "float32", options=ModelOptions(**options))


def kernels_of(denoiser) -> set[str]:
    """Names of the operations that a prediction is computed by."""
    x, facts = latents(denoiser, 8, 8), denoiser.description
    with torch.profiler.profile() as profile:
        denoiser.predict(x, 0.5, asked(facts.family, x if facts.takes_reference else None))
    return {event.key for event in profile.key_averages()}


def asked(family: str, reference=None) -> Conditioning:
    text = {"prompt_embeds": torch.full((1, 5, 96), 0.1)} if family == "flux2" else TEXT
    return Conditioning(text=text, negative=text, reference=reference)


TEXT = {"prompt_embeds": torch.full((1, 5, 32), 0.1), "pooled_prompt_embeds": torch.full((1, 32), 0.1)}


# ---- attention


def test_attention_is_computed_by_the_kernel_that_was_asked_for_and_by_no_other_models(folder: Path) -> None:
    torch_own, plain = loaded(folder), loaded(folder, attention="math")
    another = loaded(folder)
    assert "aten::_scaled_dot_product_attention_math" in kernels_of(plain)
    for other in (torch_own, another):  # one that was there before, one that came after
        assert "aten::_scaled_dot_product_attention_math" not in kernels_of(other)
    assert "aten::_scaled_dot_product_attention_math" not in kernels_of(loaded(folder, attention="sdpa"))
    made = [refined(model, Conditioning(text=TEXT), 0.5, 2, 8, 8)[2] for model in (torch_own, plain)]
    torch.testing.assert_close(*made, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["kontext", "klein", "klein-kv"])
def test_other_families_attend_by_the_kernel_that_was_asked_for(kind: str, tmp_path: Path) -> None:
    kernels = kernels_of(loaded(make_tiny(tmp_path, kind), attention="math"))
    assert "aten::_scaled_dot_product_attention_math" in kernels
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" not in kernels


def test_each_kernel_is_one_that_diffusers_has_and_each_can_be_asked_for() -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert {kernel.backend for kernel in speed.KERNELS.values()} <= {
        name.value for name in AttentionBackendName
    }
    for name in ("auto", *speed.KERNELS):
        assert UpscaleConfig.parse({"attention": name}).attention == name


@pytest.mark.parametrize(
    ("options", "device", "dtype", "message"),
    [
        ({"attention": "cudnn"}, "cpu", "auto", "--attention cudnn: needs CUDA"),
        ({"attention": "flash"}, "cuda", "float32", "--attention flash: needs --dtype bf16"),
        ({"attention": "flash"}, "cuda", "auto", "no Python module flash_attn; pip install flash-attn"),
        (
            {"attention": "sage"},
            "cuda:1",
            "bfloat16",
            "no Python module sageattention; pip install sageattention",
        ),
    ],
)
def test_a_kernel_that_this_machine_lacks_is_refused_with_what_is_missing(
    options, device, dtype, message
) -> None:
    with pytest.raises(UsageError, match=message):
        speed.check_machine(ModelOptions(**options), device, dtype)


def test_a_kernel_for_newer_gpus_is_refused_on_an_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(UsageError, match=r"--attention flash3: needs .* capability 9\.0, this one's is 8\.6"):
        speed.check_machine(ModelOptions(attention="flash3"), "cuda", "auto")
    speed.check_machine(ModelOptions(attention="flash"), "cuda", "auto")


def test_a_kernel_that_takes_no_mask_is_refused_where_a_mask_is_needed(folder: Path) -> None:
    from dataclasses import replace

    from dino_ray.diffusion.families import FLUX, STABLE_DIFFUSION

    flash = ModelOptions(attention="flash")
    speed.check_model("x", FLUX, flash, adapter=False)
    with pytest.raises(UsageError, match="--attention flash: takes no mask, and --dino-adapter"):
        speed.check_model("x", FLUX, flash, adapter=True)
    with pytest.raises(UsageError, match="masks its prompt's padding"):
        speed.check_model("x", replace(FLUX, attention="masked"), flash, adapter=False)
    speed.check_model("x", replace(FLUX, attention="masked"), ModelOptions(attention="cudnn"), adapter=True)
    with pytest.raises(UsageError, match=r"--attention sdpa: .* its own way"):
        speed.check_model("x", STABLE_DIFFUSION, ModelOptions(attention="sdpa"), adapter=False)


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(speed.KERNELS))
def test_every_kernel_that_a_gpu_has_makes_the_same_latents(name: str, folder: Path) -> None:
    try:
        model = loading.load(str(folder), "cuda", "bfloat16", options=ModelOptions(attention=name))
    except UsageError as error:
        pytest.skip(str(error))
    plain = loading.load(str(folder), "cuda", "bfloat16")
    start, sigmas = latents(plain, 8, 8).cuda(), plain.sigmas(0.5, 2, (8, 8))
    made = [sample(each, start, sigmas, Conditioning(text=TEXT)) for each in (plain, model)]
    torch.testing.assert_close(*made, rtol=0, atol=0.05)


# ---- compilation


def counted() -> dict[str, int]:
    from torch._dynamo.utils import counters

    return dict(counters["stats"])


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Traces as any compiler, and makes no kernels, which would take half a minute."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(speed, "COMPILER", "eager")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    yield
    torch._dynamo.reset()


def test_blocks_are_compiled_once_for_all_sizes_and_make_the_same_latents(
    compiler, folder: Path, text, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditioning = Conditioning(text=text)
    compiled, plain = loaded(folder, compile=True), loaded(folder)
    before = counted().get("unique_graphs", 0)  # of seeing whether this machine can
    made = [refined(model, conditioning, 0.5, 2, 8, 8)[2] for model in (compiled, plain)]
    torch.testing.assert_close(*made, rtol=0, atol=1e-4)
    assert counted()["unique_graphs"] - before == 2  # a double block and a single one
    for batch in (3, 1):
        refined(compiled, conditioning, 0.5, 1, 8, 8, batch)
    settled = counted()["unique_graphs"]
    for batch in (5, 2, 1):
        refined(compiled, conditioning, 0.5, 1, 8, 8, batch)
    assert counted()["unique_graphs"] == settled


def test_a_compiled_model_skips_blocks_too_without_being_compiled_again(compiler, folder: Path, text) -> None:
    conditioning = Conditioning(text=text)
    compiled, plain = (loaded(folder, compile=on, step_cache=1.0) for on in (True, False))
    before = counted().get("unique_graphs", 0)
    made = [refined(model, conditioning, 0.5, STEPS, 8, 8)[2] for model in (compiled, plain)]
    torch.testing.assert_close(*made, rtol=0, atol=1e-4)
    assert counted()["unique_graphs"] - before == 2


def test_a_network_that_names_no_blocks_is_compiled_whole(compiler, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path, "sd3.5")
    compiled, plain = loaded(folder, compile=True), loaded(folder)
    before = counted().get("calls_captured", 0)
    text = {"prompt_embeds": torch.full((1, 5, 96), 0.1), "pooled_prompt_embeds": torch.full((1, 64), 0.1)}
    x = latents(plain, 8, 8)
    made = [each.predict(x, 0.5, Conditioning(text=text, negative=text)) for each in (compiled, plain)]
    torch.testing.assert_close(*made, rtol=0, atol=1e-4)
    assert counted()["calls_captured"] > before


def test_kernels_are_kept_for_the_user_unless_somebody_says_where(
    compiler, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    loaded(folder, compile=True)
    assert cache_dir() == str(tmp_path / "own")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # as torch does by itself
    loaded(folder, compile=True)
    assert cache_dir() == str(tmp_path / "home" / "dino-ray" / "kernels")


def test_blocks_kept_in_eight_bits_are_compiled_too(compiler, folder: Path, text) -> None:
    made = [
        refined(
            loading.load(str(folder), "cpu", "transformer=fp8,vae=fp32", options=ModelOptions(compile=on)),
            Conditioning(text=text),
            *(0.5, 1, 8, 8),
        )[2]
        for on in (True, False)
    ]
    torch.testing.assert_close(*made, rtol=0, atol=0.02)


@pytest.mark.slow
def test_compiled_kernels_make_the_same_latents_and_are_kept_on_disk(
    folder: Path, text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch._dynamo.reset()
    compiled, plain = loaded(folder, compile=True), loaded(folder)
    made = [refined(model, Conditioning(text=text), 0.5, 2, 8, 8)[2] for model in (compiled, plain)]
    torch.testing.assert_close(*made, rtol=0, atol=1e-4)
    assert len(list((tmp_path / "dino-ray" / "kernels").rglob("*.so"))) >= 2
    torch._dynamo.reset()


def test_a_machine_that_cannot_compile_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"--compile: needs a C compiler \(no-such-compiler\)"):
        resolve(UpscaleConfig(model=str(folder), compile=True, device="cpu"))
    with monkeypatch.context() as patched:
        patched.setattr(speed, "find_spec", lambda name: None)
        with pytest.raises(UsageError, match="--compile: needs triton"):
            speed.check_machine(ModelOptions(compile=True), "cuda", "auto")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(speed, "COMPILER", "breaks")

    def breaks(graph, inputs):
        raise OSError("no Python.h")

    torch._dynamo.register_backend(breaks, name="breaks")
    with pytest.raises(UsageError, match=r"--compile: this machine can't \(.*no Python.h"):
        loaded(folder, compile=True)


# ---- step cache


class Counted:
    """How often the last block of a transformer ran, and a model whose steps are cached."""

    def __init__(self, folder: Path, step_cache: float) -> None:
        self.model = loaded(folder, step_cache=step_cache)
        self.runs = 0
        last = self.model._core.single_transformer_blocks[-1].proj_out
        last.register_forward_hook(self._count)

    def _count(self, *of: object) -> None:
        self.runs += 1

    def sampled(self, text, seed: int, **how):
        sigmas = self.model.sigmas(0.5, STEPS, (8, 8))
        start = self.model.noised(
            latents(self.model, 8, 8, seed=seed), latents(self.model, 8, 8, seed=seed + 50), 0.5
        )
        return sample(self.model, start, sigmas, Conditioning(text=text), **how)


def test_a_step_cache_skips_blocks_and_comes_near_to_what_all_of_them_make(folder: Path, text) -> None:
    whole, strict, loose = (Counted(folder, threshold) for threshold in (0.0, 1e-9, 1.0))
    made = [each.sampled(text, 0) for each in (whole, strict, loose)]
    assert [whole.runs, strict.runs, loose.runs] == [STEPS, STEPS, 1]
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-6)
    apart = (made[0] - made[2]).abs().max()
    assert 0 < apart < 0.2


def test_an_editors_steps_are_skipped_too(tmp_path: Path) -> None:
    one = Counted(make_tiny(tmp_path, "kontext"), 1.0)
    reference = latents(one.model, 8, 8, seed=9)
    sigmas = one.model.sigmas(1.0, STEPS, (8, 8))
    sample(one.model, latents(one.model, 8, 8), sigmas, Conditioning(text=TEXT, reference=reference))
    assert one.runs == 1


def test_each_of_two_questions_a_step_is_skipped_by_its_own_answers(tmp_path: Path) -> None:
    folder = make_tiny_qwen_image(tmp_path)
    model, whole = loaded(folder, step_cache=1.0), loaded(folder)
    runs: list[int] = []
    model._core.transformer_blocks[-1].attn.register_forward_hook(lambda *of: runs.append(1))
    width = model._core.config.joint_attention_dim
    mask = torch.ones(1, 5, dtype=torch.long)
    texts = [
        {"prompt_embeds": torch.full((1, 5, width), value), "prompt_embeds_mask": mask}
        for value in (0.5, -0.5)
    ]
    sigmas, x = model.sigmas(0.5, STEPS, (8, 8)), latents(model, 8, 8)
    conditioning = Conditioning(text=texts[0], negative=texts[1], cfg=3.0)
    made = [sample(each, x, sigmas, conditioning) for each in (model, whole)]
    assert len(runs) == 2
    assert 0 < (made[0] - made[1]).abs().max() < 0.5


def test_what_one_tile_left_in_a_step_cache_never_reaches_another(folder: Path, text) -> None:
    alone = [Counted(folder, 1.0).sampled(text, seed) for seed in (0, 7)]
    one = Counted(folder, 1.0)
    assert torch.equal(one.sampled(text, 0), alone[0])
    assert torch.equal(one.sampled(text, 7), alone[1])

    def stop(step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.sampled(text, 0, before_step=stop)
    head = one.model._core.transformer_blocks[0]._diffusers_hook.hooks["fbc_leader_block_hook"]
    assert not head.state_manager._state_cache  # nor does it hold memory
    one.model.predict(latents(one.model, 8, 8), 0.5, Conditioning(text=text))  # by itself, outside
    assert torch.equal(one.sampled(text, 7), alone[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "--step-cache: takes over from one step to the next, and there is one"),
        ({"steps": 4, "sampler": "heun"}, "--step-cache: would skip the second look"),
        ({"steps": 4, "batch": 2}, "--step-cache: decides for all tiles of a batch at once"),
    ],
)
def test_sampling_that_a_step_cache_does_not_go_with_is_refused(folder: Path, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(UpscaleConfig(model=str(folder), step_cache=0.1, **options))


# ---- all of them


def test_what_a_model_cannot_do_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    unet = make_tiny_stable_diffusion(tmp_path / "sd")
    with pytest.raises(UsageError, match="--step-cache: a step of Stable Diffusion"):
        loading.describe(str(unet), options=ModelOptions(step_cache=0.1))
    with pytest.raises(UsageError, match=r"--step-cache: .* by --controlnet"):
        loading.describe(str(folder), options=ModelOptions(step_cache=0.1, controlnet="x/y"))
    with pytest.raises(UsageError, match=r"--compile: .* --offload sequential .*; give --offload group"):
        loading.describe(str(folder), options=ModelOptions(compile=True, offload="sequential"))
    for option, given in (("compile", True), ("attention", "sdpa"), ("step_cache", 0.1)):
        name = "--" + option.replace("_", "-")
        with pytest.raises(UsageError, match=f"{name}: the model .* is too small"):
            resolve(UpscaleConfig(model="bundled", **{option: given}))
        with pytest.raises(UsageError, match=f"{name} needs a diffusion model"):
            resolve(UpscaleConfig(model="none", **{option: given}))


def test_options_that_change_pixels_are_part_of_a_results_identity_and_reach_the_model(folder: Path) -> None:
    from dino_ray import identity

    settings = resolve(UpscaleConfig(model=str(folder), attention="math", step_cache=0.2, steps=4))
    assert settings.model_options == ModelOptions(attention="math", step_cache=0.2)
    assert {"compile", "attention", "step_cache"} <= set(identity._GIVEN)


def test_convolutions_lie_channels_last_on_a_gpu_and_make_the_same_pixels(folder: Path) -> None:
    model = loaded(folder)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = model.decode(model.encode(pixels))
    vae = model._vae.model
    speed.lay_out_convolutions(vae)
    weight = vae.decoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert vae.decoder(torch.zeros(1, 16, 4, 4)).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.decode(model.encode(pixels)), before, rtol=0, atol=1e-5)


def test_checking_options_of_a_model_imports_no_torch() -> None:
    import subprocess

    code = (
        "import sys; from dino_ray.diffusion import speed; from dino_ray.diffusion.families import FLUX;"
        "from dino_ray.diffusion.model_options import ModelOptions;"
        "speed.check_model('x', FLUX, ModelOptions(compile=True, attention='flash', step_cache=.1), adapter=False);"
        "assert not {'torch', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert importlib.util.find_spec("torch")
