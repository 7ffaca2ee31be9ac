"""Z-Image, Turbo and base, as ``Denoiser`` (Cai et al. 2025, arXiv:2511.22699)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dino_ray.diffusion.components import TextParts
from dino_ray.diffusion.denoiser import Conditioning, Description, Embeddings
from dino_ray.diffusion.families.family import Configs, Picture
from dino_ray.diffusion.families.flow_denoiser import FlowDenoiser
from dino_ray.diffusion.families.latent_denoiser import Loaded
from dino_ray.diffusion.families.stock_text import stock_pipeline
from dino_ray.diffusion.families.z_image_config import TEXT_TOKENS

log = logging.getLogger(__name__)


class ZImageDenoiser(FlowDenoiser):
    """A transformer and a VAE of Z-Image."""

    def _answer(self, x: Tensor, sigma: float, text: Embeddings, conditioning: Conditioning) -> Tensor:
        """The velocity ``noise - x0``: the transformer's time runs, and its answer points, from noise to picture."""
        batch = len(x)
        prompts = self._text(text, "prompt_embeds", batch)
        counts = self._text(text, "prompt_embeds_mask", batch).bool()
        towards: list[Tensor] = self._core(
            list(self._place.put(x).unsqueeze(2)),  # each (C, 1, h, w), a video of one frame
            torch.full((batch,), 1 - sigma, device=self.device),
            [prompt[count] for prompt, count in zip(prompts, counts, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(towards).squeeze(2).float()


def build(loaded: Loaded, configs: Configs, description: Description) -> ZImageDenoiser:
    """A Z-Image model of its loaded parts."""
    return ZImageDenoiser.of(loaded, configs, description)


def encode_text(
    parts: TextParts, configs: Configs, prompts: Sequence[str], picture: Picture
) -> Mapping[str, Embeddings]:
    """Each prompt's embeddings, as CPU float32: ``prompt_embeds`` and ``prompt_embeds_mask``.

    A prompt that is longer than the pipeline reads is cut, with a warning.

    Raises
    ------
    JobError
        Where a part can't be loaded.
    """
    with stock_pipeline(parts, configs) as pipeline:
        return {prompt: _encode(pipeline, prompt, parts.device) for prompt in prompts}


def _encode(pipeline: Any, prompt: str, device: str) -> Embeddings:
    (embedded,), _ = pipeline.encode_prompt(
        prompt, device=device, do_classifier_free_guidance=False, max_sequence_length=TEXT_TOKENS
    )
    if len(embedded) == TEXT_TOKENS:
        log.warning("the prompt fills the %d tokens that Z-Image reads: its end may be cut", TEXT_TOKENS)
    embedded = embedded.float().cpu()[None]
    return {"prompt_embeds": embedded, "prompt_embeds_mask": torch.ones(embedded.shape[:2], dtype=torch.long)}
