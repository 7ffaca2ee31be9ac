"""FLUX.2 (dev, klein) as a ``Denoiser``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dino_ray.diffusion.components import TextParts
from dino_ray.diffusion.denoiser import Conditioning, Description, Embeddings
from dino_ray.diffusion.families.family import Configs, Picture
from dino_ray.diffusion.families.flow_denoiser import FlowDenoiser
from dino_ray.diffusion.families.flux import picture_tokens, unpack
from dino_ray.diffusion.families.flux2_config import KLEIN_PIPELINE, KV_PIPELINE, mu
from dino_ray.diffusion.families.latent_denoiser import Loaded
from dino_ray.diffusion.families.stock_text import stock_pipeline
from dino_ray.diffusion.vae import BatchNormVae

log = logging.getLogger(__name__)

REFERENCE = 10.0
"""First rotary coordinate of the reference's tokens; a second reference would have 20."""


class Flux2Denoiser(FlowDenoiser):
    """A transformer and a VAE of FLUX.2, with the base as its reference.

    Positions have four coordinates: picture, row, column and, of text, place in the prompt.
    """

    vae_class = BatchNormVae

    def _answer(self, x: Tensor, sigma: float, text: Embeddings, conditioning: Conditioning) -> Tensor:
        """The velocity ``noise - x0`` of the picture's tokens, which come before the reference's."""
        _, _, h, w = x.shape
        tokens, positions = picture_tokens(x, conditioning.reference, REFERENCE, self.device)
        velocity = self._ask(tokens, pad(positions, (0, 1)), sigma, text, conditioning)
        return unpack(velocity[:, : len(positions) // 2].float(), h, w)

    def _ask(
        self,
        tokens: Tensor,
        positions: Tensor,
        sigma: float,
        text: Embeddings,
        conditioning: Conditioning,
        **more: Any,
    ) -> Tensor:
        batch = len(tokens)
        prompt = self._text(text, "prompt_embeds", batch)
        words = torch.arange(prompt.shape[1], device=self.device, dtype=torch.float32)
        velocity: Tensor = self._core(
            hidden_states=self._place.put(tokens),
            timestep=torch.full((batch,), sigma, device=self.device),
            guidance=torch.full((batch,), self._scale(conditioning), device=self.device)
            if self._description.guidance == "embedded"
            else None,
            encoder_hidden_states=prompt,
            txt_ids=pad(words[:, None], (3, 0)),
            img_ids=positions,
            return_dict=False,
            **more,
        )[0]
        return velocity


class Flux2KvDenoiser(Flux2Denoiser):
    """A klein whose reference comes first, attends to itself alone and counts as clean.

    What is computed of the reference is then the same at every step. Here it is computed anew, for steps share nothing.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from diffusers.models.transformers.transformer_flux2 import (
            Flux2KVAttnProcessor,
            Flux2KVParallelSelfAttnProcessor,
        )

        super().__init__(*args, **kwargs)
        for block in self._core.transformer_blocks:
            block.attn.set_processor(Flux2KVAttnProcessor())
        for block in self._core.single_transformer_blocks:
            block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())

    def _answer(self, x: Tensor, sigma: float, text: Embeddings, conditioning: Conditioning) -> Tensor:
        """As of any FLUX.2; the transformer leaves out the reference's tokens by itself."""
        _, _, h, w = x.shape
        tokens, positions = picture_tokens(x, conditioning.reference, REFERENCE, self.device)
        own = len(positions) // 2
        velocity = self._ask(
            tokens.roll(own, dims=1),
            pad(positions, (0, 1)).roll(own, dims=0),
            sigma,
            text,
            conditioning,
            kv_cache_mode="extract",
            num_ref_tokens=own,
        )
        return unpack(velocity.float(), h, w)


def build(loaded: Loaded, configs: Configs, description: Description) -> Flux2Denoiser:
    """A FLUX.2 model of its loaded parts."""
    kind = Flux2KvDenoiser if configs["index"].get("_class_name") == KV_PIPELINE else Flux2Denoiser
    return kind.of(loaded, configs, description, mu)


def encode_text(
    parts: TextParts, configs: Configs, prompts: Sequence[str], picture: Picture
) -> Mapping[str, Embeddings]:
    """Each prompt's embeddings, as CPU float32: three layers of a language model, Mistral or Qwen3, side by side.

    Raises
    ------
    JobError
        Where a part can't be loaded.
    """
    if configs["index"]["_class_name"] == KV_PIPELINE:  # which can't be made without its transformer
        configs = {**configs, "index": {**configs["index"], "_class_name": KLEIN_PIPELINE}}
    with stock_pipeline(_reading(parts), configs) as pipeline:
        pipeline.text_encoder.register_forward_pre_hook(_warn_of_a_cut, with_kwargs=True)
        return {
            prompt: {"prompt_embeds": pipeline.encode_prompt(prompt, device=parts.device)[0].float().cpu()}
            for prompt in prompts
        }


def _warn_of_a_cut(model: Any, args: object, asked: Mapping[str, Tensor]) -> None:
    """Say where a prompt has left no padding: the pipeline cuts without a word."""
    if bool(asked["attention_mask"].all()):
        tokens = asked["attention_mask"].shape[1]
        log.warning("the prompt fills the %d tokens that FLUX.2 reads: its end may be cut", tokens)


def _reading(parts: TextParts) -> TextParts:
    """The same, but that a processor of text and pictures is its tokenizer alone.

    The other half, which is not asked for, needs torchvision; the tokenizer lies in the same folder, with the chat's
    template, and makes the same of a prompt.
    """
    tokenizer = parts.files["tokenizer"]
    if not tokenizer.cls.endswith("Processor"):
        return parts
    return replace(parts, files={**parts.files, "tokenizer": replace(tokenizer, cls="AutoTokenizer")})
