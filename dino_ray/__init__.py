"""dino_ray: upscale images of any size with diffusion models on all your GPUs.

>>> import dino_ray
>>> image, report = dino_ray.upscale("photo.jpg", scale=2)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_ray.api import Upscaled, upscale
    from dino_ray.config import UpscaleConfig
    from dino_ray.errors import DinoRayError, JobError, UsageError
    from dino_ray.report.run import UpscaleReport

__version__ = "0.1.0"

__all__ = [
    "DinoRayError",
    "JobError",
    "UpscaleConfig",
    "UpscaleReport",
    "Upscaled",
    "UsageError",
    "__version__",
    "upscale",
]

_HOMES = {
    "DinoRayError": "errors",
    "JobError": "errors",
    "UpscaleConfig": "config",
    "UpscaleReport": "report.run",
    "Upscaled": "api",
    "UsageError": "errors",
    "upscale": "api",
}


def __getattr__(name: str) -> Any:
    # Found on first use: a command's --help must not pay for image and array libraries.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
