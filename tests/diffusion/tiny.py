"""FLUX.1 models of real classes, random weights and a few hundred kilobytes, saved as diffusers saves them.

``python tests/diffusion/tiny.py FOLDER [schnell|dev]`` writes one to try commands on.
"""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch

LATENT_CHANNELS = 16
TEXT_WIDTH = 32
CLIP_CONTEXT = 77


def make_tiny_flux(
    folder: Path | str, kind: Literal["schnell", "dev"] = "schnell", text: bool = True
) -> Path:
    """Write a tiny FLUX.1: ``schnell`` (no guidance, no shift) or ``dev`` (guidance, dynamic shift).

    One latent is 8 canvas_px and tiles are multiples of 16, as in the real ones. Without ``text`` there are
    no tokenizers and text encoders: such a folder can be loaded, but not described or prompted.
    """
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    folder = Path(folder)
    dev = kind == "dev"
    with torch.random.fork_rng():
        torch.manual_seed(7)
        transformer = FluxTransformer2DModel(
            in_channels=4 * LATENT_CHANNELS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            guidance_embeds=dev,
            axes_dims_rope=(4, 6, 6),
        )
        vae = AutoencoderKL(
            latent_channels=LATENT_CHANNELS,
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        scheduler = FlowMatchEulerDiscreteScheduler(
            shift=3.0 if dev else 1.0, use_dynamic_shifting=dev, base_shift=0.5, max_shift=1.15
        )
        parts: dict[str, Any] = {"transformer": transformer, "vae": vae, "scheduler": scheduler}
        if text:
            parts |= _text_parts()
    return save_pipeline(folder, "FluxPipeline", parts, _TEXT_NAMES)


def save_pipeline(
    folder: Path,
    pipeline: str,
    parts: dict[str, Any],
    absent: Iterable[str] = (),
    more: dict[str, Any] | None = None,
) -> Path:
    """Write components and a model_index.json, with what is absent named as such and more of its entries."""
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index = {name: [type(part).__module__.split(".")[0], type(part).__name__] for name, part in parts.items()}
    index |= {name: [None, None] for name in absent if name not in parts}
    facts = {"_class_name": pipeline, "_diffusers_version": "0.42.1", **index, **(more or {})}
    (folder / "model_index.json").write_text(json.dumps(facts, indent=2))
    return folder


_TEXT_NAMES = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def _text_parts() -> dict[str, Any]:
    clip_tokenizer, clip = clip_encoder()
    t5_tokenizer, t5 = t5_encoder()
    return {
        "text_encoder": clip,
        "text_encoder_2": t5,
        "tokenizer": clip_tokenizer,
        "tokenizer_2": t5_tokenizer,
    }


def clip_encoder(projected: bool = False) -> tuple[Any, Any]:
    """A tokenizer and a CLIP, with the projection of SDXL's second one or without."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    letters = list(string.ascii_lowercase)
    clip_words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    clip_tokenizer = CLIPTokenizer(
        vocab={word: i for i, word in enumerate(clip_words)}, merges=[], model_max_length=CLIP_CONTEXT
    )
    clip = (CLIPTextModelWithProjection if projected else CLIPTextModel)(
        CLIPTextConfig(
            vocab_size=len(clip_words),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CLIP_CONTEXT,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    return clip_tokenizer, clip


def t5_encoder(width: int = TEXT_WIDTH) -> tuple[Any, Any]:
    """A tokenizer and a T5."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    letters = list(string.ascii_lowercase)
    t5_pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((x, -3.0) for x in letters)]
    t5_tokenizer = T5TokenizerFast(vocab=t5_pieces, extra_ids=0)
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer),
            d_model=width,
            d_kv=16,
            d_ff=2 * TEXT_WIDTH,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )
    return t5_tokenizer, t5


if __name__ == "__main__":
    make_tiny_flux(*sys.argv[1:3])  # type: ignore[arg-type]
