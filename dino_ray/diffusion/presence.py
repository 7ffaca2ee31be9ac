"""Whether a published model is on this machine, and what stands in for it in a plan where it is not. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from dino_ray.diffusion import published
from dino_ray.diffusion.catalogue import KNOWN, KnownModel


def known(model: str) -> KnownModel | None:
    """The model of the catalogue that an alias or a hub id names."""
    return next((each for each in KNOWN if each.repo is not None and model in (each.alias, each.repo)), None)


def is_here(repo: str) -> bool:
    """Whether the Hugging Face cache holds weights of all components of a model; asks no network."""
    import huggingface_hub

    index = huggingface_hub.try_to_load_from_cache(repo, "model_index.json")
    if not isinstance(index, str):
        return False
    named = json.loads(Path(index).read_text(encoding="utf-8"))
    parts = [part for part, cls in named.items() if isinstance(cls, list) and _has_weights(part, cls)]
    return all(any((Path(index).parent / part).glob("*.safetensors")) for part in parts)


def _has_weights(part: str, cls: list[object]) -> bool:
    return cls[0] is not None and part.startswith(("transformer", "unet", "vae", "text_encoder"))


def stand_in(model: str) -> Path | None:
    """The configuration files of a model of the catalogue that is not here; None: it is, or is none of it."""
    found = known(model)
    if found is None or found.repo is None or is_here(found.repo):
        return None
    return published.folder(found.alias)
