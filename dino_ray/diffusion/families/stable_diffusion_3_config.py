"""What the configuration files of Stable Diffusion 3 and 3.5 say, read without torch."""

from __future__ import annotations

from dino_ray.diffusion.denoiser import Description
from dino_ray.diffusion.families import lora_layers
from dino_ray.diffusion.families.family import Configs, Family
from dino_ray.diffusion.families.flow_schedule import PATCH, Schedule
from dino_ray.diffusion.families.stable_diffusion_config import PROMPT
from dino_ray.errors import UsageError

TILE = 1024
"""canvas_px. All of them were trained around one megapixel."""

OVERLAP = 128
"""canvas_px: half is blended, and a quarter either side is context, as with FLUX.1, whose VAE is of the same kind."""

NATIVE_STEPS, TURBO_NATIVE_STEPS = 28, 4
"""Steps from pure noise that the models, and the step-distilled Turbo, are meant for."""

STEPS, TURBO_STEPS = 8, 2
"""Default steps of a refiner, no coarser than the native ones up to a denoise of 0.5: at a shift of 3, 7 of 28 and one
of 4 lie below that. They are even before the shift is put on them; the stock pipeline's own grid ends with a step from
a noise level of 0.009."""

GUIDANCE_SCALE = 4.5
"""Stability AI's recommendation for 3.5. SD3's own 7 is for making pictures of noise; a high scale burns the contrast
of one that is there already."""

TURBO = "turbo"
"""Of the models' own names. Their configuration files are the same: only by its name is 3.5 Large Turbo told from 3.5
Large."""

UNGUIDED = 1.0
"""Turbo's guidance is distilled into it: it is asked once, unless the user gives a higher scale."""


def describe(name: str, configs: Configs) -> Description:
    """A Stable Diffusion 3 or 3.5 model's description from its configs.

    Raises
    ------
    UsageError
        Where the configs are not those of a text-to-image model.
    """
    transformer, vae = configs["transformer"], configs["vae"]
    if (kind := transformer.get("_class_name")) != "SD3Transformer2DModel":
        raise UsageError(
            f"{name}: its transformer is a {kind}, SD3's is an SD3Transformer2DModel; give a Stable Diffusion 3 model"
        )
    channels = int(vae.get("latent_channels", 4))
    if (inputs := int(transformer.get("in_channels", 16))) != channels:
        raise UsageError(
            f"{name}: its transformer takes {inputs} channels where text-to-image models with this VAE take "
            f"{channels}; inpainting and editing variants are not driven: give the text-to-image model"
        )
    if (patch := int(transformer.get("patch_size", 2))) != PATCH:
        raise UsageError(
            f"{name}: its transformer has patches of {patch}, SD3's of {PATCH}; give a SD3 model"
        )
    Schedule.from_config(configs["scheduler"], name)
    latent_scale = 2 ** (len(vae["block_out_channels"]) - 1)
    multiple = PATCH * latent_scale
    largest = int(transformer.get("pos_embed_max_size") or 96) * multiple
    turbo = TURBO in name.lower()
    return Description(
        name=name,
        family="sd3",
        latent_scale=latent_scale,
        latent_channels=channels,
        pixel_multiple=multiple,
        tile=min(TILE, largest),
        largest_tile=largest,
        overlap=OVERLAP,
        steps=TURBO_STEPS if turbo else STEPS,
        guidance="classifier-free",
        cfg=UNGUIDED if turbo else GUIDANCE_SCALE,
        takes_text=True,
        prompt=PROMPT,
    )


FAMILY = Family(
    name="sd3",
    title="Stable Diffusion 3 and 3.5",
    pipelines=frozenset(
        {"StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"}
    ),
    core="transformer",
    text=("text_encoder", "text_encoder_2", "text_encoder_3"),
    tokenizers=("tokenizer", "tokenizer_2", "tokenizer_3"),
    module="dino_ray.diffusion.families.stable_diffusion_3",
    describe=describe,
    lora=lora_layers.STABLE_DIFFUSION_3,
    optional=frozenset({"text_encoder_3"}),
    tiny_vae="madebyollin/taesd3",
)
"""T5, the largest of its text encoders, can be left out: zeros stand for what it would say."""
