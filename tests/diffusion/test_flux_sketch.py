"""Promises of what guidance looks through with a FLUX.1 model: its small decoder where there is one, else its VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LATENT_CHANNELS, make_tiny_flux

from dino_ray.diffusion import loading
from dino_ray.dino import loading as dino_loading
from dino_ray.dino.guidance import Guidance
from dino_ray.errors import JobError


def add_tiny_vae(folder: Path, latent_channels: int = LATENT_CHANNELS) -> Path:
    from diffusers import AutoencoderTiny

    four = (8, 8, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        AutoencoderTiny(
            encoder_block_out_channels=four,
            decoder_block_out_channels=four,
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
            latent_channels=latent_channels,
            scaling_factor=0.9,  # that it is read at all would not show with 1
            shift_factor=0.1,
        ).save_pretrained(folder / "tiny_vae")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_flux(tmp_path_factory.mktemp("plain") / "model", text=False))


@pytest.fixture(scope="module")
def with_tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(add_tiny_vae(make_tiny_flux(tmp_path_factory.mktemp("tiny") / "model", text=False)))


def latents(seed: int) -> torch.Tensor:
    return torch.randn(2, LATENT_CHANNELS, 8, 8, generator=torch.Generator().manual_seed(seed))


def steered(model: Any) -> torch.Tensor:
    dino = dino_loading.load("bundled")
    with torch.inference_mode():  # as a replica calls it
        return Guidance.towards(dino, model.sketch, latents(1), 1.0, 0.0)(latents(2)).clone()


def forbidden(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("this decoder was not to be asked")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_guidance_looks_through_the_small_decoder_and_never_through_the_vae(
    with_tiny: str, dtype: str
) -> None:
    model = loading.load(with_tiny, "cpu", dtype, sketch=loading.find_sketch(with_tiny))
    model._vae.model.decode = forbidden
    once = steered(model)
    assert torch.isfinite(once).all()
    assert (once != latents(2)).any()
    assert (once == steered(model)).all()
    raw = latents(3) / 0.9 + 0.1
    seen = model._tiny.model.decode(raw.to(model._tiny.model.dtype), return_dict=False)[0].float() / 2 + 0.5
    torch.testing.assert_close(model.sketch(latents(3)), seen)
    assert seen.shape == (2, 3, 64, 64)
    with torch.no_grad():
        for weight in model._tiny.model.decoder.parameters():
            weight.mul_(0.5)
    assert (steered(model) != once).any(), "other weights of the decoder, other steps"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_one_guidance_looks_through_the_vae(plain: str, dtype: str) -> None:
    assert loading.find_sketch(plain) is None
    model = loading.load(plain, "cpu", dtype)
    once = steered(model)
    assert torch.isfinite(once).all()
    assert (once != latents(2)).any()
    torch.testing.assert_close(model.sketch(latents(3)), model.decode(latents(3)))


def test_a_model_that_is_not_guided_loads_none(with_tiny: str) -> None:
    model = loading.load(with_tiny, "cpu", "float32")
    assert model._tiny is None


def test_a_small_decoder_of_other_latents_is_refused(tmp_path: Path) -> None:
    folder = add_tiny_vae(make_tiny_flux(tmp_path / "model", text=False), latent_channels=4)
    with pytest.raises(JobError, match=r"tiny_vae: its latents have 4 channels, those of model 16"):
        loading.load(str(folder), "cpu", "float32", sketch=loading.find_sketch(str(folder)))


def test_a_small_decoder_without_weights_is_not_made_up(tmp_path: Path) -> None:
    folder = add_tiny_vae(make_tiny_flux(tmp_path / "model", text=False))
    (folder / "tiny_vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(JobError, match="tiny_vae: can't be loaded"):
        loading.load(str(folder), "cpu", "float32", sketch=loading.find_sketch(str(folder)))
