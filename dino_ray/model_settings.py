"""What the options ask of a diffusion model, and the refusal of what it can't do."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dino_ray.config import UpscaleConfig, option_name, refuse_given
from dino_ray.diffusion.model_options import ModelOptions
from dino_ray.errors import UsageError
from dino_ray.prompts import find_captioner

if TYPE_CHECKING:
    from dino_ray.diffusion.denoiser import Description
    from dino_ray.diffusion.image_prompt_file import ImagePrompt

log = logging.getLogger(__name__)

MODEL_OPTIONS = (
    *("components", "vae", "allow_pickle", "dtype", "quantize", "offload", "vae_tile", "fit"),
    *("compile", "attention", "step_cache", "batch"),
    *("lora", "controlnet", "image_prompt", "image_prompt_of", "image_prompt_scale"),
    *("prompt", "prompts", "captioner", "negative_prompt", "cfg"),
    *("preset", "steps", "sampler", "seed"),
    *("dino", "dino_strength", "dino_adapter", "adaptive", "verify", "consistency", "color_lock"),
)
"""Options that only a diffusion model can honour."""

CONTROL_OPTIONS = ("control_scale", "control_start", "control_end")
"""Options that only a ControlNet can honour."""


def model_options(config: UpscaleConfig) -> ModelOptions:
    """What is to be done with the model; names as they mean the same on every machine that sees the same files."""
    from dino_ray.diffusion import finding, lora_file

    if config.controlnet is None:
        refuse_given(config, CONTROL_OPTIONS, "has nothing to act on without --controlnet; leave it out")
    elif config.control_scale == 0:
        raise UsageError("--controlnet: has no effect at --control-scale 0; leave one of them out")
    elif config.control_start >= config.control_end:
        raise UsageError(
            f"--control-end {config.control_end:g}: must lie after --control-start {config.control_start:g}"
        )
    located = {
        name: finding.located(value, option_name(name))
        for name in ("components", "vae")
        if (value := getattr(config, name)) is not None
    }
    return ModelOptions(
        loras=lora_file.parse(config.lora),
        image_prompt=_image_prompt(config),
        **located,
        allow_pickle=config.allow_pickle,
        controlnet=config.controlnet,
        quantize=config.quantize,
        offload=config.offload,
        vae_tile=config.vae_tile,
        compile=config.compile,
        attention=config.attention,
        step_cache=config.step_cache,
    )


def _image_prompt(config: UpscaleConfig) -> ImagePrompt | None:
    if config.image_prompt is None:
        refuse_given(
            config, ("image_prompt_of", "image_prompt_scale"), "needs --image-prompt; name a model for it"
        )
        return None
    from dino_ray.diffusion import image_prompt_file

    return image_prompt_file.parse(config.image_prompt, config.image_prompt_of, config.image_prompt_scale)


def check_conditioning(config: UpscaleConfig, model: Description, denoise: float, cfg: float | None) -> None:
    for name in ("prompt", "prompts", "captioner"):
        if getattr(config, name) and not model.takes_text:
            raise UsageError(
                f"--{name}: the model {model.name} takes no text; leave it out, or name a model that does"
            )
    if config.prompts is not None and config.captioner is not None:
        raise UsageError("--captioner: --prompts says already what regions show; leave one of them out")
    if config.captioner is not None:
        find_captioner(config.captioner)
    if config.cfg is not None and model.guidance == "none":
        raise UsageError(f"--cfg: the model {model.name} takes no guidance scale; leave it out")
    if config.negative_prompt is not None and model.guidance != "classifier-free":
        raise UsageError(
            f"--negative-prompt: the model {model.name} has no classifier-free guidance, and takes none; leave it out"
        )
    if config.negative_prompt is not None and cfg == 1:
        raise UsageError(
            "--negative-prompt: has no effect at a guidance scale of 1; raise --cfg, or leave it out"
        )
    if denoise in (0, model.within(denoise)):
        return
    least, most = model.noise_levels
    if model.draws_anew:
        raise UsageError(
            f"--denoise {denoise:g}: the model {model.name} draws each tile anew, with the base as its reference, and "
            f"starts from no other noise level than {most:g}; leave it out, or 0 for the base alone"
        )
    raise UsageError(
        f"--denoise {denoise:g}: the model {model.name} was trained on noise levels of {least:.3g} to {most:.3g}; "
        "give one within"
    )


def denoise_of(config: UpscaleConfig, model: Description) -> float:
    """The noise level to start from: what was asked for, be it impossible, or what suits the model."""
    if config.denoise is None:
        return model.denoise
    if "denoise" not in config.model_fields_set and model.draws_anew:
        log.warning(
            "--preset %s: the model %s draws each tile anew; of the preset --dino-strength and --adaptive count",
            *(config.preset, model.name),
        )
        return model.denoise
    return config.denoise


def negative_prompt(config: UpscaleConfig, model: Description, cfg: float | None) -> str | None:
    """None where it is not to be encoded."""
    if model.guidance != "classifier-free" or cfg == 1:
        return None
    return config.negative_prompt if config.negative_prompt is not None else model.negative_prompt


def check_speed(config: UpscaleConfig, options: ModelOptions, steps: int) -> None:
    """Refuse ways to be faster that don't go with the sampling, or with this machine, if it is to do the work."""
    if config.step_cache > 0:
        if steps == 1:
            raise UsageError(
                "--step-cache: takes over from one step to the next, and there is one; leave it out"
            )
        if config.sampler == "heun":
            raise UsageError("--step-cache: would skip the second look that --sampler heun takes; give euler")
        if config.batch > 1:  # or what becomes of a tile would depend on the others
            raise UsageError("--step-cache: decides for all tiles of a batch at once; give --batch 1")
    if config.address not in ("none", "local") or not (options.compile or options.attention != "auto"):
        return  # on another machine, a replica says so when it loads
    from dino_ray.diffusion import speed, storage
    from dino_ray.diffusion.device import pick_device
    from dino_ray.diffusion.dtypes import TORCH

    device = pick_device(config.device)
    core = "unet" if config.dtype.names("unet") else "transformer"
    speed.check_machine(options, device, TORCH[storage.compute(config.dtype, device, core)])
