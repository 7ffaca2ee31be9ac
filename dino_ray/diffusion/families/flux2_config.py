"""What the configuration files of Black Forest Labs' FLUX.2 (dev and klein) say, read without torch."""

from __future__ import annotations

from typing import NamedTuple

from dino_ray.diffusion.denoiser import Description, Guidance
from dino_ray.diffusion.families import lora_layers
from dino_ray.diffusion.families.family import Configs, Family
from dino_ray.diffusion.families.flow_schedule import PATCH, Schedule
from dino_ray.diffusion.families.flux_config import EDIT_PROMPT, OVERLAP, TILE
from dino_ray.errors import UsageError

DISTILLED_NATIVE_STEPS, GUIDED_NATIVE_STEPS = 4, 28
"""Steps from pure noise that klein, and dev at its best trade of time for quality, are meant for."""

DISTILLED_STEPS, GUIDED_STEPS = 2, 4
"""Default steps of a refiner, no coarser than the native ones up to a denoise of 0.5. Fewer than FLUX.1's, as this
schedule spends still more of its steps near pure noise: at 1024² under 1 of 4 and 3 of 28 lie below 0.5."""

GUIDANCE_SCALE = 4.0
"""Black Forest Labs' recommendation for dev, whose scale is embedded, and for klein's base models, which are asked
twice."""

KLEIN_PIPELINE = "Flux2KleinPipeline"

KLEIN = frozenset({KLEIN_PIPELINE, "Flux2KleinInpaintPipeline"})
"""Pipelines of models that are step-distilled only where their index says so."""

KV_PIPELINE = "Flux2KleinKVPipeline"
"""Of a klein whose reference attends to itself alone, as if it were clean at any noise level of the picture."""


class _Kind(NamedTuple):
    guidance: Guidance
    cfg: float | None
    steps: int


def describe(name: str, configs: Configs) -> Description:
    """A FLUX.2 model's description from its configs.

    FLUX.2 makes pictures of noise, and edits pictures that it is shown. Here it does both at once: it starts at a noise
    level of the base, and attends to the clean base as its reference. That doubles the picture's tokens, and with them
    most of the time and the memory that a step takes.

    Raises
    ------
    UsageError
        Where the configs are not those of FLUX.2.
    """
    transformer, vae = configs["transformer"], configs["vae"]
    if (kind := transformer.get("_class_name")) != "Flux2Transformer2DModel":
        raise UsageError(
            f"{name}: its transformer is a {kind}, FLUX.2's is a Flux2Transformer2DModel; give a FLUX.2 model"
        )
    channels = int(vae.get("latent_channels", 32))
    if (inputs := transformer.get("in_channels", 128)) != PATCH**2 * channels:
        raise UsageError(
            f"{name}: its transformer takes {inputs} channels where FLUX.2 with this VAE takes {PATCH**2 * channels}; "
            "give a whole FLUX.2 model"
        )
    if vae.get("_class_name") != "AutoencoderKLFlux2" or tuple(vae.get("patch_size", (2, 2))) != (
        PATCH,
        PATCH,
    ):
        raise UsageError(
            f"{name}: its VAE is a {vae.get('_class_name')}, FLUX.2's is an AutoencoderKLFlux2 of patches of "
            f"{PATCH} by {PATCH}; give a whole FLUX.2 model"
        )
    Schedule.from_config(configs["scheduler"], name, mu)
    latent_scale = 2 ** (len(vae["block_out_channels"]) - 1)
    made = _kind(configs)
    return Description(
        name=name,
        family="flux2",
        latent_scale=latent_scale,
        latent_channels=channels,
        pixel_multiple=PATCH * latent_scale,
        tile=TILE,
        overlap=OVERLAP,
        steps=made.steps,
        guidance=made.guidance,
        cfg=made.cfg,
        takes_text=True,
        prompt=EDIT_PROMPT,
        takes_reference=True,
    )


def _kind(configs: Configs) -> _Kind:
    index = configs["index"]
    if configs["transformer"].get("guidance_embeds", True):
        return _Kind("embedded", GUIDANCE_SCALE, GUIDED_STEPS)
    if index.get("is_distilled", index.get("_class_name") not in KLEIN):
        return _Kind("none", None, DISTILLED_STEPS)
    return _Kind("classifier-free", GUIDANCE_SCALE, GUIDED_STEPS)


def mu(tokens: int, steps: int) -> float:
    """The logarithm of the shift, as Black Forest Labs have fitted it: linear in tokens and in steps.

    Past 4300 tokens (1049² canvas_px) the number of steps plays no part. (``compute_empirical_mu`` in
    github.com/black-forest-labs/flux2.)
    """
    at_200_steps = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200_steps
    at_10_steps = 8.73809524e-05 * tokens + 1.89833333
    return at_200_steps + (at_200_steps - at_10_steps) * (steps - 200) / 190


FAMILY = Family(
    name="flux2",
    title="FLUX.2",
    pipelines=KLEIN | {"Flux2Pipeline", KV_PIPELINE},
    core="transformer",
    text=("text_encoder",),
    tokenizers=("tokenizer",),
    module="dino_ray.diffusion.families.flux2",
    attention="plain",
    describe=describe,
    lora=lora_layers.FLUX_2,
)
"""The tiny decoder of its latents that is to be had, madebyollin/taef2, is no ``AutoencoderTiny``."""
