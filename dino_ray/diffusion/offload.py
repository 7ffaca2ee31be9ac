"""Weights that wait in host memory, and come to the device that computes when they are used.

Pixels do not depend on it: what computes, and where, is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dino_ray.diffusion.model_options import Offload
from dino_ray.diffusion.storage import Kept

PIECEWISE: tuple[Offload, ...] = ("group", "sequential")
"""These move a component's blocks or layers one after the other; ``model`` moves it whole."""

HOST = torch.device("cpu")

BLOCKS_PER_GROUP = 1
"""The next block comes, on a stream of its own, while one computes: two are on the device."""


def apply(models: Mapping[str, Any], core: str, device: str, how: Offload) -> None:
    """Have a denoiser's weights, now in host memory, come to ``device`` as ``how`` says.

    ``model`` holds there whichever of the core and the VAE was used last. ``group`` leaves the VAE there, which is
    small beside what it computes with. The small decoder stays: guidance looks through it between steps.

    Parameters
    ----------
    models
        By component: the ``core``, ``vae`` and, where there is one, ``controlnet``.
    """
    others = [models[part] for part in ("controlnet",) if part in models]
    if how == "model":
        _one_or_the_other(models[core], models["vae"], device)
        for model in others:
            model.to(device)
    elif how in PIECEWISE:
        for model in (models[core], *others):
            piecewise(model, device, how)
        if how == "group":
            models["vae"].to(device)
        else:
            piecewise(models["vae"], device, how)


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
    for hook in (core_hook.hook, vae_hook.hook):
        # Weights that come in inference mode could take no part in the gradients that guidance asks for later.
        hook.pre_forward = torch.inference_mode(False)(hook.pre_forward)
