"""Where a model runs and in what precision, when the user leaves it open. Imports torch only when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dino_ray.errors import UsageError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
"""As torch spells them."""


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


def pick_dtype(dtype: str, device: str) -> torch.dtype:
    """The torch type of that name; ``auto`` is bfloat16, as FLUX.1 is published, on CUDA, else float32.

    Raises
    ------
    UsageError
        For a name that is neither ``auto`` nor one of ``DTYPES``.
    """
    import torch

    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: unknown; give auto, {', '.join(DTYPES)}")
    picked: torch.dtype = getattr(torch, dtype)
    return picked
