"""Stable Diffusion models of real classes and random weights, saved as diffusers saves them.

``python tests/diffusion/tiny_stable_diffusion.py FOLDER [sd|sd-v|sdxl|sdxl-refiner]`` writes one to try commands on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import torch
from tiny import TEXT_WIDTH, clip_encoder, save_pipeline

Kind = Literal["sd", "sd-v", "sdxl", "sdxl-refiner"]
LATENT_CHANNELS = 4


def make_tiny_stable_diffusion(folder: Path | str, kind: Kind = "sd") -> Path:
    """Write a tiny model: ``sd`` predicts noise, ``sd-v`` a velocity with no signal at the end, ``sdxl`` knows sizes,
    ``sdxl-refiner`` beauty. One latent is 2 canvas_px."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    large = kind.startswith("sdxl")
    numbers = 5 if kind == "sdxl-refiner" else 6
    with torch.random.fork_rng():
        torch.manual_seed(7)
        more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": TEXT_WIDTH + 8 * numbers} if large else {}  # fmt: skip
        widths = {"sdxl": 2 * TEXT_WIDTH}
        parts = {
            "unet": UNet2DConditionModel(
                block_out_channels=(16, 32), layers_per_block=1, sample_size=32, norm_num_groups=4,
                attention_head_dim=8, cross_attention_dim=widths.get(kind, TEXT_WIDTH),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **more,
            ),
            "vae": AutoencoderKL(
                latent_channels=LATENT_CHANNELS, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                scaling_factor=0.18215,
            ),
            "scheduler": EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading",
                steps_offset=1, prediction_type="v_prediction" if kind == "sd-v" else "epsilon",
                rescale_betas_zero_snr=kind == "sd-v",
            ),
        }  # fmt: skip
        if kind != "sdxl-refiner":
            parts["tokenizer"], parts["text_encoder"] = clip_encoder(projected=False)
        if large:
            parts["tokenizer_2"], parts["text_encoder_2"] = clip_encoder(projected=True)
    names = {"sdxl": "StableDiffusionXLPipeline", "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline"}
    more = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False} if numbers == 5 else {}
    absent = {
        "sd": ("safety_checker", "feature_extractor"),
        "sdxl-refiner": ("tokenizer", "text_encoder"),
    }
    return save_pipeline(
        Path(folder),
        names.get(kind, "StableDiffusionPipeline"),
        parts,
        absent.get("sd" if not large else kind, ()),
        more,
    )


if __name__ == "__main__":
    make_tiny_stable_diffusion(*sys.argv[1:3])  # type: ignore[arg-type]
