"""LoRAs of random weights for tiny models, as diffusers and as sd-scripts save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

RANK = 4
LAYERS = {
    "transformer": [
        "attn.to_q",
        "attn.to_v",
        "attn.add_k_proj",
        "attn.to_out.0",
        "ff.net.0.proj",
        "proj_out",
        "attn.to_qkv_mlp_proj",
        "img_mlp.net.2",
        "attention.to_k",
        "feed_forward.w2",
    ],
    "unet": ["attn1.to_q", "attn2.to_k", "attn2.to_v", "attn1.to_out.0", "conv1"],
    "text": ["q_proj", "v_proj", "fc1"],
}


def make_lora(pipeline: Any, file: Path, seed: int = 0, text: bool = True) -> Path:
    """Write a LoRA for all that a pipeline can have one for, or for its core alone, in diffusers' format."""
    from peft import LoraConfig, get_peft_model_state_dict

    layers, settings = {}, {}
    for part in pipeline._lora_loadable_modules:
        if part not in LAYERS and not text:
            continue
        model = getattr(pipeline, part)
        config = LoraConfig(
            r=RANK,
            lora_alpha=2 * RANK,
            init_lora_weights=False,
            target_modules=LAYERS.get(part, LAYERS["text"]),
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.add_adapter(config, f"made_{seed}")
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(model, adapter_name=f"made_{seed}")
        settings[f"{part}_lora_adapter_metadata"] = config.to_dict()
        model.delete_adapters(f"made_{seed}") if part in LAYERS else model.delete_adapter(f"made_{seed}")
    type(pipeline).save_lora_weights(file.parent, weight_name=file.name, **layers, **settings)
    return file


def make_kohya_lora(pipeline: Any, file: Path, seed: int = 5) -> Path:
    """Write a LoRA for a pipeline's UNet, or for some layers of FLUX's transformer, in the format of sd-scripts."""
    from safetensors.torch import save_file

    if hasattr(pipeline, "unet"):
        shapes = {
            "lora_unet_" + name.replace(".", "_"): module.weight.shape
            for name, module in pipeline.unet.named_modules()
            if name.endswith(("attn2.to_k", "attn1.to_q", "ff.net.2"))
        }
        shapes |= {
            "lora_te_text_model_" * (not hasattr(pipeline, "text_encoder_2"))
            + "lora_te1_text_model_" * hasattr(pipeline, "text_encoder_2")
            + name.replace(".", "_"): module.weight.shape
            for name, module in pipeline.text_encoder.named_modules()
            if name.endswith(("q_proj", "out_proj"))
        }
    else:
        width = pipeline.transformer.inner_dim
        shapes = {
            "lora_unet_double_blocks_0_img_attn_qkv": (3 * width, width),
            "lora_unet_double_blocks_0_txt_attn_proj": (width, width),
            "lora_unet_double_blocks_0_img_mlp_2": (width, 4 * width),
            "lora_unet_single_blocks_0_modulation_lin": (3 * width, width),
        }
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, (out, into) in shapes.items():
        weights[f"{name}.lora_down.weight"] = torch.randn(RANK, into, generator=generator)
        weights[f"{name}.lora_up.weight"] = torch.randn(out, RANK, generator=generator) / 10
        weights[f"{name}.alpha"] = torch.tensor(RANK / 2)
    save_file(weights, file)
    return file
