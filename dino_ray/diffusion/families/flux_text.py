"""FLUX.1's two text encoders: CLIP for one pooled vector, T5 for a sequence."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dino_ray.diffusion.components import TextParts
from dino_ray.diffusion.denoiser import Embeddings
from dino_ray.diffusion.families.family import Configs, Picture
from dino_ray.diffusion.families.flux_config import text_tokens

logger = logging.getLogger(__name__)


def encode_text(
    parts: TextParts, configs: Configs, prompts: Sequence[str], picture: Picture
) -> Mapping[str, Embeddings]:
    """Each prompt's embeddings, as CPU float32 tensors by the transformer's names for them.

    One encoder is in memory at a time. Padding is attended to and not masked: FLUX.1 was trained so. A prompt longer
    than the transformer's sequence is cut, with a warning.

    Raises
    ------
    JobError
        Where a part can't be loaded.
    """
    with parts.loaded("tokenizer", "text_encoder") as (tokenizer, clip):
        pooled = [
            _to_cpu(
                clip(
                    _ids(tokenizer, prompt, tokenizer.model_max_length, "CLIP").to(parts.device)
                ).pooler_output
            )
            for prompt in prompts
        ]
    del clip
    tokens = text_tokens(configs["transformer"])
    with parts.loaded("tokenizer_2", "text_encoder_2") as (tokenizer, t5):
        sequences = [
            _to_cpu(t5(_ids(tokenizer, prompt, tokens, "T5").to(parts.device)).last_hidden_state)
            for prompt in prompts
        ]
    return {
        prompt: {"prompt_embeds": sequence, "pooled_prompt_embeds": vector}
        for prompt, sequence, vector in zip(prompts, sequences, pooled, strict=True)
    }


def _ids(tokenizer: Any, prompt: str, length: int, name: str) -> Tensor:
    """Token ids (1, length), padded or cut."""
    whole = tokenizer(prompt)["input_ids"]
    if len(whole) > length:
        logger.warning("the prompt has %d tokens and %s reads %d: its end is cut", len(whole), name, length)
    ids: Tensor = tokenizer(
        prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def _to_cpu(embedding: Tensor) -> Tensor:
    return embedding.float().cpu()
