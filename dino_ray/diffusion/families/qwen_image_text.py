"""Qwen-Image's text encoder: a Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923), which for editors sees the picture."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from dino_ray.diffusion.components import TextParts
from dino_ray.diffusion.denoiser import Embeddings
from dino_ray.diffusion.families.family import Configs, Picture
from dino_ray.diffusion.families.qwen_image_config import PICTURE_AREAS, TEXT_TOKENS
from dino_ray.diffusion.families.stock_text import stock_pipeline

log = logging.getLogger(__name__)

IMAGE_TOKEN = "<|image_pad|>"
"""Stands for the picture in the prompts of Qwen2.5-VL."""


def encode_text(
    parts: TextParts, configs: Configs, prompts: Sequence[str], picture: Picture
) -> Mapping[str, Embeddings]:
    """Each prompt's embeddings, as CPU float32: ``prompt_embeds`` and ``prompt_embeds_mask``.

    An editor's are of the prompt and the whole picture, reduced as its stock pipeline does. Of text alone, what exceeds
    the pipeline's number of tokens is cut, with a warning.

    Raises
    ------
    JobError
        Where a part can't be loaded.
    """
    area = PICTURE_AREAS.get(configs["index"]["_class_name"])
    with stock_pipeline(_without_video(parts), configs) as pipeline:
        if area is None:
            return {
                prompt: _embeddings(_cut(pipeline.encode_prompt(prompt, device=parts.device)[0]))
                for prompt in prompts
            }
        pipeline.processor = PictureReader(pipeline.processor, pipeline.tokenizer)
        pipeline.text_encoder.register_forward_pre_hook(_tell_picture_tokens, with_kwargs=True)
        image = _resized(picture, area, pipeline)
        return {
            prompt: _embeddings(pipeline.encode_prompt(prompt, image, parts.device)[0]) for prompt in prompts
        }


def _embeddings(embedded: Tensor) -> Embeddings:
    embedded = embedded.float().cpu()
    return {"prompt_embeds": embedded, "prompt_embeds_mask": torch.ones(embedded.shape[:2], dtype=torch.long)}


def _cut(embedded: Tensor) -> Tensor:
    if (tokens := embedded.shape[1]) > TEXT_TOKENS:
        log.warning("the prompt has %d tokens and Qwen-Image reads %d: its end is cut", tokens, TEXT_TOKENS)
    return embedded[:, :TEXT_TOKENS]


def _resized(picture: Picture, area: int, pipeline: Any) -> PIL.Image.Image:
    """The picture at the stock pipeline's size for it: of ``area`` px, in multiples of 32."""
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions

    # Twice the side of a square leaves enough of a picture four times as wide as it is high.
    seen = PIL.Image.fromarray((picture(2 * round(area**0.5)) * 255).round().astype(np.uint8))
    width, height, _ = calculate_dimensions(area, seen.width / seen.height)
    resized: PIL.Image.Image = pipeline.image_processor.resize(seen, height, width)
    return resized


def _tell_picture_tokens(encoder: Any, args: tuple[Any, ...], told: dict[str, Any]) -> tuple[Any, Any]:
    """Say which tokens are the picture's, as transformers 5 needs and stock pipelines don't do (diffusers #14194).

    Or else it would number them like words, in one line; the model was trained with their rows and columns.
    """
    are_picture = (told["input_ids"] == encoder.config.image_token_id).int()
    return args, {"mm_token_type_ids": are_picture} | told


def _without_video(parts: TextParts) -> TextParts:
    """The processor's half for pictures alone: its other half, for videos, needs torchvision.

    And of the two that there are for pictures, the one without torchvision, so that pixels do not depend on its
    presence.
    """
    processor = {
        name: replace(files, package="transformers", cls="Qwen2VLImageProcessorPil")
        for name, files in parts.files.items()
        if name == "processor"
    }
    return replace(parts, files={**parts.files, **processor})


class PictureReader:
    """What ``transformers.Qwen2VLProcessor`` makes of pictures and prompts, which can't be made without torchvision.

    Parameters
    ----------
    images : transformers.Qwen2VLImageProcessorPil
    tokenizer : transformers.Qwen2Tokenizer
    """

    def __init__(self, images: Any, tokenizer: Any) -> None:
        self._images, self._tokenizer = images, tokenizer

    def __call__(self, text: Sequence[str], images: PIL.Image.Image, **options: Any) -> Any:
        """Prompts about one picture, each with one ``IMAGE_TOKEN`` in its place, as the model's inputs."""
        from transformers import BatchFeature

        seen = self._images(images=images, return_tensors="pt")
        tokens = int(seen["image_grid_thw"].prod()) // self._images.merge_size**2
        whole = [prompt.replace(IMAGE_TOKEN, IMAGE_TOKEN * tokens) for prompt in text]
        return BatchFeature({**self._tokenizer(whole, **options), **seen})
