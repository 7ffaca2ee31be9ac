"""Models of image prompts of real classes and random weights, in the formats that they are published in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

SIDE = 32
CLIP_WIDTH, CLIP_PROJECTION = 32, 24
TOKENS = 4
HEAD = 64


def make_clip_vision(folder: Path, seed: int = 0) -> Path:
    """Write what an IP-Adapter looks through."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=CLIP_WIDTH, intermediate_size=48, projection_dim=CLIP_PROJECTION, num_hidden_layers=3,
                num_attention_heads=2, image_size=SIDE, patch_size=8, initializer_range=0.3,
            )
        ).save_pretrained(folder)  # fmt: skip
    return folder


def make_redux(folder: Path, width: int) -> Path:
    """Write a FLUX.1 Redux that makes tokens of a width."""
    from diffusers import FluxPriorReduxPipeline
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

    with torch.random.fork_rng():
        torch.manual_seed(3)
        vision = SiglipVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            image_size=SIDE, patch_size=8,
        )  # fmt: skip
        FluxPriorReduxPipeline(
            SiglipVisionModel(vision),
            SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}),
            ReduxImageEncoder(redux_dim=16, txt_in_features=width),
        ).save_pretrained(folder)
    return folder


def make_ip_adapter(file: Path, core: Any, kind: Literal["plain", "plus"] = "plain") -> Path:
    """Write an IP-Adapter for a UNet, as its authors do, or for a FLUX transformer, as XLabs do; and its CLIP."""
    from safetensors.torch import save_file

    make_clip_vision(file.parent / "image_encoder")
    flux = hasattr(core, "transformer_blocks")
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    reads = core.config.joint_attention_dim if flux else core.config.cross_attention_dim
    look = {
        "proj.weight": draw(TOKENS * reads, CLIP_PROJECTION),
        "proj.bias": draw(TOKENS * reads),
        "norm.weight": 1 + draw(reads),
        "norm.bias": draw(reads),
    }
    if kind == "plus":
        look = {
            "latents": draw(1, TOKENS, HEAD),
            "proj_in.weight": draw(HEAD, CLIP_WIDTH),
            "proj_in.bias": draw(HEAD),
            "proj_out.weight": draw(reads, HEAD),
            "proj_out.bias": draw(reads),
            "norm_out.weight": 1 + draw(reads),
            "norm_out.bias": draw(reads),
        }
        for i in range(4):  # as many as diffusers knows
            layer = f"layers.{i}"
            look |= {
                f"{layer}.0.to_q.weight": draw(HEAD, HEAD),
                f"{layer}.0.to_kv.weight": draw(2 * HEAD, HEAD),
                f"{layer}.0.to_out.weight": draw(HEAD, HEAD),
                f"{layer}.1.1.weight": draw(4 * HEAD, HEAD),
                f"{layer}.1.3.weight": draw(HEAD, 4 * HEAD),
            }
            for norm in ("0.norm1", "0.norm2", "1.0"):
                look |= {f"{layer}.{norm}.weight": 1 + draw(HEAD), f"{layer}.{norm}.bias": draw(HEAD)}
    weights = {
        f"{'ip_adapter_proj_model' if flux else 'image_proj'}.{name}": value for name, value in look.items()
    }
    if flux:
        for i in range(len(core.transformer_blocks)):
            for which in "kv":
                name = f"double_blocks.{i}.processor.ip_adapter_double_stream_{which}_proj"
                weights |= {
                    f"{name}.weight": draw(core.inner_dim, reads),
                    f"{name}.bias": draw(core.inner_dim),
                }
    else:
        number = 1
        for name in core.attn_processors:
            if "attn2" in name:
                hidden = core.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
                for which in "kv":
                    weights[f"ip_adapter.{number}.to_{which}_ip.weight"] = 3 * draw(hidden, reads)
                number += 2
    save_file(weights, file)
    return file
