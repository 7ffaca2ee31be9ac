"""FLUX.1's two text encoders: CLIP for one pooled vector, T5 for a sequence."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from dino_ray.errors import JobError

logger = logging.getLogger(__name__)


def encode(
    folder: Path, prompt: str, t5_tokens: int, device: str, dtype: torch.dtype
) -> Mapping[str, Tensor]:
    """The prompt's embeddings, as CPU float32 tensors by the transformer's names for them.

    One encoder is in memory at a time. Padding is attended to and not masked: FLUX.1 was trained so.

    Parameters
    ----------
    folder : Path
        Holds ``tokenizer``, ``tokenizer_2``, ``text_encoder`` and ``text_encoder_2``.
    prompt : str
    t5_tokens : int
        Length of the T5 sequence; a longer prompt is cut, with a warning.
    device : str
    dtype : torch.dtype

    Raises
    ------
    JobError
        Where a part can't be loaded.
    """
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

    with _loading(folder, "tokenizer, text_encoder"):
        clip_tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        clip = _encoder(CLIPTextModel, folder / "text_encoder", device, dtype)
    ids = _ids(clip_tokenizer, prompt, clip_tokenizer.model_max_length, "CLIP")
    pooled = _to_cpu(clip(ids.to(device)).pooler_output)
    del clip

    with _loading(folder, "tokenizer_2, text_encoder_2"):
        t5_tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer_2", local_files_only=True)
        t5 = _encoder(T5EncoderModel, folder / "text_encoder_2", device, dtype)
    ids = _ids(t5_tokenizer, prompt, t5_tokens, "T5")
    sequence = _to_cpu(t5(ids.to(device)).last_hidden_state)
    del t5
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # a replica may load on the same device next
    return {"prompt_embeds": sequence, "pooled_prompt_embeds": pooled}


def _encoder(cls: Any, folder: Path, device: str, dtype: torch.dtype) -> Any:
    model, info = cls.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):  # or else they would stay random
        raise ValueError(f"its weights lack {missing[0]}")
    return model.to(device).eval().requires_grad_(False)


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


@contextmanager
def _loading(folder: Path, parts: str) -> Iterator[None]:
    """Load quietly, for this program draws its own progress; and say what it was where it fails."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise JobError(
            f"{folder}: {parts} can't be loaded ({reason}); download the model again whole"
        ) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
