"""Writes random checkpoints that ComfyUI takes for SD1.5, SDXL and FLUX: run by ComfyUI's Python.

Its detection wants real widths, and counts blocks and channels: so these are as shallow and narrow as it lets them be.

python checkpoints.py COMFYUI MODELS sd15|sdxl|flux
"""

from __future__ import annotations

import sys
from pathlib import Path

SEED = 7
SPREAD = 0.02
"""Standard deviation of weights: small enough that signals neither die nor explode."""


def main(comfyui: str, models: str, kind: str) -> None:
    sys.path.insert(0, comfyui)
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(SEED)

    def randomised(model: torch.nn.Module, dtype: torch.dtype, prefix: str = "") -> dict[str, torch.Tensor]:
        made = {}
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                made[prefix + name] = value.clone()
                continue
            norm = (value.ndim == 1 and name.endswith("weight")) or name.endswith(".scale")
            noise = SPREAD * torch.randn(value.shape)
            made[prefix + name] = (noise + 1 if norm else noise).to(dtype).contiguous()
        return made

    def write(state: dict[str, torch.Tensor], folder: str, name: str) -> None:
        path = Path(models) / folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, path)

    import comfy.ops

    operations = comfy.ops.disable_weight_init
    if kind in ("sd15", "sdxl"):
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        large = kind == "sdxl"
        shape = {
            "image_size": 32,
            "in_channels": 4,
            "model_channels": 320,
            "num_res_blocks": [2, 2, 2] if large else [1, 1],
            "channel_mult": [1, 1, 1] if large else [1, 1],
            "transformer_depth": [0, 0, 2, 2, 10, 10] if large else [1, 1],
            "transformer_depth_middle": 10 if large else 1,
            "num_heads": -1 if large else 8,
            "num_head_channels": 64 if large else -1,
            "use_spatial_transformer": True,
            "use_linear_in_transformer": large,
            "context_dim": 2048 if large else 768,
            "adm_in_channels": 2816 if large else None,
            "num_classes": "sequential" if large else None,
            "legacy": False,
            "dtype": torch.float32,
            "device": "cpu",
            "operations": operations,
        }
        unet = UNetModel(
            out_channels=4,
            transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10] if large else [1, 1, 1, 1],
            **shape,
        )
        state = randomised(unet, torch.float16, "" if large else "model.diffusion_model.")
        if not large:
            from comfy.cldm.cldm import ControlNet

            write(randomised(ControlNet(hint_channels=3, **shape), torch.float16), "controlnet", kind)
            layer = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_v"
            lora = {
                f"{layer}.lora_up.weight": torch.randn(320, 4),
                f"{layer}.lora_down.weight": torch.randn(4, 768),
            }
            write(lora, "loras", kind)
            from comfy.ldm.models.autoencoder import AutoencoderKL

            vae = AutoencoderKL(
                embed_dim=4,
                ddconfig={
                    "double_z": True,
                    "z_channels": 4,
                    "resolution": 256,
                    "in_channels": 3,
                    "out_ch": 3,
                    "ch": 128,
                    "ch_mult": [1, 2, 4, 4],
                    "num_res_blocks": 2,
                    "attn_resolutions": [],
                    "dropout": 0.0,
                },
            )
            state |= randomised(vae, torch.float16, "first_stage_model.")
            import comfy.sd1_clip

            clip = comfy.sd1_clip.SD1ClipModel(device="cpu", dtype=torch.float32)
            text = randomised(clip, torch.float16)
            state |= {name.replace("clip_l.", "cond_stage_model.", 1): value for name, value in text.items()}
        write(state, "diffusion_models" if large else "checkpoints", kind)
    else:
        from comfy.ldm.flux.model import Flux

        flux = Flux(
            image_model="flux",
            in_channels=16,
            out_channels=16,
            patch_size=2,
            vec_in_dim=768,
            context_in_dim=4096,
            hidden_size=3072,
            mlp_ratio=4.0,
            num_heads=24,
            depth=1,
            depth_single_blocks=1,
            axes_dim=[16, 56, 56],
            theta=10000,
            qkv_bias=True,
            guidance_embed=False,
            dtype=torch.bfloat16,
            device="cpu",
            operations=operations,
        )
        write(randomised(flux, torch.bfloat16), "diffusion_models", kind)
    if kind != "sd15":
        from comfy.taesd.taesd import TAESD

        tiny = TAESD(latent_channels=4 if kind == "sdxl" else 16)
        write(randomised(tiny, torch.float32), "vae", f"{kind}-tiny")


if __name__ == "__main__":
    main(*sys.argv[1:])
