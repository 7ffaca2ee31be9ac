"""Models that have a short name, as data for ``dino-ray models`` and for resolving ``--model``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownModel:
    """One row of ``dino-ray models``."""

    alias: str
    """What ``--model`` takes."""
    repo: str | None
    """Hugging Face hub id; None for what ships with the package."""
    family: str
    """``flux``, ``bundled`` or ``none``."""
    needs: str
    """Hardware and downloads; sizes in bfloat16."""
    licence: str


_FLUX_NEEDS = "GPU memory 25 GB per replica, text encoders 10 GB on one worker; downloads 34 GB"
"""FLUX.1: 11.9 billion parameters in the transformer, 84 million in the VAE, 4.9 billion in CLIP and T5."""

_NON_COMMERCIAL = "FLUX.1 [dev] non-commercial licence: accept it on the model's page, then `hf auth login`"

KNOWN: tuple[KnownModel, ...] = (
    KnownModel("bundled", None, "bundled", "nothing: it ships with the package and runs on a CPU", "MIT"),
    KnownModel("none", None, "none", "nothing: resampling alone, no diffusion", "MIT"),
    KnownModel(
        "flux-schnell",
        "black-forest-labs/FLUX.1-schnell",
        "flux",
        _FLUX_NEEDS,
        "Apache 2.0; where the hub asks, accept on the model's page, then `hf auth login`",
    ),
    KnownModel("flux-dev", "black-forest-labs/FLUX.1-dev", "flux", _FLUX_NEEDS, _NON_COMMERCIAL),
    KnownModel("flux-krea", "black-forest-labs/FLUX.1-Krea-dev", "flux", _FLUX_NEEDS, _NON_COMMERCIAL),
)

ALIASES: Mapping[str, str] = {model.alias: model.repo for model in KNOWN if model.repo is not None}
"""Short names of models on the hub."""
