"""What a model's name means, and which of its files are there. No torch.

A name is ``bundled``, ``none``, an alias of the catalogue, a folder (as diffusers saves pipelines, or of the
bundled model's format) or a hub id ``owner/name``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from dino_ray.diffusion import hub
from dino_ray.diffusion.bundled.spec import is_bundled
from dino_ray.diffusion.catalogue import ALIASES
from dino_ray.diffusion.families import FAMILIES, Configs, Family, family_of
from dino_ray.errors import DinoRayError, UsageError

log = logging.getLogger(__name__)

_SCHEDULER = "scheduler/scheduler_config.json"

_INDEX = "model_index.json"
_SHARDS = ".safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_COMPONENT_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
"""What diffusers and transformers save of a model or a tokenizer, and no pickles."""

_CHOICES = (
    f"a model is bundled, none, {', '.join(ALIASES)}, a folder that holds {_INDEX}, "
    "or a Hugging Face hub id such as owner/name"
)


@dataclass(frozen=True)
class ModelRef:
    """What a ``--model`` value turned out to mean."""

    name: str
    """As reports print it."""
    kind: Literal["none", "bundled", "folder", "hub"]
    """``folder`` and ``hub`` have diffusers' layout; a folder with a model.json is ``bundled``."""
    location: str
    """A folder's absolute path or a hub id; empty for what ships with the package."""


def resolve(model: str) -> ModelRef:
    """Decide what ``model`` means; touches the disk only to see what kind of folder it is, if one.

    Raises
    ------
    UsageError
        Where it can mean nothing: an unknown name, a missing or foreign folder, a single file.
    """
    if model == "none":
        return ModelRef(model, "none", "")
    if model == "bundled":
        return ModelRef(model, "bundled", "")
    if model in ALIASES:
        return ModelRef(ALIASES[model], "hub", ALIASES[model])
    path = Path(model).expanduser()
    if path.is_file():
        raise UsageError(
            f"--model {model}: single-file models are not supported yet; "
            f"give a folder that holds {_INDEX}, or a hub id"
        )
    if model and path.is_dir():
        return _resolve_folder(path.resolve())
    if path.suffix == ".safetensors":
        raise UsageError(f"--model {model}: no such file; {_CHOICES}")
    if hub.REPO_ID.fullmatch(model):
        return ModelRef(model, "hub", model)
    problem = "no such folder" if "/" in model or os.sep in model else "unknown model"
    raise UsageError(f"--model {model}: {problem}; {_CHOICES}")


def _resolve_folder(path: Path) -> ModelRef:
    if is_bundled(path):
        return ModelRef(path.name, "bundled", str(path))
    if (path / _INDEX).is_file():
        return ModelRef(path.name, "folder", str(path))
    raise UsageError(
        f"--model {path}: the folder has no {_INDEX}, so it is no diffusers model; "
        "give the folder that holds it, with transformer/ and vae/ beside it"
    )


def family_and_configs(ref: ModelRef) -> tuple[Family, Configs]:
    """Which family drives a model, and its configuration files.

    Raises
    ------
    UsageError
        Where no family does, or a configuration file is missing or damaged.
    """
    index = _read_json(ref, _config_folder(ref, [_INDEX]), _INDEX)
    pipeline = str(index.get("_class_name"))
    family = family_of(pipeline)
    if family is None:
        known = ", ".join(sorted(name for each in FAMILIES for name in each.pipelines))
        raise UsageError(f"--model {ref.location}: {pipeline} is not supported; supported are {known}")
    files = {part: f"{part}/config.json" for part in family.parts} | {"scheduler": _SCHEDULER}
    folder = _config_folder(ref, [_INDEX, *files.values()])
    return family, {"index": index, **{part: _read_json(ref, folder, name) for part, name in files.items()}}


def part_config(ref: ModelRef, part: str) -> Mapping[str, Any]:
    """The config.json of one component.

    Raises
    ------
    UsageError
        Where it is missing or damaged.
    """
    name = f"{part}/config.json"
    return _read_json(ref, _config_folder(ref, [name]), name)


def _config_folder(ref: ModelRef, names: Iterable[str]) -> Path:
    return Path(ref.location) if ref.kind == "folder" else hub.snapshot(ref.location, names)


def fetch(ref: ModelRef, components: Iterable[str]) -> Path:
    """The folder that holds the files of ``components``, downloaded first where they have to be.

    Raises
    ------
    UsageError
        As ``check_weights`` does, and where a download is impossible.
    """
    if ref.kind == "folder":
        return Path(ref.location)
    return hub.snapshot(ref.location, [f"{part}/{kind}" for part in components for kind in _COMPONENT_FILES])


def find_tiny_vae(ref: ModelRef, family: Family) -> str | None:
    """A small decoder of a model's latents: a folder or a hub id; None where none is to be had.

    ``tiny_vae/`` in a model's folder; else the family's on the hub: from the cache or, for a model that came from
    there as well, downloaded (10 MB).
    """
    own = Path(ref.location) / "tiny_vae"
    if ref.kind == "folder" and own.is_dir():
        return str(own)
    if family.tiny_vae is None:
        return None
    try:
        hub.snapshot(family.tiny_vae, _COMPONENT_FILES, cached=ref.kind == "folder")
    except DinoRayError:
        log.info("%s is not here: guidance decodes by the whole VAE, which takes longer", family.tiny_vae)
        return None
    return family.tiny_vae


def fetch_tiny_vae(name: str) -> Path:
    """The folder of what ``find_tiny_vae`` found, on this machine, downloaded first where it has to be."""
    return Path(name) if Path(name).is_dir() else hub.snapshot(name, _COMPONENT_FILES)


def check_weights(ref: ModelRef, components: Iterable[str]) -> None:
    """See that every component has its weights as safetensors, reading none and downloading none.

    Raises
    ------
    UsageError
        Where a component has no weights, pickles only, or lacks some of its shards.
    """
    patterns = {component: f"{component}/*" for component in components}
    if ref.kind == "folder":
        files = hub.names(Path(ref.location), patterns.values())
    else:
        files = hub.listing(ref.location, patterns.values())
    for component in patterns:
        own = {name for name in files if PurePosixPath(name).parent.name == component}
        _check_component(ref, component, own)
        if ref.kind == "folder":
            _check_shards(ref, own)


def _check_component(ref: ModelRef, component: str, files: set[str]) -> None:
    if any(name.endswith(".safetensors") for name in files):
        return
    if pickles := sorted(name for name in files if name.endswith(_PICKLES)):
        raise UsageError(
            f"--model {ref.location}: {pickles[0]} is a pickle, and reading a pickle can run any code; "
            f"give a model that has .safetensors files in {component}/"
        )
    raise UsageError(
        f"--model {ref.location}: no .safetensors file in {component}/; get the whole model again"
    )


def _check_shards(ref: ModelRef, files: set[str]) -> None:
    for index in (name for name in files if name.endswith(_SHARDS)):
        folder = PurePosixPath(index).parent
        shards = set(_read_json(ref, Path(ref.location), index).get("weight_map", {}).values())
        if missing := sorted(shard for shard in shards if str(folder / shard) not in files):
            raise UsageError(
                f"--model {ref.location}: {folder / missing[0]} is missing; get the whole model again"
            )


def _read_json(ref: ModelRef, folder: Path, name: str) -> Mapping[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--model {ref.location}: {name} is missing; get the whole model again") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--model {ref.location}: {name} can't be read ({error}); get it again") from error
    if not isinstance(content, dict):
        raise UsageError(f"--model {ref.location}: {name} holds no JSON object; get it again")
    return content
