"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv:2403.03206)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dino_ray.diffusion.components import TextParts
from dino_ray.diffusion.denoiser import Conditioning, Description, Embeddings
from dino_ray.diffusion.families.family import Configs, Picture
from dino_ray.diffusion.families.flow_denoiser import FlowDenoiser
from dino_ray.diffusion.families.latent_denoiser import Loaded
from dino_ray.diffusion.families.stock_text import stock_pipeline

TIMESTEPS = 1000
"""What the transformer takes for a noise level of 1."""


class StableDiffusion3Denoiser(FlowDenoiser):
    """A transformer and a VAE of Stable Diffusion 3."""

    def _answer(self, x: Tensor, sigma: float, text: Embeddings, conditioning: Conditioning) -> Tensor:
        batch = len(x)
        velocity: Tensor = self._core(
            hidden_states=self._place.put(x),
            timestep=torch.full((batch,), sigma * TIMESTEPS, device=self.device),
            encoder_hidden_states=self._text(text, "prompt_embeds", batch),
            pooled_projections=self._text(text, "pooled_prompt_embeds", batch),
            return_dict=False,
        )[0]
        return velocity.float()


def build(loaded: Loaded, configs: Configs, description: Description) -> StableDiffusion3Denoiser:
    """A Stable Diffusion 3 model of its loaded parts."""
    return StableDiffusion3Denoiser.of(loaded, configs, description)


def encode_text(
    parts: TextParts, configs: Configs, prompts: Sequence[str], picture: Picture
) -> Mapping[str, Embeddings]:
    """Each prompt's embeddings, as CPU float32: CLIP's and T5's tokens in one sequence, and CLIP's pooled vectors.

    All three encoders are in memory at once: without T5, the largest, they would take a sixth of that.

    Raises
    ------
    JobError
        Where a part can't be loaded.
    """
    with stock_pipeline(parts, configs) as pipeline:
        # Where there is no T5, the pipeline asks the transformer how wide its tokens would be.
        pipeline.transformer = SimpleNamespace(config=SimpleNamespace(**configs["transformer"]))
        return {prompt: _encode(pipeline, prompt, parts.device) for prompt in prompts}


def _encode(pipeline: Any, prompt: str, device: str) -> Embeddings:
    tokens, _, pooled, _ = pipeline.encode_prompt(
        prompt, prompt_2=None, prompt_3=None, device=device, do_classifier_free_guidance=False
    )
    return {"prompt_embeds": tokens.float().cpu(), "pooled_prompt_embeds": pooled.float().cpu()}
