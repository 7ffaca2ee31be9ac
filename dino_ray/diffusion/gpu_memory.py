"""How much of a GPU's memory is free, found out in a process of its own: run as a program, it answers in JSON.

Of its own, because asking takes half a gigabyte of that memory until the process ends; unless this one uses the GPU
already, and then knows also what of its memory it has no use for at the moment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Devices that Linux has where torch may find a GPU: NVIDIA's, AMD's, and either one's under WSL."""

PATIENCE_S = 60.0
"""For importing torch and starting CUDA."""


@dataclass(frozen=True)
class Gpu:
    """The one that a process gets first."""

    name: str
    free: int
    """Bytes."""


def look() -> Gpu | None:
    """The GPU of this machine with the least free memory: any of them may become a replica's. None: there is none."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found = ask()
        return Gpu(**found) if found else None
    if sys.platform.startswith("linux") and not any(map(os.path.exists, DRIVERS)):
        return None
    command = [sys.executable, "-m", __name__]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        found = json.loads(made.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError):
        return None  # what is wrong with it is doctor's to say
    return Gpu(**found) if found else None


def ask() -> dict[str, Any] | None:
    """As ``look``, from within a process that may use the GPUs."""
    import torch

    if not torch.cuda.is_available():
        return None

    def free_of(device: int) -> int:
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)

    free = {device: free_of(device) for device in range(torch.cuda.device_count())}
    least = min(free, key=lambda device: free[device])
    return {"name": torch.cuda.get_device_name(least), "free": free[least]}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(ask()))
