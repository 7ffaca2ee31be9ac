"""Arrays to a model's device and back, while it computes: nobody waits for a copy before what was copied is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Arriving: TypeAlias = "Callable[[], np.ndarray]"
"""An array that is on its way from a device: waits until it is here."""


def put(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy of an array on a device. To a GPU it goes through pinned memory, after what the GPU was given before."""
    import torch

    if device.type != "cuda":
        return torch.from_numpy(np.array(array)).to(device)  # a copy: shared arrays are read-only
    pinned = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype, pin_memory=True)
    pinned.numpy()[...] = array
    return pinned.to(device, non_blocking=True)


def fetch(tensor: Tensor) -> Arriving:
    """Begin to copy a tensor from its device, and go on: what the device is given later does not hold it up."""
    import torch

    if tensor.device.type != "cuda":
        here = tensor.cpu().numpy()
        return lambda: here
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def arrived() -> np.ndarray:
        copied.synchronize()
        return pinned.numpy()

    return arrived
