"""What is known of Kontext, FLUX.2 and SD3 before their weights are loaded, and what they are refused."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from hypothesis import given
from hypothesis import strategies as st

from dino_ray.config import UpscaleConfig
from dino_ray.diffusion import published
from dino_ray.diffusion.denoiser import Description
from dino_ray.diffusion.families import family_of
from dino_ray.diffusion.families.flow_schedule import Schedule
from dino_ray.diffusion.families.flux2_config import mu
from dino_ray.engine.refining import Effort
from dino_ray.errors import UsageError
from dino_ray.resolve import resolve

SCALES = [128, 256, 512, 512]
FLUX = {"_class_name": "FluxTransformer2DModel", "in_channels": 64, "guidance_embeds": True}
FLUX2 = {"_class_name": "Flux2Transformer2DModel", "in_channels": 128, "guidance_embeds": False}
SD3 = {"_class_name": "SD3Transformer2DModel", "in_channels": 16, "patch_size": 2, "pos_embed_max_size": 192}
KL = {"_class_name": "AutoencoderKL", "latent_channels": 16, "block_out_channels": SCALES}
BATCH_NORM = {"_class_name": "AutoencoderKLFlux2", "latent_channels": 32, "block_out_channels": SCALES}
DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True}


def describe(
    pipeline: str, transformer: dict, vae: dict, name: str = "model", **index: object
) -> Description:
    family = family_of(pipeline)
    assert family is not None
    scheduler = {"shift": 3.0} if "3" in pipeline else DYNAMIC
    return family.describe(
        name,
        {
            "index": {"_class_name": pipeline, **index},
            "transformer": transformer,
            "vae": vae,
            "scheduler": scheduler,
        },
    )


KONTEXT = describe("FluxKontextPipeline", FLUX, KL)


def flux2(pipeline: str, **index: object) -> Description:
    dev = pipeline == "Flux2Pipeline"
    return describe(pipeline, {**FLUX2, "guidance_embeds": dev}, BATCH_NORM, **index)


def sd3(name: str, **changes: object) -> Description:
    return describe("StableDiffusion3Pipeline", {**SD3, **changes}, KL, name)


def test_kinds_of_flux2_are_told_apart_by_their_configs():
    kinds = {
        "dev": flux2("Flux2Pipeline"),
        "klein": flux2("Flux2KleinPipeline", is_distilled=True),
        "base": flux2("Flux2KleinPipeline"),
        "kv": flux2("Flux2KleinKVPipeline"),
    }
    assert {name: kind.guidance for name, kind in kinds.items()} == {
        "dev": "embedded",
        "klein": "none",
        "base": "classifier-free",
        "kv": "none",
    }
    assert kinds["klein"].steps < kinds["base"].steps
    for kind in kinds.values():
        assert kind.takes_reference
        assert not kind.draws_anew
        assert (kind.latent_scale, kind.latent_channels, kind.pixel_multiple) == (8, 32, 16)


def test_turbo_is_told_by_its_name_and_asked_once():
    turbo, large = sd3("stabilityai/stable-diffusion-3.5-large-turbo"), sd3("sd3.5")
    assert (turbo.guidance, turbo.cfg) == ("classifier-free", 1.0)
    assert large.cfg == 4.5
    assert turbo.steps < large.steps


@pytest.mark.parametrize(
    ("pipeline", "transformer", "vae", "says"),
    [
        ("FluxKontextPipeline", {**FLUX, "in_channels": 384}, KL, "384 channels"),
        ("Flux2Pipeline", FLUX, BATCH_NORM, "FluxTransformer2DModel"),
        ("Flux2Pipeline", {**FLUX2, "in_channels": 256}, BATCH_NORM, "256 channels"),
        ("Flux2Pipeline", FLUX2, {**KL, "latent_channels": 32}, "AutoencoderKL,"),
        ("StableDiffusion3Pipeline", FLUX, KL, "FluxTransformer2DModel"),
        ("StableDiffusion3Pipeline", {**SD3, "in_channels": 33}, KL, "33 channels"),
        ("StableDiffusion3Pipeline", {**SD3, "patch_size": 4}, KL, "patches of 4"),
    ],
)
def test_other_members_of_the_families_are_refused(pipeline, transformer, vae, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        describe(pipeline, transformer, vae)


@given(st.integers(1, 20_000), st.integers(1, 60))
def test_the_shift_of_flux2_is_the_stock_pipelines(tokens, steps):
    assert mu(tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps), rel=1e-9)
    sigmas = Schedule(dynamic=True, mu=mu).sigmas(0.25, steps, tokens)
    assert (sigmas[0], sigmas[-1]) == (0.25, 0)
    assert all(above > below for above, below in pairwise(sigmas))


@pytest.mark.parametrize(
    ("model", "schedule", "native"),
    [
        (flux2("Flux2Pipeline"), Schedule(dynamic=True, mu=mu), 28),
        (flux2("Flux2KleinPipeline", is_distilled=True), Schedule(dynamic=True, mu=mu), 4),
        (sd3("sd3"), Schedule(shift=3.0), 28),
        (sd3("turbo"), Schedule(shift=3.0), 4),
    ],
)
def test_default_steps_are_no_coarser_than_the_native_ones_up_to_half_noise(model, schedule, native):
    ours = schedule.sigmas(0.5, model.steps, 4096)
    theirs = [0.5, *(sigma for sigma in schedule.sigmas(1.0, native, 4096) if sigma < 0.5)]
    assert max(a - b for a, b in pairwise(ours)) <= max(a - b for a, b in pairwise(theirs))


# ---- a model that only draws anew


def test_a_retry_takes_less_noise_or_firmer_guidance_and_is_left_out_where_neither_is_to_be_had():
    plain = replace(KONTEXT, noise_levels=(0.0, 1.0))
    assert Effort(0.6, 0.5).gentler(plain) == Effort(0.3, 0.75)
    assert Effort(0.6, 0.0).gentler(plain) == Effort(0.3, 0.0)
    assert Effort(1.0, 0.5).gentler(KONTEXT) == Effort(1.0, 0.75)
    assert Effort(1.0, 0.0).gentler(KONTEXT) is None
    assert Effort(1.0, 1.0).gentler(KONTEXT) is None


@pytest.fixture
def kontext(monkeypatch):
    """Options of a job with Kontext."""
    from dino_ray.diffusion import loading

    monkeypatch.setattr(loading, "find_sketch", lambda *args: None)
    return {"model": str(published.folder("flux-kontext")), "dino": "bundled", "fit": "off"}


def test_kontext_starts_from_noise_alone_and_says_so(kontext, caplog):
    settings = resolve(UpscaleConfig(**kontext))
    assert (settings.denoise, settings.steps, settings.cfg) == (1.0, 28, 2.5)
    assert "sharper" in settings.prompt
    with pytest.raises(UsageError, match=r"--denoise 0\.5: .* starts from no other noise level than 1"):
        resolve(UpscaleConfig(**kontext, denoise=0.5))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        creative = resolve(UpscaleConfig(**kontext, preset="creative"))
    assert "--preset creative" in caplog.text
    assert (creative.denoise, creative.steps, creative.adaptive) == (1.0, 28, 0.25)


def test_a_tile_beyond_the_positions_that_sd3_knows_is_refused(monkeypatch):
    from dino_ray.diffusion import loading

    monkeypatch.setattr(loading, "find_sketch", lambda *args: None)
    options = {"model": str(published.folder("sd3-medium")), "dino": "bundled", "fit": "off"}
    assert resolve(UpscaleConfig(**options, tile=3072)).tile == 3072
    with pytest.raises(UsageError, match=r"--tile 3088: .* 3072 px at most"):
        resolve(UpscaleConfig(**options, tile=3088))
    assert sd3("small", pos_embed_max_size=32).tile == 512


def test_describing_them_imports_no_torch():
    code = "import sys, dino_ray.diffusion.families; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
