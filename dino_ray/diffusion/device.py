"""Where a model runs, when the user leaves it open. Imports torch only when asked."""

from __future__ import annotations

from dino_ray.errors import UsageError


def pick_device(device: str = "auto") -> str:
    """``device`` as given, or for ``auto`` CUDA where there is one, else the CPU.

    Raises
    ------
    UsageError
        Where CUDA is asked for and there is none.
    """
    if device != "auto" and not device.startswith("cuda"):
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda" if device == "auto" else device
    if device == "auto":
        return "cpu"
    raise UsageError(f"--device {device}: this machine has no usable CUDA device; give cpu, or auto")
