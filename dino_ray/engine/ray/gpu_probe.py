"""What torch makes of this machine's GPUs, found out in a process of its own: run as a program, it answers in JSON.

Of its own, because asking takes GPU memory until the process ends, a broken driver may end it sooner, and Ray hides the
GPUs from workers that hold none.
"""

from __future__ import annotations

import json
import sys


def trouble_with(gpus: int) -> str:
    """Why torch can't use ``gpus`` GPUs here; empty if it can."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a build for CPUs; install one for CUDA there"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return f"torch {torch.__version__} can't start CUDA {torch.version.cuda}: {_gist(error)}"
    if torch.cuda.device_count() < gpus:
        return f"torch sees {torch.cuda.device_count()} of {gpus}"
    for device in range(gpus):
        try:  # a card that is too old, or too new, for this build fails only at its first kernel
            torch.ones(1, device=f"cuda:{device}").add_(1).item()
        except RuntimeError as error:
            return f"{torch.cuda.get_device_name(device)}: {_gist(error)}"
    return ""


def _gist(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


if __name__ == "__main__":
    sys.stdout.write(json.dumps(trouble_with(int(sys.argv[1]))))
