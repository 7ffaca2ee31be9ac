"""What a graph connects to the node: whether it can refine tiles, and what the planner must know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dino_ray.comfy import crops
from dino_ray.comfy.levels import Levels
from dino_ray.diffusion.denoiser import Description
from dino_ray.errors import UsageError

OURS = {"euler": "euler", "ddim": "euler", "heun": "heun"}
"""Samplers of ComfyUI that are written here as well: they keep nothing between steps, so that guidance can turn a
prediction, and a place can join in late. ComfyUI's ddim is its euler."""

PATCH, COARSEST = 2, 8
"""Latents that tiles are multiples of: what transformers take for a patch; and where nothing is known."""

TILE, OVERLAP = 1024, 128
"""Of a tile, canvas_px, unless the node says otherwise."""

IMAGE_MODELS_WITH_FRAMES = ("QwenImage",)
"""Models of single images whose latents have an axis of frames, for their VAE is a video's."""


@dataclass(frozen=True)
class Wired:
    """What a graph connects to the node."""

    model: Any
    """A ``ModelPatcher``."""
    vae: Any
    positive: Any
    negative: Any
    sampler: str
    scheduler: str

    @property
    def ours(self) -> bool:
        """Whether the steps are taken here; else by ComfyUI's sampler."""
        return self.sampler in OURS


def describe(wired: Wired, tile: int = TILE, overlap: int = OVERLAP, cfg: float = 1.0) -> Description:
    """What the planner must know of a MODEL and its VAE.

    Raises
    ------
    UsageError
        Where they can't refine tiles of a picture: one sentence that says why and what to connect instead.
    """
    model, vae = wired.model, wired.vae
    if model is None:
        raise UsageError("model: none is connected; connect a checkpoint or diffusion model loader's MODEL")
    if vae is None or getattr(vae, "first_stage_model", None) is None:
        raise UsageError(
            "vae: none is connected, or the checkpoint holds none; connect a VAE loader that fits the MODEL"
        )
    latents = model.get_model_object("latent_format")
    frames = latents.latent_dimensions == 3
    if latents.latent_dimensions not in (2, 3) or vae.latent_dim not in (2, 3):
        raise UsageError("model: makes no images; connect a text-to-image MODEL and its VAE")
    if frames and type(model.model).__name__ not in IMAGE_MODELS_WITH_FRAMES:
        raise UsageError(
            "model: is a video model, whose latents have frames; connect a text-to-image MODEL and its VAE"
        )
    scale = vae.spacial_compression_encode()
    if not isinstance(scale, int) or scale != vae.spacial_compression_decode():
        raise UsageError(
            "vae: its latents are no grid of the picture and can't be tiled; connect a MODEL with a plain VAE"
        )
    if vae.latent_channels != latents.latent_channels:
        raise UsageError(
            f"vae: makes latents of {vae.latent_channels} channels, and the MODEL takes {latents.latent_channels}; "
            "connect the VAE that belongs to the MODEL"
        )
    if _wants_more(model, latents.latent_channels, frames):
        raise UsageError(
            "model: is an inpaint or edit model, which wants a mask or a picture beside the latents; connect a "
            "text-to-image MODEL"
        )
    crops.check(wired.positive, "positive")
    crops.check(wired.negative, "negative")
    levels = Levels.of(model.get_model_object("model_sampling"))
    multiple = scale * _multiple(model)
    return Description(
        name=f"ComfyUI's {type(model.model).__name__}",
        family="comfyui",
        latent_scale=scale,
        latent_channels=latents.latent_channels,
        pixel_multiple=multiple,
        tile=max(multiple, tile // multiple * multiple),
        overlap=overlap,
        steps=8,
        guidance="classifier-free",
        cfg=cfg,
        denoise=min(0.25, levels.highest),
        noise_levels=(0.0, levels.highest),
    )


def _multiple(model: Any) -> int:
    """Latents that a network's input must be a multiple of: as often as it halves it, or its patch."""
    config = getattr(getattr(model.model, "model_config", None), "unet_config", {})
    if "channel_mult" in config:
        return int(2 ** (len(config["channel_mult"]) - 1))
    return PATCH if "image_model" in config else COARSEST


def _wants_more(model: Any, channels: int, frames: bool) -> bool:
    """Whether a model takes more than latents; it is asked, for each kind has its own way to say so."""
    latents = torch.zeros(1, channels, *((1,) if frames else ()), COARSEST, COARSEST)
    try:
        found = model.model.concat_cond(noise=latents, device=latents.device, latent_image=latents)
    except Exception:  # it wanted what it was not given
        return True
    return found is not None
