from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_ray.diffusion.families.flow_schedule import Schedule, shifted
from dino_ray.diffusion.families.flux_config import (
    DISTILLED_NATIVE_STEPS,
    FAMILY,
    GUIDED_NATIVE_STEPS,
    text_tokens,
)
from dino_ray.errors import UsageError

schedules = st.one_of(
    st.builds(Schedule, shift=st.floats(0.5, 8)),
    st.builds(Schedule, dynamic=st.just(True), growth=st.sampled_from(["exponential", "linear"])),
)
levels = st.floats(1e-3, 1.0)
DEV = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
TRANSFORMER = {"_class_name": "FluxTransformer2DModel", "in_channels": 64, "guidance_embeds": False}
VAE = {"latent_channels": 16, "block_out_channels": [128, 256, 512, 512]}


def describe(name, transformer, vae, scheduler):
    return FAMILY.describe(
        name, {"transformer": transformer, "vae": vae, "scheduler": scheduler, "index": {}}
    )


@given(schedules, levels, st.integers(1, 50), st.integers(1, 20_000))
def test_noise_levels_fall_from_exactly_denoise_to_exactly_zero(schedule, denoise, steps, tokens):
    sigmas = schedule.sigmas(denoise, steps, tokens)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == denoise
    assert sigmas[-1] == 0
    assert all(above > below for above, below in pairwise(sigmas))


@given(levels, st.floats(0.1, 20))
def test_the_shift_is_inverted_by_its_reciprocal(t, alpha):
    assert shifted(shifted(t, alpha), 1 / alpha) == pytest.approx(t, rel=1e-9)


@given(schedules, st.integers(2, 40), st.integers(1, 20_000), st.data())
def test_starting_lower_follows_the_same_curve(schedule, steps, tokens, data):
    whole = schedule.sigmas(1.0, steps, tokens)
    k = data.draw(st.integers(1, steps - 1))
    assert schedule.sigmas(whole[k], steps - k, tokens) == pytest.approx(whole[k:], rel=1e-9)


def test_dynamic_shift_is_that_of_the_paper_at_both_ends():
    dev = Schedule.from_config(DEV)
    assert dev.alpha(256, 8) == pytest.approx(math.exp(0.5))
    assert dev.alpha(4096, 8) == pytest.approx(math.exp(1.15))


def test_a_static_shift_ignores_the_image_size():
    schedule = Schedule.from_config({"shift": 3.0})
    assert schedule.alpha(256, 8) == schedule.alpha(4096, 8) == 3.0


@pytest.mark.parametrize(
    "option", ["use_karras_sigmas", "use_beta_sigmas", "use_exponential_sigmas", "invert_sigmas"]
)
def test_a_scheduler_spaced_otherwise_is_refused_and_not_ignored(option):
    with pytest.raises(UsageError, match=option):
        Schedule.from_config({**DEV, option: True})


def test_schnell_and_dev_are_told_apart_by_their_configs():
    schnell = describe("s", TRANSFORMER, VAE, {"shift": 1.0})
    dev = describe("d", {**TRANSFORMER, "guidance_embeds": True}, VAE, DEV)
    assert (schnell.guidance, schnell.cfg) == ("none", None)
    assert (dev.guidance, dev.cfg) == ("embedded", 3.5)
    assert schnell.steps < dev.steps
    assert text_tokens(TRANSFORMER) == 256
    assert text_tokens({**TRANSFORMER, "guidance_embeds": True}) == 512
    assert (dev.latent_scale, dev.pixel_multiple, dev.latent_channels) == (8, 16, 16)
    assert dev.takes_text
    assert dev.dino_dim is None


@pytest.mark.parametrize(
    ("guided", "scheduler", "native"),
    [(False, {"shift": 1.0}, DISTILLED_NATIVE_STEPS), (True, DEV, GUIDED_NATIVE_STEPS)],
)
def test_default_steps_are_no_coarser_than_the_native_ones_up_to_half_noise(guided, scheduler, native):
    steps = describe("model", {**TRANSFORMER, "guidance_embeds": guided}, VAE, scheduler).steps
    schedule, tokens = Schedule.from_config(scheduler), 4096
    ours = schedule.sigmas(0.5, steps, tokens)
    theirs = [0.5, *(sigma for sigma in schedule.sigmas(1.0, native, tokens) if sigma < 0.5)]
    assert max(a - b for a, b in pairwise(ours)) <= max(a - b for a, b in pairwise(theirs))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"in_channels": 384}, "384 channels"),
        ({"_class_name": "Flux2Transformer2DModel"}, "Flux2Transformer2DModel"),
    ],
)
def test_other_members_of_the_family_are_refused(change, match):
    with pytest.raises(UsageError, match=match):
        describe("other", {**TRANSFORMER, **change}, VAE, DEV)
