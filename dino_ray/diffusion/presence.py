"""Whether a published model is on this machine, and what stands in for it in a plan where it is not. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dino_ray.diffusion import model_files, published
from dino_ray.diffusion.catalogue import KNOWN, KnownModel
from dino_ray.diffusion.sizing import Sizes, sizes


def known(model: str) -> KnownModel | None:
    """The model of the catalogue that an alias or a hub id names."""
    return next((each for each in KNOWN if each.repo is not None and model in (each.alias, each.repo)), None)


@dataclass(frozen=True)
class Absent:
    """A published model that is not on this machine."""

    folder: Path
    """Its configuration files, which describe it as well."""
    download_bytes: int
    """Of its weights."""


def absent(model: str) -> Absent | None:
    """What is known of a model of the catalogue that is not here; None: it is here, or is none of them."""
    found = known(model)
    if found is None or found.repo is None or model_files.is_present(found.repo):
        return None
    folder = published.folder(found.alias)
    if folder is None:
        return None
    return Absent(folder, download_bytes(found, sizes(model_files.resolve(str(folder)))))


def download_bytes(model: KnownModel, found: Sizes) -> int:
    """Of a model's weights as they are published."""
    parts = {found.family.core: found.core, "vae": found.vae, **found.text}
    return sum(model.stored_bytes(name) * part.count.parameters for name, part in parts.items())
