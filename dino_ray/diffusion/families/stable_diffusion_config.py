"""What the configuration files of Stable Diffusion 1.x, 2.x and XL say, read without torch."""

from __future__ import annotations

from dino_ray.diffusion.denoiser import Description
from dino_ray.diffusion.families import lora_layers
from dino_ray.diffusion.families.discrete_schedule import DiscreteSchedule
from dino_ray.diffusion.families.family import Configs, Family
from dino_ray.errors import UsageError

OVERLAP_SHARE = 8
"""A tile's side over its overlap: as much context as FLUX's tiles have."""

STEPS = 12
"""Default steps of a refiner: at denoise 0.25, a third of training's timesteps, as fine as 30 steps from pure noise."""

GUIDANCE_SCALE = 5.0
"""Below the 7.5 of text-to-image: the picture is there already, and a high scale burns its contrast."""

PROMPT = "a sharp, highly detailed photograph"


def describe(name: str, configs: Configs) -> Description:
    """A Stable Diffusion model's description from its configs.

    Raises
    ------
    UsageError
        Where the configs are not those of a text-to-image UNet.
    """
    unet, vae = configs["unet"], configs["vae"]
    channels = int(vae.get("latent_channels", 4))
    if (inputs := int(unet.get("in_channels", 4))) != channels:
        raise UsageError(
            f"{name}: its UNet takes {inputs} channels where text-to-image models with this VAE take {channels}; "
            "inpainting and editing variants are not driven: give the text-to-image model"
        )
    large = unet.get("addition_embed_type") == "text_time"
    schedule = DiscreteSchedule.from_config(configs["scheduler"], name)
    latent_scale = 2 ** (len(vae["block_out_channels"]) - 1)
    halvings = len(unet["block_out_channels"]) - 1
    tile = max(512, int(unet.get("sample_size") or 64) * latent_scale)
    return Description(
        name=name,
        family="sdxl" if large else "sd",
        latent_scale=latent_scale,
        latent_channels=channels,
        pixel_multiple=latent_scale * 2**halvings,
        tile=tile,
        overlap=tile // OVERLAP_SHARE,
        steps=STEPS,
        guidance="classifier-free",
        cfg=GUIDANCE_SCALE,
        takes_text=True,
        prompt=PROMPT,
        negative_prompt=None if large and configs["index"].get("force_zeros_for_empty_prompt", True) else "",
        noise_levels=(0.0, schedule.noisiest),
    )


FAMILY = Family(
    name="sd",
    title="Stable Diffusion 1.x and 2.x",
    pipelines=frozenset({"StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"}),
    core="unet",
    text=("text_encoder",),
    tokenizers=("tokenizer",),
    module="dino_ray.diffusion.families.stable_diffusion",
    describe=describe,
    lora=lora_layers.UNET,
    image_prompts={"ip-adapter": lora_layers.unet_text_width, "ip-adapter-plus": lora_layers.unet_text_width},
    controlnet="ControlNetModel",
    tiny_vae="madebyollin/taesd",
)

XL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    pipelines=frozenset({"StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"}),
    core="unet",
    text=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    module="dino_ray.diffusion.families.stable_diffusion",
    describe=describe,
    lora=lora_layers.UNET,
    image_prompts={"ip-adapter": lora_layers.unet_text_width, "ip-adapter-plus": lora_layers.unet_text_width},
    optional=frozenset({"text_encoder"}),
    controlnet="ControlNetModel",
    tiny_vae="madebyollin/taesdxl",
)
"""Its refiner has the second text encoder alone."""
