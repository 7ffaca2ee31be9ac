"""What the configuration files of Qwen-Image and its editors say (Wu et al. 2025, arXiv:2508.02324), without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dino_ray.diffusion.denoiser import Description
from dino_ray.diffusion.families import lora_layers
from dino_ray.diffusion.families.family import Configs, Family, class_of
from dino_ray.diffusion.families.flow_schedule import PATCH, Schedule
from dino_ray.diffusion.families.flux_config import OVERLAP
from dino_ray.errors import UsageError

TILE = 1024
"""canvas_px. Trained up to 1328² and asked for 1024² by default; an editor's reference is of one megapixel. Larger
tiles pay attention's quadratic cost, for an editor over twice the tokens."""

STEPS = 8
"""Default steps of a refiner: at denoise 0.25 the 50 of text-to-image take 7 from there."""

EDIT_STEPS = 40
"""Default steps of an editor, which starts from pure noise: what its authors use for those of 2509 and 2511."""

GUIDANCE_SCALE = 4.0
"""Its authors' own. It burns no contrast, since every token of the guided answer gets the length of the unguided."""

NEGATIVE_PROMPT = " "
"""What its authors say where nothing is to be kept out."""

PROMPT = "a sharp, clear picture with fine natural detail"

EDIT_PROMPT = (
    "Make the picture sharp and clear and add fine natural detail. "
    "Keep every object, its shape, its place, its colours and the light exactly as they are."
)
"""The encoder sees the whole picture, while each tile is a part of it: an instruction that names nothing suits all."""

TEXT_TOKENS = 512
"""How many of a prompt's tokens the stock text-to-image pipelines pass on."""

_ONE_MEGAPIXEL = 1024 * 1024

PICTURE_AREAS: Mapping[str, int] = {
    "QwenImageEditPipeline": _ONE_MEGAPIXEL,
    "QwenImageEditInpaintPipeline": _ONE_MEGAPIXEL,
    "QwenImageEditPlusPipeline": 384 * 384,
}
"""By pipeline: px of the picture that an editor's text encoder looks at, whatever its size was."""


def describe(name: str, configs: Configs) -> Description:
    """A Qwen-Image model's description from its configs.

    Raises
    ------
    UsageError
        Where the configs are not those of a model that predicts from noise and text alone.
    """
    return Description(
        **_common(name, configs),
        family="qwen-image",
        steps=STEPS,
        prompt=PROMPT,
    )


def describe_editor(name: str, configs: Configs) -> Description:
    """An editor's description: it draws a tile anew beside its base, from pure noise alone.

    Raises
    ------
    UsageError
        As ``describe`` does, and where there is no processor, which looks at the picture.
    """
    if class_of(configs["index"], "processor") is None:
        raise UsageError(
            f"{name}: it has no processor, by which an editor looks at pictures; get the whole model again"
        )
    return Description(
        **_common(name, configs),
        family="qwen-image-edit",
        steps=EDIT_STEPS,
        prompt=EDIT_PROMPT,
        reads_picture=True,
        takes_reference=True,
        denoise=1.0,
        noise_levels=(1.0, 1.0),
    )


def _common(name: str, configs: Configs) -> dict[str, Any]:
    transformer, vae = configs["transformer"], configs["vae"]
    for part, expected in (("transformer", "QwenImageTransformer2DModel"), ("vae", "AutoencoderKLQwenImage")):
        if (kind := configs[part].get("_class_name")) != expected:
            raise UsageError(
                f"{name}: its {part} is a {kind}, Qwen-Image's is a {expected}; give a Qwen-Image model"
            )
    channels = int(vae.get("z_dim", 16))
    if (inputs := transformer.get("in_channels", 64)) != PATCH**2 * channels:
        raise UsageError(
            f"{name}: its transformer takes {inputs} channels where Qwen-Image's with this VAE takes "
            f"{PATCH**2 * channels}; control and inpainting variants with more channels are not driven"
        )
    if transformer.get("guidance_embeds"):
        raise UsageError(
            f"{name}: its transformer sets guidance_embeds, which diffusers' Qwen-Image can't run; "
            "give a model that takes guidance by a negative prompt, as the published ones do"
        )
    if transformer.get("use_additional_t_cond") or vae.get("input_channels", 3) != 3:
        raise UsageError(
            f"{name}: it draws layers with transparency, which are not driven; give a Qwen-Image model"
        )
    Schedule.from_config(configs["scheduler"], name)
    latent_scale = 2 ** len(vae.get("temperal_downsample", (False, True, True)))
    return {
        "name": name,
        "latent_scale": latent_scale,
        "latent_channels": channels,
        "pixel_multiple": PATCH * latent_scale,
        "tile": TILE,
        "overlap": OVERLAP,
        "guidance": "classifier-free",
        "cfg": GUIDANCE_SCALE,
        "takes_text": True,
        "negative_prompt": NEGATIVE_PROMPT,
    }


FAMILY = Family(
    name="qwen-image",
    title="Qwen-Image",
    pipelines=frozenset({"QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"}),
    core="transformer",
    text=("text_encoder",),
    tokenizers=("tokenizer",),
    module="dino_ray.diffusion.families.qwen_image",
    attention="masked",
    step_cache=True,
    describe=describe,
    lora=lora_layers.QWEN_IMAGE,
)

EDIT = Family(
    name="qwen-image-edit",
    title="Qwen-Image-Edit",
    pipelines=frozenset(PICTURE_AREAS),
    core="transformer",
    text=("text_encoder",),
    tokenizers=("tokenizer", "processor"),
    module="dino_ray.diffusion.families.qwen_image",
    attention="masked",
    step_cache=True,
    describe=describe_editor,
    lora=lora_layers.QWEN_IMAGE,
)
"""The first, and those of 2509 and 2511, which diffusers calls Plus."""
