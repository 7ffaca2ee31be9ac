"""Stable Diffusion 1.x, 2.x (Rombach et al. 2022, arXiv:2112.10752) and XL (Podell et al. 2023, arXiv:2307.01952)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dino_ray.diffusion.components import TextParts
from dino_ray.diffusion.denoiser import Conditioning, Control, Description, Embeddings
from dino_ray.diffusion.families.discrete_schedule import DiscreteSchedule
from dino_ray.diffusion.families.family import Configs, Picture
from dino_ray.diffusion.families.latent_denoiser import ControlNet, LatentDenoiser, Loaded
from dino_ray.diffusion.families.stock_text import stock_pipeline
from dino_ray.diffusion.vae import KlVae, Place, TinyDecoder, Vae

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
"""What SDXL's refiner is told that it should and should not make, as its authors have it."""

BASE_NUMBERS = 6
"""SDXL's base model is told six numbers of a picture, its refiner five."""


class StableDiffusionDenoiser(LatentDenoiser):
    """A UNet and a VAE.

    Parameters
    ----------
    unet : diffusers.UNet2DConditionModel
    vae, place, description, tiny, controlnet
        As `LatentDenoiser` takes them.
    schedule : DiscreteSchedule
    zero_negative : bool
        No negative prompt is told by zeros, and not by an empty text: SDXL was trained so.
    """

    def __init__(
        self,
        unet: Any,
        vae: Vae,
        place: Place,
        schedule: DiscreteSchedule,
        description: Description,
        tiny: TinyDecoder | None = None,
        controlnet: ControlNet | None = None,
        zero_negative: bool = False,
    ) -> None:
        super().__init__(unet, vae, place, description, tiny, controlnet)
        self._schedule = schedule
        self._zero_negative = zero_negative

    def _levels(self, denoise: float, steps: int, size: tuple[int, int]) -> list[float]:
        return self._schedule.sigmas(denoise, steps)

    def _answer(self, x: Tensor, sigma: float, text: Embeddings, conditioning: Conditioning) -> Tensor:
        batch = len(x)
        added: dict[str, Any] | None = None
        if self._description.family == "sdxl":
            pooled = self._text(text, "pooled_prompt_embeds", batch)
            sizes = self._size_ids(x, pooled.shape[-1], positive=text is conditioning.text)
            added = {"text_embeds": pooled, "time_ids": sizes}
        name = "image_embeds" if text is conditioning.text else "negative_image_embeds"
        seen = self._image(conditioning, name, batch)
        shown = {} if seen is None else {"image_embeds": [seen]}
        asked = (
            self._place.put(x / _length(sigma)),
            torch.full((batch,), self._schedule.timestep(sigma), device=self.device),
            self._text(text, "prompt_embeds", batch),
        )
        answer: Tensor = self._core(
            *asked,
            added_cond_kwargs={**(added or {}), **shown} or None,
            return_dict=False,
            **self._controlled(asked, added, self._acting(conditioning, sigma)),
        )[0]
        return answer.float()

    def _controlled(
        self, asked: Sequence[Tensor], added: Mapping[str, Tensor] | None, control: Control | None
    ) -> dict[str, Any]:
        """What a ControlNet, asked the same, adds within the UNet."""
        if control is None or self._controlnet is None:
            return {}
        place = self._controlnet.place
        down, middle = self._controlnet.model(
            *map(place.put, asked),
            controlnet_cond=place.put(control.pixels),
            conditioning_scale=control.scale,
            added_cond_kwargs=None
            if added is None
            else {name: place.put(value) for name, value in added.items()},
            return_dict=False,
        )
        return {
            "down_block_additional_residuals": [self._place.put(sample) for sample in down],
            "mid_block_additional_residual": self._place.put(middle),
        }

    def _clean(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        if self._schedule.prediction == "sample":
            return answer
        if self._schedule.prediction == "epsilon":
            return (x - sigma * answer) / (1 - sigma)
        length = _length(sigma)
        return ((1 - sigma) * x / length - sigma * answer) / length

    def _negative(self, conditioning: Conditioning) -> Embeddings:
        if conditioning.negative or not self._zero_negative:
            return super()._negative(conditioning)
        return {name: torch.zeros_like(value) for name, value in conditioning.text.items()}

    def _size_ids(self, x: Tensor, pooled_width: int, *, positive: bool) -> Tensor:
        """What SDXL is told of a picture: its size, that nothing is cropped; its size again, or its beauty."""
        _, _, h, w = x.shape
        height, width = h * self._description.latent_scale, w * self._description.latent_scale
        config = self._core.config
        numbers = (
            config.projection_class_embeddings_input_dim - pooled_width
        ) // config.addition_time_embed_dim
        score = AESTHETIC_SCORE if positive else NEGATIVE_AESTHETIC_SCORE
        told = [height, width, 0, 0, *((height, width) if numbers == BASE_NUMBERS else (score,))]
        return self._place.put(torch.tensor([told], dtype=torch.float32)).expand(len(x), -1)


def _length(sigma: float) -> float:
    """By what a mix of level ``sigma`` is to be divided to have the unit variance that the network was trained on."""
    return math.hypot(sigma, 1 - sigma)


def build(loaded: Loaded, configs: Configs, description: Description) -> StableDiffusionDenoiser:
    """A Stable Diffusion model of its loaded parts."""
    return StableDiffusionDenoiser(
        loaded.models["unet"],
        KlVae(loaded.models["vae"], loaded.places["vae"]),
        loaded.places["unet"],
        DiscreteSchedule.from_config(configs["scheduler"], description.name),
        description,
        loaded.tiny(),
        loaded.controlnet(),
        zero_negative=description.negative_prompt is None,
    )


def encode_text(
    parts: TextParts, configs: Configs, prompts: Sequence[str], picture: Picture
) -> Mapping[str, Embeddings]:
    """Each prompt's embeddings, as CPU float32: ``prompt_embeds`` and, of SDXL, ``pooled_prompt_embeds``.

    Raises
    ------
    JobError
        Where a part can't be loaded.
    """
    with stock_pipeline(parts, configs) as pipeline:
        return {prompt: _encode(pipeline, prompt, parts.device) for prompt in prompts}


def _encode(pipeline: Any, prompt: str, device: str) -> Embeddings:
    made = pipeline.encode_prompt(
        prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    names = ("prompt_embeds", "pooled_prompt_embeds")
    embeddings = (made[0], made[2]) if len(made) == 4 else (made[0],)
    return {name: value.float().cpu() for name, value in zip(names, embeddings, strict=False)}
