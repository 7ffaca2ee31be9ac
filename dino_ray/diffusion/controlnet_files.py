"""Finding ControlNets (Zhang et al. 2023, arXiv:2302.05543): networks that hold a model to a picture. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dino_ray import hub
from dino_ray.diffusion.families.family import Configs, Family, denoiser_config
from dino_ray.diffusion.model_files import COMPONENT_FILES, is_whole
from dino_ray.errors import UsageError

_CONFIG = "config.json"

_ALIKE = (
    "cross_attention_dim",
    "addition_embed_type",
    "joint_attention_dim",
    "in_channels",
)
"""Entries of the configs of a ControlNet and of the model that it was trained for that are one and the same."""


def describe(name: str, family: Family, configs: Configs) -> str:
    """The class of a ControlNet, in diffusers, that suits a model.

    Parameters
    ----------
    name
        A folder that holds its config.json, or a hub id.

    Raises
    ------
    UsageError
        If it can't be found or read, is of a kind that can't be driven, was trained for another family or size of
        model, or has no safetensors.
    """
    option = f"--controlnet {name}"
    if family.controlnet is None:
        raise UsageError(f"{option}: models of the family {family.title} take none here; leave it out")
    config = _config(name, option)
    kind = config.get("_class_name")
    if kind != family.controlnet:
        raise UsageError(f"{option}: is a {kind}; {family.title} takes a {family.controlnet}")
    if config.get("num_mode") or config.get("global_pool_conditions"):
        raise UsageError(
            f"{option}: is one of many modes in one (union), which are not driven; give the tile or upscaler ControlNet"
        )
    core = denoiser_config(configs)
    for entry in _ALIKE:
        if entry in config and entry in core and config[entry] != core[entry]:
            raise UsageError(
                f"{option}: was trained for another model, with {entry} {config[entry]}; this one has {core[entry]}"
            )
    folder = Path(name).expanduser()
    if folder.is_dir():
        files = hub.names(folder, COMPONENT_FILES)
    else:
        repo = _repo(name, option)
        here = repo.cached(_CONFIG)
        whole = here is not None and is_whole(here)
        files = hub.names(here, COMPONENT_FILES) if here and whole else hub.listing(repo, COMPONENT_FILES)
    if not any(file.endswith(".safetensors") for file in files):
        raise UsageError(f"{option}: has no .safetensors file; get the whole ControlNet, in that format")
    return str(kind)


def config(name: str) -> Mapping[str, Any]:
    """The config.json of a ControlNet; raises as ``describe`` does."""
    return _config(name, f"--controlnet {name}")


def fetch(name: str) -> Path:
    """The folder that holds a ControlNet, on this machine, downloaded first where it has to be."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    return hub.snapshot(_repo(name, f"--controlnet {name}"), COMPONENT_FILES, whole=is_whole)


def _repo(name: str, option: str) -> hub.Repo:
    repo = hub.parse(name, "--controlnet")
    if repo is None:
        raise UsageError(f"{option}: no such folder; give one that holds its {_CONFIG}, or a hub id")
    return repo


def _config(name: str, option: str) -> Mapping[str, Any]:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = hub.snapshot(_repo(name, option), [_CONFIG])
    try:
        content = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{option}: its {_CONFIG} can't be read ({error}); get it again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{option}: its {_CONFIG} holds no JSON object; get it again")
    return content
