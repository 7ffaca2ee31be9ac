"""Promises of footprints: parameters are those of the real models, and memory that of what is really kept."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from count_footprints import components, counted
from tiny import make_tiny_flux
from torch import nn

from dino_ray.diffusion import footprint, metering, model_files, published, sizing
from dino_ray.diffusion.footprint import SIDES, Count, Work, weight_bytes

BILLIONS = {
    "flux-schnell": 11.9,
    "flux-dev": 11.9,
    "flux-krea": 11.9,
    "flux-kontext": 11.9,
    "flux2-dev": 32.2,
    "flux2-klein": 3.88,
    "flux2-klein-9b": 9.08,
    "sd15": 0.860,
    "sd21": 0.866,
    "sdxl": 2.57,
    "sd3-medium": 2.08,
    "sd35-medium": 2.47,
    "sd35-large": 8.1,
    "qwen-image": 20.4,
    "qwen-image-edit": 20.4,
    "qwen-image-edit-2509": 20.4,
    "qwen-image-edit-2511": 20.4,
    "z-image-turbo": 6.15,
}
"""Parameters of what predicts, as the models' makers state them."""


def parts_of(name: str) -> dict[str, tuple[str, str, dict]]:
    return {part: (library, cls, config) for part, library, cls, config in components(name)}


@pytest.mark.parametrize("name", published.names())
def test_every_component_of_a_published_model_is_in_the_table_with_as_many_parameters_as_it_has(
    name: str,
) -> None:
    parts = parts_of(name)
    found = {
        part: footprint.table()[footprint.digest(cls, config)] for part, (_, cls, config) in parts.items()
    }
    core = found.get("transformer") or found["unet"]
    assert core.count.parameters / 1e9 == pytest.approx(BILLIONS[name], rel=0.01)
    assert len(core.work.step) == len(SIDES)
    assert len(found["vae"].work.sketch) == len(SIDES)
    assert any(part.startswith("text_encoder") for part in found)


def test_the_table_is_what_the_script_counts_of_a_vae() -> None:
    library, cls, config = parts_of("flux-dev")["vae"]
    assert counted(library, cls, config) == footprint.table()[footprint.digest(cls, config)]


def test_the_table_is_what_is_counted_of_fluxs_transformer() -> None:
    library, cls, config = parts_of("flux-dev")["transformer"]
    model = metering.build(library, cls, config)
    assert metering.count(model) == footprint.table()[footprint.digest(cls, config)].count


@pytest.mark.slow
@pytest.mark.parametrize("name", published.names())
def test_all_of_the_table_is_what_the_script_counts(name: str) -> None:
    for library, cls, config in parts_of(name).values():
        assert counted(library, cls, config) == footprint.table()[footprint.digest(cls, config)], cls


def test_a_table_survives_being_written() -> None:
    assert footprint.read(json.loads(footprint.written(footprint.table()))) == footprint.table()


def test_the_table_is_read_without_torch() -> None:
    program = (
        "import sys; from dino_ray.diffusion import model_files, published, sizing; "
        "sizing.sizes(model_files.resolve(str(published.folder('sdxl')))); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_model_of_a_shape_that_is_not_published_is_counted(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, FluxTransformer2DModel

    folder = make_tiny_flux(tmp_path / "tiny")
    found = sizing.sizes(model_files.resolve(str(folder)))
    for part, cls in ((found.core, FluxTransformer2DModel), (found.vae, AutoencoderKL)):
        name = "vae" if cls is AutoencoderKL else "transformer"
        model = cls.from_pretrained(folder / name)
        assert part.count.parameters == sum(each.numel() for each in model.parameters())
    assert list(found.text) == ["text_encoder", "text_encoder_2"]
    assert found.core.work.step == footprint.table()[_digest("flux-dev", "transformer")].work.step


def _digest(name: str, part: str) -> str:
    _, cls, config = parts_of(name)[part]
    return footprint.digest(cls, config)


def test_bytes_in_fp8_are_those_that_diffusers_keeps(tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel

    folder = make_tiny_flux(tmp_path / "tiny")
    model = FluxTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
    whole = metering.count(model)
    assert weight_bytes(whole) == kept(model)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert weight_bytes(whole, "fp8") == kept(model)
    assert kept(model) < weight_bytes(whole)


def kept(model: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in model.parameters())


def test_bytes_in_int8_are_those_that_torchao_keeps() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = nn.Sequential(nn.Linear(256, 512), nn.LayerNorm(512), nn.Linear(512, 256)).to(torch.bfloat16)
    whole = metering.count(model)
    quantize_(model, Int8WeightOnlyConfig())
    tensors = [model[0].weight, model[2].weight]
    pieces = [getattr(each, name) for each in tensors for name in each.__tensor_flatten__()[0]]
    linear = sum(each.numel() * each.element_size() for each in pieces)
    rest = 2 * (whole.parameters - whole.linear)
    assert whole.linear == 2 * 256 * 512
    assert weight_bytes(whole, "bf16", "int8") == pytest.approx(linear + rest, rel=0.01)


def test_nf4_takes_a_quarter_and_its_scales() -> None:
    count = Count(1_100, 1_000, 1_000, 100, 100, 100)
    assert weight_bytes(count, "bf16", "nf4") == int(1_000 * 0.5 + 1_000 / 64 * 4 + 100 * 2)


def test_what_is_metered_is_the_most_that_lives_at_once() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(1000, 1000, bias=False) for _ in range(3)))
    x = torch.empty(10, 1000, device="meta")
    one = 10 * 1000 * 4  # a layer's output; its input is freed once the next is there
    assert metering.peak_bytes(lambda: model(x), model) == 2 * one
    x.requires_grad_()
    assert metering.peak_bytes_with_gradient(lambda: model(x), model) >= 3 * one


def test_work_between_the_sizes_that_were_counted_is_never_less_than_a_parabola() -> None:
    counted = tuple(3 * side**2 + side**4 // 1000 for side in SIDES)
    work = Work(step=counted)
    for side, expected in zip(SIDES, counted, strict=True):
        assert work.bytes("step", side**2) == expected
    for side in (256, 700, 1500, 3000):
        assert work.bytes("step", side**2) >= 3 * side**2 + side**4 // 1000
    assert Work().bytes("step", 1024**2) == 0


def test_a_replica_of_flux_holds_its_transformer_and_vae_and_no_text_encoder(tmp_path: Path) -> None:
    from dino_ray.config import UpscaleConfig
    from dino_ray.engine.replica import Replica
    from dino_ray.loaders import replica_spec
    from dino_ray.resolve import resolve

    folder = make_tiny_flux(tmp_path / "tiny")
    options = {"model": str(folder), "dtype": "bf16", "dino_strength": 0, "adaptive": 0, "verify": False}
    config = UpscaleConfig.parse({**options, "address": "none", "base": "lanczos", "device": "cpu"})
    spec = replica_spec(config, resolve(config))
    before = {id(each) for each in living()}
    replica = Replica(spec)
    assert spec.text is not None
    encoded = spec.text(["a portrait"], lambda side: None)
    assert encoded["a portrait"]["prompt_embeds"].size
    assert not [each for each in living() if id(each) not in before], "encoders are freed"
    replica.load()
    held = sum(each.numel() * each.element_size() for each in living() if id(each) not in before)
    found = sizing.sizes(model_files.resolve(str(folder)))
    both = weight_bytes(found.core.count) + weight_bytes(found.vae.count)
    assert both <= held <= 1.1 * both


def living() -> list[nn.Parameter]:
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is nn.Parameter and each.device.type != "meta"]
