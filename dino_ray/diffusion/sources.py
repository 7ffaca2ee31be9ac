"""Which model each component of a model comes from, and what its configuration files say. No torch.

A model in a folder or on the hub has all its components beside one another. One of a single file gets what the file
lacks from another model, and its configuration from that, or from what this package knows of published models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_ray import hub
from dino_ray.diffusion import checkpoint, published
from dino_ray.diffusion.catalogue import ALIASES
from dino_ray.diffusion.checkpoint import Contents
from dino_ray.diffusion.families import FAMILIES, Configs, Family, family_of
from dino_ray.diffusion.families.family import class_of
from dino_ray.diffusion.finding import INDEX, ModelRef
from dino_ray.diffusion.weight_header import GGUF
from dino_ray.errors import UsageError

CONFIG = "config.json"
_SCHEDULER = "scheduler/scheduler_config.json"


@dataclass(frozen=True)
class Source:
    """Which model a component comes from."""

    ref: ModelRef
    folder: str
    """In that model; empty: it is the component itself."""

    def inside(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name


def source_of(ref: ModelRef, part: str) -> Source:
    if part == "vae" and ref.vae is not None:
        return Source(ref.vae, "vae" if ref.vae.kind == "file" else _vae_folder(ref.vae))
    if ref.kind != "file" or part in contents(ref).parts:
        return Source(ref, part)
    return Source(companion(ref), part)


def contents(ref: ModelRef) -> Contents:
    return checkpoint.contents(Path(ref.location), ref.option, ref.allow_pickle)


def companion(ref: ModelRef) -> ModelRef:
    """Where a single file's model gets what the file lacks."""
    if ref.components is not None:
        return ref.components
    held = contents(ref)
    repo = ALIASES.get(held.model or "")
    if repo is None:
        raise _nothing_like(ref, held)
    return ModelRef(repo, "hub", repo, option="--components")


def _described_by(ref: ModelRef) -> ModelRef:
    """The model whose configuration files are those of ``ref``."""
    if ref.kind != "file" or ref.components is not None:
        return ref.components or ref
    held = contents(ref)
    if not held.core:
        raise UsageError(
            f"{ref.asked}: holds {held.title} alone; give a file with a model, and this one as --vae"
        )
    folder = published.folder(held.model or "")
    if folder is None:
        raise _nothing_like(ref, held)
    return ModelRef(held.model or "", "folder", str(folder))


def _nothing_like(ref: ModelRef, held: Contents) -> UsageError:
    return UsageError(
        f"{ref.asked}: holds {held.title} of a shape that is not known here; name a model of the same shape, whose "
        "configuration and other components are used, with --components"
    )


def _vae_folder(ref: ModelRef) -> str:
    """Where in a folder or on the hub a VAE lies that was asked for by name."""
    if ref.kind == "folder":
        names = hub.names(Path(ref.location), (CONFIG, f"vae/{CONFIG}"))
    else:
        here = ref.repo.cached(f"vae/{CONFIG}", CONFIG)
        wanted = (CONFIG, f"vae/{CONFIG}")
        names = hub.names(here, wanted) if here else hub.listing(ref.repo, wanted)
    if not names:
        raise UsageError(f"{ref.asked}: has neither {CONFIG} nor vae/{CONFIG}, so it is no VAE of diffusers")
    return "vae" if f"vae/{CONFIG}" in names else ""


def family_and_configs(ref: ModelRef) -> tuple[Family, Configs]:
    """Which family drives a model, and its configuration files.

    Raises
    ------
    UsageError
        Where no family does, or a configuration file is missing or damaged.
    """
    by = _described_by(ref)
    index = read_json(by, config_folder(by, [INDEX]), INDEX)
    pipeline = str(index.get("_class_name"))
    family = family_of(pipeline)
    if family is None:
        known = ", ".join(sorted(name for each in FAMILIES for name in each.pipelines))
        raise UsageError(f"{ref.asked}: {pipeline} is not supported; supported are {known}")
    if ref.kind == "file":
        _check_same_class(ref, by, family, index)
    folder = config_folder(by, [*(f"{part}/{CONFIG}" for part in family.parts), _SCHEDULER])
    scheduler = read_json(by, folder, _SCHEDULER)
    if ref.kind == "file" and ref.components is None:
        scheduler = {**scheduler, **contents(ref).scheduler}
    return family, {
        "index": index,
        **{part: read_json(by, folder, f"{part}/{CONFIG}") for part in family.parts},
        **({"vae": part_config(ref, "vae")} if ref.vae is not None else {}),
        "scheduler": scheduler,
        **_kept_as(ref, family, read_json(by, folder, f"{family.core}/{CONFIG}")),
    }


def _kept_as(ref: ModelRef, family: Family, core: Mapping[str, Any]) -> Configs:
    """A GGUF file's model, told to be quantised as a folder's config.json would tell."""
    if ref.kind != "file" or not ref.location.lower().endswith(GGUF):
        return {}
    return {family.core: {**core, "quantization_config": {"quant_method": "gguf"}}}


def _check_same_class(ref: ModelRef, by: ModelRef, family: Family, index: Mapping[str, Any]) -> None:
    held, named = contents(ref), class_of(index, family.core)
    if not held.core:
        raise UsageError(
            f"{ref.asked}: holds {held.title} alone; give a file with a model, and this one as --vae"
        )
    if named is None or named[1] != held.cls:
        raise UsageError(
            f"{by.asked}: is of another kind ({named[1] if named else 'no model'}) than what {ref.location} holds "
            f"({held.cls}, {held.title}); name a model of the file's kind"
        )


def part_config(ref: ModelRef, part: str) -> Mapping[str, Any]:
    """The config.json of one component.

    Raises
    ------
    UsageError
        Where it is missing or damaged.
    """
    at, folder = config_of(ref, part)
    name = f"{folder}/{CONFIG}" if folder else CONFIG
    return read_json(at, config_folder(at, [name]), name)


def config_of(ref: ModelRef, part: str) -> tuple[ModelRef, str]:
    """The model, and the folder in it, that a component's config.json is read from."""
    source = source_of(ref, part) if part == "vae" and ref.vae is not None else None
    if source is None or source.ref.kind == "file":
        return _described_by(ref), part
    return source.ref, source.folder


def config_folder(ref: ModelRef, names: Iterable[str]) -> Path:
    return Path(ref.location) if ref.kind == "folder" else hub.snapshot(ref.repo, names)


def read_json(ref: ModelRef, folder: Path, name: str) -> Mapping[str, Any]:
    """A JSON object of a model's.

    Raises
    ------
    UsageError
        Where it is missing or damaged.
    """
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{ref.asked}: {name} is missing; get the whole model again") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{ref.asked}: {name} can't be read ({error}); get it again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{ref.asked}: {name} holds no JSON object; get it again")
    return content
