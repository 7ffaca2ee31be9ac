"""Weights that wait in host memory, and come to the device that computes when they are used.

Pixels do not depend on it: what computes, and where, is the same.
"""

from __future__ import annotations

from typing import Any

import torch

from dino_ray.diffusion.model_options import Offload
from dino_ray.diffusion.storage import Kept

PIECEWISE: tuple[Offload, ...] = ("group", "sequential")
"""These move a component's blocks or layers one after the other; ``model`` moves it whole."""

HOST = torch.device("cpu")

BLOCKS_PER_GROUP = 1
"""The next block comes, on a stream of its own, while one computes: two are on the device."""


def apply(core: Any, vae: Any, device: str, how: Offload) -> None:
    """Have a denoiser's weights, now in host memory, come to ``device`` as ``how`` says.

    ``group`` leaves the VAE there, which is small beside what it computes with; ``model`` holds there whichever of the
    two was used last.
    """
    if how == "model":
        _one_or_the_other(core, vae, device)
    elif how == "group":
        piecewise(core, device, how)
        vae.to(device)
    elif how == "sequential":
        for model in (core, vae):
            piecewise(model, device, how)


def loaded_to(kept: Kept, device: str, how: Offload) -> str:
    """Where a component that computes on ``device`` is to be loaded first: bitsandbytes quantises on a GPU only."""
    return device if how == "none" or kept.package == "bitsandbytes" else str(HOST)


def piecewise(model: Any, device: str, how: Offload) -> None:
    """Have one component's weights, now in host memory, come by blocks or by layers."""
    onload = torch.device(device)
    if how == "group":
        from diffusers.hooks import apply_group_offloading

        apply_group_offloading(
            model,
            onload_device=onload,
            offload_device=HOST,
            offload_type="block_level",
            num_blocks_per_group=BLOCKS_PER_GROUP,
            use_stream=onload.type == "cuda",
        )
        return
    import accelerate

    accelerate.cpu_offload(model, onload, offload_buffers=len(model._parameters) > 0)


def _one_or_the_other(core: Any, vae: Any, device: str) -> None:
    import accelerate

    (_, core_hook), (_, vae_hook) = (
        accelerate.cpu_offload_with_hook(model, torch.device(device)) for model in (core, vae)
    )
    core_hook.hook.prev_module_hook, vae_hook.hook.prev_module_hook = vae_hook, core_hook
