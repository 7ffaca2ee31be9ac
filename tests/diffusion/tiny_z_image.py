"""Z-Image models of real classes and random weights, saved as diffusers saves them.

``python tests/diffusion/tiny_z_image.py FOLDER [turbo|base]`` writes one to try commands on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from tiny import LATENT_CHANNELS, TEXT_WIDTH, save_pipeline
from tiny_qwen_image import byte_tokenizer, lively

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if not enable_thinking %}<think></think>{% endif %}"
)


def make_tiny_z_image(folder: Path | str, kind: Literal["turbo", "base"] = "turbo") -> Path:
    """Write a tiny model. One latent is 8 canvas_px, and tiles are multiples of 16, as in the real ones."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(7)
        tokenizer, encoder = qwen3_encoder()
        parts: dict[str, Any] = {
            "transformer": ZImageTransformer2DModel(
                in_channels=LATENT_CHANNELS, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
                cap_feat_dim=TEXT_WIDTH, axes_dims=[4, 6, 6], axes_lens=[1024, 64, 64],
            ),
            "vae": AutoencoderKL(
                latent_channels=LATENT_CHANNELS, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                norm_num_groups=4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0 if kind == "turbo" else 6.0),
            "text_encoder": encoder,
            "tokenizer": tokenizer,
        }  # fmt: skip
        for token in (parts["transformer"].x_pad_token, parts["transformer"].cap_pad_token):
            torch.nn.init.normal_(token)
        lively(parts["transformer"])
    return save_pipeline(Path(folder), "ZImagePipeline", parts)


def qwen3_encoder() -> tuple[Any, Any]:
    """A tokenizer with a template for chats, and a Qwen3."""
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=1024,
    )  # fmt: skip
    return tokenizer, Qwen3Model(config)


if __name__ == "__main__":
    make_tiny_z_image(*sys.argv[1:3])  # type: ignore[arg-type]
