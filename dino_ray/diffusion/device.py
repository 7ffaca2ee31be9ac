"""Where a model runs and in what precision, when the user leaves it open."""

from __future__ import annotations

import torch

from dino_ray.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str = "auto") -> str:
    """``device`` as given, or for ``auto`` CUDA where there is one, else the CPU.

    Raises
    ------
    UsageError
        Where CUDA is asked for and there is none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {device}: this machine has no usable CUDA device; give cpu, or auto")
    return device


def pick_dtype(dtype: str, device: str) -> torch.dtype:
    """The torch type of that name; ``auto`` is bfloat16, as FLUX.1 is published, on CUDA, else float32.

    Raises
    ------
    UsageError
        For a name that is none of ``auto``, ``float32``, ``bfloat16``, ``float16``.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype}: unknown; give auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]
