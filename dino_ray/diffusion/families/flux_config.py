"""What the configuration files of Black Forest Labs' FLUX.1 and its editor Kontext say, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dino_ray.diffusion.denoiser import Description
from dino_ray.diffusion.families import lora_layers
from dino_ray.diffusion.families.family import Configs, Family
from dino_ray.diffusion.families.flow_schedule import PATCH, Schedule
from dino_ray.errors import UsageError

TILE = 1024
"""canvas_px. FLUX.1 was trained around one megapixel: smaller tiles see less context, larger ones drift from
what it knows and pay attention's quadratic cost."""

OVERLAP = 128
"""canvas_px, 8 tokens: half is blended, and a quarter either side is context that hides what the VAE's
convolutions do to a tile's border. Costs a factor (1024 / 896)² = 1.3 in tiles."""

DISTILLED_NATIVE_STEPS, GUIDED_NATIVE_STEPS = 4, 28
"""Steps from pure noise that step-distilled (schnell) and guidance-distilled (dev) models are meant for."""

DISTILLED_STEPS, GUIDED_STEPS = 2, 8
"""Default steps of a refiner, which starts far below pure noise. Up to a denoise of 0.5 they are no coarser
than the native steps: schnell crosses [0.25, 0] in one native step and [0.5, 0] in two; dev, whose schedule
at 1024² spends most of its steps near pure noise, in under 3 and under 7 of its 28."""

GUIDANCE_SCALE = 3.5
"""Black Forest Labs' recommendation for FLUX.1-dev."""

KONTEXT_GUIDANCE_SCALE = 2.5
"""Black Forest Labs' recommendation for FLUX.1 Kontext."""

EDIT_PROMPT = (
    "Make this picture sharper and bring out its fine detail. Keep everything else exactly as it is: content, "
    "composition, colours, light and style."
)
"""What an editor is told unless the user says otherwise: an instruction that suits any tile of any picture."""

DISTILLED_TEXT_TOKENS, GUIDED_TEXT_TOKENS = 256, 512
"""T5 sequence lengths the two kinds were trained with."""


def describe(name: str, configs: Configs) -> Description:
    """A FLUX.1 model's description from its configs.

    Raises
    ------
    UsageError
        Where the configs are not those of a FLUX.1 text-to-image model.
    """
    transformer, vae = configs["transformer"], configs["vae"]
    if (kind := transformer.get("_class_name")) != "FluxTransformer2DModel":
        raise UsageError(
            f"{name}: its transformer is a {kind}, FLUX.1's is a FluxTransformer2DModel; give a FLUX.1 model"
        )
    channels = int(vae.get("latent_channels", 4))
    if (inputs := transformer.get("in_channels", 64)) != PATCH**2 * channels:
        raise UsageError(
            f"{name}: its transformer takes {inputs} channels where plain FLUX.1 with this VAE takes "
            f"{PATCH**2 * channels}; control, fill and editing variants are not supported yet"
        )
    Schedule.from_config(configs["scheduler"], name)
    guided = bool(transformer.get("guidance_embeds", False))
    latent_scale = 2 ** (len(vae["block_out_channels"]) - 1)
    return Description(
        name=name,
        family="flux",
        latent_scale=latent_scale,
        latent_channels=channels,
        pixel_multiple=PATCH * latent_scale,
        tile=TILE,
        overlap=OVERLAP,
        steps=GUIDED_STEPS if guided else DISTILLED_STEPS,
        guidance="embedded" if guided else "none",
        cfg=GUIDANCE_SCALE if guided else None,
        takes_text=True,
    )


def describe_kontext(name: str, configs: Configs) -> Description:
    """A FLUX.1 Kontext model's description: as FLUX.1's, but that it draws each tile from pure noise.

    The tile's base is its reference, and doubles the sequence that it works on. It was trained to start from noise
    alone; so it takes all the steps that a picture takes.

    Raises
    ------
    UsageError
        As ``describe`` does.
    """
    plain = describe(name, configs)
    return replace(
        plain,
        family="flux-kontext",
        steps=GUIDED_NATIVE_STEPS if plain.cfg is not None else DISTILLED_NATIVE_STEPS,
        cfg=KONTEXT_GUIDANCE_SCALE if plain.cfg is not None else None,
        prompt=EDIT_PROMPT,
        takes_reference=True,
        denoise=1.0,
        noise_levels=(1.0, 1.0),
    )


def text_tokens(transformer: Mapping[str, Any]) -> int:
    """Length of the T5 sequence that a transformer of this config was trained with."""
    return GUIDED_TEXT_TOKENS if transformer.get("guidance_embeds", False) else DISTILLED_TEXT_TOKENS


def text_width(transformer: Mapping[str, Any]) -> int:
    """Channels of the text tokens that a transformer of this config takes; FLUX.1's are T5's."""
    return int(transformer.get("joint_attention_dim", 4096))


FAMILY = Family(
    name="flux",
    title="FLUX.1",
    pipelines=frozenset({"FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"}),
    core="transformer",
    text=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    module="dino_ray.diffusion.families.flux",
    describe=describe,
    lora=lora_layers.FLUX,
    image_prompts={"redux": text_width, "ip-adapter": text_width},
    attention="plain",
    step_cache=True,
    controlnet="FluxControlNetModel",
    tiny_vae="madebyollin/taef1",
)
"""Control and Fill, which take a control or a mask as more channels, are other models."""

KONTEXT = replace(
    FAMILY,
    name="flux-kontext",
    title="FLUX.1 Kontext",
    pipelines=frozenset({"FluxKontextPipeline", "FluxKontextInpaintPipeline"}),
    describe=describe_kontext,
    image_prompts={},
    controlnet=None,
)
"""The same transformer, trained to attend to a reference; only its pipeline's class tells it from FLUX.1. A family of
its own, since DINO adapters, ControlNets and image prompts are trained beside FLUX.1's text, and know of no
reference."""
