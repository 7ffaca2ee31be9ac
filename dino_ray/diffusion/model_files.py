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
from dino_ray.errors import DinoRayError, UsageError

log = logging.getLogger(__name__)

PIPELINES: Mapping[str, str] = {
    "FluxPipeline": "flux",
    "FluxImg2ImgPipeline": "flux",
    "FluxInpaintPipeline": "flux",
}
"""Family of each diffusers pipeline class that can be driven. These three share one set of components; those
that take a reference, a control or a mask as more channels (Kontext, Control, Fill) are other models."""

CONFIGS: Mapping[str, str] = {
    "transformer": "transformer/config.json",
    "vae": "vae/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
"""Configuration file of each component that a description is made from."""

TINY_VAE = "madebyollin/taef1"
"""An ``AutoencoderTiny`` of FLUX.1's latents, under the MIT licence."""

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


def configs(ref: ModelRef) -> Mapping[str, Mapping[str, Any]]:
    """Configurations by component (``CONFIGS``) of a model whose pipeline class can be driven.

    Raises
    ------
    UsageError
        Where it is of another class, or a configuration file is missing or damaged.
    """
    folder = (
        Path(ref.location)
        if ref.kind == "folder"
        else hub.snapshot(ref.location, [_INDEX, *CONFIGS.values()])
    )
    pipeline = _read_json(ref, folder, _INDEX).get("_class_name")
    if pipeline not in PIPELINES:
        raise UsageError(
            f"--model {ref.location}: {pipeline} is not supported yet; supported are {', '.join(PIPELINES)}"
        )
    return {component: _read_json(ref, folder, name) for component, name in CONFIGS.items()}


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


def find_tiny_vae(ref: ModelRef) -> str | None:
    """A small decoder of FLUX.1's latents: a folder or a hub id; None where none is to be had.

    ``tiny_vae/`` in a model's folder; else ``TINY_VAE`` of the hub: from the cache or, for a model that came from
    there as well, downloaded (10 MB).
    """
    own = Path(ref.location) / "tiny_vae"
    if ref.kind == "folder" and own.is_dir():
        return str(own)
    try:
        hub.snapshot(TINY_VAE, _COMPONENT_FILES, cached=ref.kind == "folder")
    except DinoRayError:
        log.info("%s is not here: guidance decodes by the whole VAE, which takes longer", TINY_VAE)
        return None
    return TINY_VAE


def fetch_tiny_vae(name: str) -> Path:
    """The folder of what ``find_tiny_vae`` found, on this machine, downloaded first where it has to be."""
    return Path(name) if name != TINY_VAE else hub.snapshot(name, _COMPONENT_FILES)


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
