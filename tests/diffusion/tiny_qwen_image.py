"""Qwen-Image models and editors of real classes and random weights, saved as diffusers saves them.

``python tests/diffusion/tiny_qwen_image.py FOLDER [qwen-image|edit|edit-plus]`` writes one to try commands on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from tiny import LATENT_CHANNELS, TEXT_WIDTH, save_pipeline

Kind = Literal["qwen-image", "edit", "edit-plus"]

PIPELINES = {
    "qwen-image": "QwenImagePipeline",
    "edit": "QwenImageEditPipeline",
    "edit-plus": "QwenImageEditPlusPipeline",
}
SPECIAL_TOKENS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


def make_tiny_qwen_image(folder: Path | str, kind: Kind = "qwen-image") -> Path:
    """Write a tiny model; ``edit-plus`` lets its reference pass at time 0, as that of 2511 does. One latent is 8
    canvas_px, and tiles are multiples of 16, as in the real ones."""
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel

    folder = Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        tokenizer, encoder = qwen_vl_encoder()
        parts: dict[str, Any] = {
            "transformer": QwenImageTransformer2DModel(
                in_channels=4 * LATENT_CHANNELS, out_channels=LATENT_CHANNELS, num_layers=2, attention_head_dim=16,
                num_attention_heads=2, joint_attention_dim=TEXT_WIDTH, axes_dims_rope=(4, 6, 6),
                zero_cond_t=kind == "edit-plus",
            ),
            "vae": AutoencoderKLQwenImage(base_dim=8, z_dim=LATENT_CHANNELS, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
            "scheduler": FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256,
                max_image_seq_len=8192, shift_terminal=0.02,
            ),
            "text_encoder": encoder,
            "tokenizer": tokenizer,
        }  # fmt: skip
        lively(parts["transformer"])
    processor = {}
    if kind != "qwen-image":
        from transformers import Qwen2VLImageProcessorPil

        processor = {"processor": ["transformers", "Qwen2VLProcessor"]}  # whose own saving needs torchvision
        for half in (Qwen2VLImageProcessorPil(), tokenizer):
            half.save_pretrained(folder / "processor")
    return save_pipeline(folder, PIPELINES[kind], parts, more=processor)


def lively(transformer: torch.nn.Module) -> None:
    """Make tokens heed one another as those of trained models do: fresh weights hardly mix them."""
    for name, weights in transformer.named_parameters():
        if weights.ndim == 2 and any(part in name for part in ("to_v", "to_out", "add_v_proj", "to_add_out")):
            weights.data *= 6


def byte_tokenizer() -> Any:
    """A Qwen2 tokenizer of bytes and special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    vocab = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    return Qwen2Tokenizer(vocab=vocab, merges=[], extra_special_tokens=SPECIAL_TOKENS, model_max_length=4096)


def qwen_vl_encoder() -> tuple[Any, Any]:
    """A tokenizer and a Qwen2.5-VL that looks at pictures."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = byte_tokenizer()
    number = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": TEXT_WIDTH, "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 4096, "pad_token_id": number("<|endoftext|>"),
            "bos_token_id": number("<|im_start|>"), "eos_token_id": number("<|im_end|>"),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2, "hidden_size": TEXT_WIDTH, "intermediate_size": 2 * TEXT_WIDTH, "num_heads": 2,
            "out_hidden_size": TEXT_WIDTH, "fullatt_block_indexes": [1],
        },
        image_token_id=number("<|image_pad|>"), video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"), vision_end_token_id=number("<|vision_end|>"),
    )  # fmt: skip
    return tokenizer, Qwen2_5_VLForConditionalGeneration(config)


if __name__ == "__main__":
    make_tiny_qwen_image(*sys.argv[1:3])  # type: ignore[arg-type]
