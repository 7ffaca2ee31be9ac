"""By which layers LoRAs for each family are known: as diffusers names them, or as the family's authors do. No torch.

Dots are underscores, as sd-scripts writes them; what a name ends with is left open.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from dino_ray.diffusion.lora_file import LoraLayers

Config = Mapping[str, Any]


def _heads(heads: int, head_dim: int = 128) -> Callable[[Config], int]:
    """Width of a transformer whose config does not say otherwise."""
    return lambda config: (
        int(config.get("num_attention_heads", heads)) * int(config.get("attention_head_dim", head_dim))
    )


def _flux_blocks(double: int, single: int) -> Callable[[Config], Mapping[str, int]]:
    def blocks(config: Config) -> Mapping[str, int]:
        doubles = int(config.get("num_layers", double))
        singles = int(config.get("num_single_layers", single))
        return {
            "transformer_blocks": doubles,
            "double_blocks": doubles,
            "single_transformer_blocks": singles,
            "single_blocks": singles,
        }

    return blocks


def unet_text_width(config: Config) -> int:
    """Channels of the text that a UNet's cross-attention reads."""
    return int(config["cross_attention_dim"])


UNET = LoraLayers(
    names=re.compile(
        r"(down_blocks|up_blocks|input_blocks|output_blocks)_\d+_|mid_block_|middle_block_"
        r"|(conv_in|conv_out|time_embedding|add_embedding|time_embed|label_emb|out)(_|$)"
    ),
    probe=re.compile(r".*_attn2_to_[kv]$"),
    width=unet_text_width,
    published={
        768: "Stable Diffusion 1.x",
        1024: "Stable Diffusion 2.x",
        2048: "Stable Diffusion XL",
        1280: "Stable Diffusion XL's refiner",
    },
    comfy_as_kohya=True,
)
"""The width of the text tells them apart."""

FLUX = LoraLayers(
    names=re.compile(
        r"single_transformer_blocks_\d+_(attn_to_[qkv]$|proj_|norm)"
        r"|transformer_blocks_\d+_(attn_|ff_|norm)|(single|double)_blocks_\d+_"
        r"|(x_embedder|img_in|txt_in|time_in|vector_in|guidance_in|final_layer|context_embedder|time_text_embed|proj_out"
        r"|norm_out)(_|$)"
    ),
    probe=re.compile(
        r"(single_transformer_blocks_\d+_(attn_to_[qkv]|proj_mlp)|transformer_blocks_\d+_attn_(to_[qkv]|add_[qkv]_proj))$"
        r"|single_blocks_\d+_linear1$|double_blocks_\d+_img_(attn_qkv|mlp_0)$"
    ),
    width=_heads(24),
    published={3072: "FLUX.1"},
    comfy_as_kohya=True,
    blocks=_flux_blocks(19, 38),
)

FLUX_2 = LoraLayers(
    names=re.compile(
        r"single_transformer_blocks_\d+_(attn_to_qkv_mlp_proj|attn_to_out)"
        r"|transformer_blocks_\d+_(attn_|ff_)|(single|double)_blocks_\d+_"
        r"|(x_embedder|img_in|txt_in|time_in|guidance_in|final_layer|context_embedder|time_guidance_embed|proj_out"
        r"|norm_out|(double|single)_stream_modulation)(_|$)"
    ),
    probe=re.compile(
        r"single_transformer_blocks_\d+_attn_to_qkv_mlp_proj$|transformer_blocks_\d+_attn_(to_[qkv]|add_[qkv]_proj)$"
        r"|single_blocks_\d+_linear1$|double_blocks_\d+_img_(attn_qkv|mlp_0)$"
    ),
    width=_heads(48),
    published={6144: "FLUX.2 dev", 4096: "FLUX.2 klein 9B", 3072: "FLUX.2 klein 4B"},
    blocks=_flux_blocks(8, 48),
)

STABLE_DIFFUSION_3 = LoraLayers(
    names=re.compile(
        r"transformer_blocks_\d+_(attn2?_|ff_|norm)|joint_blocks_\d+_|(context_embedder|proj_out)(_|$)"
    ),
    probe=re.compile(
        r"transformer_blocks_\d+_attn_(to_[qkv]|add_[qkv]_proj)$|joint_blocks_\d+_x_block_attn_qkv$"
    ),
    width=_heads(18, 64),
    published={1536: "Stable Diffusion 3 medium", 2432: "Stable Diffusion 3.5 large"},
    blocks=lambda config: dict.fromkeys(
        ("transformer_blocks", "joint_blocks"), int(config.get("num_layers", 18))
    ),
)

QWEN_IMAGE = LoraLayers(
    names=re.compile(r"transformer_blocks_\d+_(attn_|img_m|txt_m)|(img_in|txt_in|proj_out|norm_out)(_|$)"),
    probe=re.compile(
        r"transformer_blocks_\d+_(attn_(to_[qkv]|add_[qkv]_proj)|(img|txt)_(mod_1|mlp_net_0_proj))$"
    ),
    width=_heads(24),
    published={3072: "Qwen-Image"},
    blocks=lambda config: {"transformer_blocks": int(config.get("num_layers", 60))},
)

Z_IMAGE = LoraLayers(
    names=re.compile(r"(layers|noise_refiner|context_refiner)_\d+_(attention|feed_forward|adaLN_modulation)"),
    probe=re.compile(r"(layers|noise_refiner|context_refiner)_\d+_attention_(to_[qkv]|qkv)$"),
    width=lambda config: int(config.get("dim", 3840)),
    published={3840: "Z-Image"},
    blocks=lambda config: {"layers": int(config.get("n_layers", 30))},
)

KNOWN = (FLUX, UNET, STABLE_DIFFUSION_3, QWEN_IMAGE, Z_IMAGE, FLUX_2)
"""To say what a LoRA is for, whether that is driven here or not."""
