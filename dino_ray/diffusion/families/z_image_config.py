"""What the configuration files of Tongyi's Z-Image say (Cai et al. 2025, arXiv:2511.22699), read without torch."""

from __future__ import annotations

from dino_ray.diffusion.denoiser import Description
from dino_ray.diffusion.families import lora_layers
from dino_ray.diffusion.families.family import Configs, Family
from dino_ray.diffusion.families.flow_schedule import PATCH, Schedule
from dino_ray.diffusion.families.flux_config import OVERLAP
from dino_ray.errors import UsageError

TILE = 1024
"""canvas_px: one megapixel, the middle of what it was trained on."""

TURBO_SHIFT = 3.0
"""The schedule's shift tells Turbo, distilled to few steps without guidance, from the base model, which has 6: nothing
else in their configs does."""

TURBO_STEPS, STEPS = 2, 8
"""Default steps of a refiner. From a denoise of 0.5 Turbo's 8 steps take two, the base model's 50 take seven."""

GUIDANCE_SCALE = 4.0
"""Its authors use 4 to 6, in the terms of this package, where 1 is off; in those of diffusers' pipeline, where 0 is, 3
to 5. The lowest, since the picture is there already."""

POSITIONS = (1024, 512, 512)
"""How many its rotary embedding knows for words, rows and columns, unless a config says otherwise."""

PROMPT = "a sharp, clear picture with fine natural detail"

TEXT_TOKENS = 512
"""How many tokens of a prompt, its template's among them, the stock pipelines read."""


def describe(name: str, configs: Configs) -> Description:
    """A Z-Image model's description from its configs.

    Raises
    ------
    UsageError
        Where the configs are not those of a model that predicts from noise and text alone.
    """
    transformer, vae = configs["transformer"], configs["vae"]
    if (kind := transformer.get("_class_name")) != "ZImageTransformer2DModel":
        raise UsageError(
            f"{name}: its transformer is a {kind}, Z-Image's is a ZImageTransformer2DModel; give a Z-Image model"
        )
    channels = int(vae.get("latent_channels", 4))
    if (inputs := transformer.get("in_channels", 16)) != channels:
        raise UsageError(
            f"{name}: its transformer takes {inputs} channels where this VAE has {channels}; "
            "control and inpainting variants with more channels are not driven"
        )
    if transformer.get("siglip_feat_dim") is not None:
        raise UsageError(
            f"{name}: it reads pictures by SigLIP, which is not driven; give Z-Image or Z-Image-Turbo"
        )
    schedule = Schedule.from_config(configs["scheduler"], name)
    turbo = not schedule.dynamic and schedule.shift <= TURBO_SHIFT
    latent_scale = 2 ** (len(vae["block_out_channels"]) - 1)
    largest = min(transformer.get("axes_lens", POSITIONS)[1:]) * PATCH * latent_scale
    return Description(
        name=name,
        family="z-image",
        latent_scale=latent_scale,
        latent_channels=channels,
        pixel_multiple=PATCH * latent_scale,
        tile=min(TILE, largest),
        largest_tile=largest,
        overlap=OVERLAP,
        steps=TURBO_STEPS if turbo else STEPS,
        guidance="none" if turbo else "classifier-free",
        cfg=None if turbo else GUIDANCE_SCALE,
        takes_text=True,
        prompt=PROMPT,
    )


FAMILY = Family(
    name="z-image",
    title="Z-Image",
    pipelines=frozenset({"ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline"}),
    core="transformer",
    text=("text_encoder",),
    tokenizers=("tokenizer",),
    module="dino_ray.diffusion.families.z_image",
    attention="masked",
    describe=describe,
    lora=lora_layers.Z_IMAGE,
    tiny_vae="madebyollin/taef1",
)
"""Its latents, and so the tiny decoder of them, are FLUX.1's."""
