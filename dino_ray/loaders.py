"""How each replica gets the models that some settings need: calls that travel, and are made where the replica lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from dino_ray.config import UpscaleConfig
from dino_ray.settings import Settings

if TYPE_CHECKING:
    from dino_ray.diffusion.denoiser import Denoiser
    from dino_ray.diffusion.dtypes import Dtypes
    from dino_ray.diffusion.families.family import Picture
    from dino_ray.diffusion.image_prompt import ImageEncoder
    from dino_ray.diffusion.model_options import ModelOptions
    from dino_ray.dino.loading import Dino
    from dino_ray.engine.protocol import ReplicaSpec, TextArrays
    from dino_ray.prompts import Captioner
    from dino_ray.upsample import Upsampler


def replica_spec(config: UpscaleConfig, settings: Settings) -> ReplicaSpec:
    """How each replica loads the models that these settings need."""
    from dino_ray.engine.protocol import ReplicaSpec

    model, device = settings.model_place, config.device
    takes_text = settings.model is not None and settings.model.takes_text
    return ReplicaSpec(
        upsampler=partial(_load_upsampler, settings.base, device),
        denoiser=partial(
            _load_denoiser,
            model,
            device,
            settings.dtype,
            settings.dino_adapter,
            settings.sketch,
            settings.model_options,
        )
        if settings.model
        else None,
        dino=partial(_load_dino, settings.dino, device) if settings.dino else None,
        text=partial(_encode_text, model, device, settings.dtype, settings.model_options)
        if takes_text
        else None,
        image=partial(_load_image_encoder, settings.model_options, device, settings.dtype)
        if settings.image_prompt
        else None,
        captioner=partial(_find_captioner, settings.captioner) if settings.captioner else None,
        threads=config.threads,
        torch=settings.model is not None or settings.base == "net",
    )


def _load_upsampler(base: str, device: str) -> Upsampler:
    from dino_ray import upsample

    if base == "lanczos":
        return upsample.Lanczos()
    from dino_ray.diffusion.loading import pick_device

    return upsample.load_net(pick_device(device))


def _load_denoiser(
    model: str, device: str, dtype: Dtypes, adapter: str | None, sketch: str | None, options: ModelOptions
) -> Denoiser:
    from dino_ray.diffusion import loading

    return loading.load(model, device, dtype, adapter, sketch=sketch, options=options)


def _load_image_encoder(options: ModelOptions, device: str, dtype: Dtypes) -> ImageEncoder:
    from dino_ray.diffusion import loading

    assert options.image_prompt is not None
    return loading.load_image_encoder(options.image_prompt, device, dtype)


def _load_dino(name: str, device: str) -> Dino:
    from dino_ray.diffusion.loading import pick_device
    from dino_ray.dino import loading

    return loading.load(name, pick_device(device))


def _encode_text(
    model: str, device: str, dtype: Dtypes, options: ModelOptions, prompts: Sequence[str], picture: Picture
) -> Mapping[str, TextArrays]:
    from dino_ray.diffusion import loading

    encoded = loading.encode_texts(model, prompts, device, dtype, picture=picture, options=options)
    return {
        prompt: {name: value.numpy() for name, value in embeddings.items()}
        for prompt, embeddings in encoded.items()
    }


def _find_captioner(name: str) -> Captioner:
    from dino_ray.prompts import find_captioner

    return find_captioner(name)
