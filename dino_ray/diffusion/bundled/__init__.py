"""The small model that ships with the package: a real FLUX transformer over a lossless latent transform.

See ``MODEL_CARD.md`` beside this file. A folder that ``scripts/train_bundled.py`` wrote has the same format
and serves as ``--model FOLDER``. Importing this package imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dino_ray.diffusion.bundled.spec import FOLDER, Spec, is_bundled, read_spec

if TYPE_CHECKING:
    from dino_ray.diffusion.bundled.model import BundledDenoiser
    from dino_ray.diffusion.denoiser import Description

__all__ = ["FOLDER", "Spec", "describe", "is_bundled", "load", "read_spec"]


def describe(folder: Path | str | None = None) -> Description:
    """What the planner must know of the model in ``folder`` (None: the one that ships), without its weights.

    Raises
    ------
    UsageError
        The folder holds no model of this format.
    """
    return read_spec(folder).description()


def load(folder: Path | str | None = None, device: str = "cpu", dtype: str = "float32") -> BundledDenoiser:
    """Load the model in ``folder`` (None: the one that ships); imports torch and diffusers.

    Raises
    ------
    UsageError
        The folder holds no model of this format, or weights that do not fit it.
    """
    from dino_ray.diffusion.bundled.model import load_model

    return load_model(read_spec(folder), device, dtype)
