"""Where the files of a model lie, whether all are there, and getting those that are not. No torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dino_ray import hub
from dino_ray.diffusion import published
from dino_ray.diffusion.families import Family, family_of
from dino_ray.diffusion.families.family import class_of
from dino_ray.diffusion.finding import INDEX, ModelRef, resolve
from dino_ray.diffusion.sources import (
    CONFIG,
    Source,
    config_folder,
    config_of,
    contents,
    family_and_configs,
    part_config,
    read_json,
    source_of,
)
from dino_ray.errors import DinoRayError, UsageError

__all__ = [
    "COMPONENT_FILES",
    "SHARDS",
    "Found",
    "ModelRef",
    "by_ref",
    "family_and_configs",
    "fetch",
    "fetch_tiny_vae",
    "files_of",
    "find_tiny_vae",
    "in_single_file",
    "is_present",
    "is_whole",
    "part_config",
    "resolve",
    "weight_places",
]

log = logging.getLogger(__name__)

SHARDS = ".safetensors.index.json"

_TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_WEIGHTS = tuple(
    f"{name}{part}.safetensors"
    for name in ("diffusion_pytorch_model", "model")
    for part in ("", "-?????-of-?????")
)
COMPONENT_FILES = (*_WEIGHTS, *_TEXT_FILES)
"""What diffusers and transformers load of a model or a tokenizer. Repositories have the same weights in other types and
for other programs besides, which would be downloaded for nothing."""
_PICKLED_FILES = ("*.bin", *_TEXT_FILES)

_VOCABULARIES = (
    {"tokenizer_config.json", "tokenizer.json"},
    {"tokenizer_config.json", "vocab.json", "merges.txt"},
    {"tokenizer_config.json", "spiece.model"},
    {"tokenizer_config.json", "tokenizer.model"},
    {"preprocessor_config.json"},
)
"""Files that make a tokenizer or a processor whole, one of these sets or another."""


@dataclass(frozen=True)
class Found:
    """Where a component lies on this machine."""

    path: Path
    """Its folder, as diffusers or transformers saves it; or a single file of weights."""
    config: Path | None = None
    """Of a single file: the folder with its config.json."""
    prefix: str = ""
    """Of a single file: how the names of its tensors begin there."""
    pickled: bool = False
    """Its weights are pickles, and allowed to be."""


def fetch(ref: ModelRef, parts: Iterable[str]) -> Mapping[str, Found]:
    """Where components lie on this machine, downloaded first where they have to be.

    Raises
    ------
    UsageError
        Where it is of configuration files alone, or a download is impossible.
    """
    made: dict[str, Found] = {}
    for source_ref, wanted in by_ref(ref, parts).items():
        if source_ref.kind == "file":
            for part in wanted:
                at, folder = config_of(ref, part)
                name = f"{folder}/{CONFIG}"
                config = (config_folder(at, [name]) / name).parent
                made[part] = Found(
                    Path(source_ref.location),
                    config,
                    contents(source_ref).parts[part],
                    source_ref.allow_pickle,
                )
            continue
        if published.holds(source_ref.location):
            raise UsageError(
                f"{source_ref.asked}: holds configuration files alone, for plans; give {source_ref.name}"
            )
        pickled = _pickled(source_ref, wanted) if source_ref.allow_pickle else frozenset[str]()
        root = Path(source_ref.location)
        if source_ref.kind == "hub":
            root = _download(source_ref, wanted, pickled)
        for part, source in wanted.items():
            made[part] = Found(root / source.folder, pickled=part in pickled)
    return made


def in_single_file(ref: ModelRef, part: str) -> bool:
    """Whether a component comes from a single file of weights."""
    return source_of(ref, part).ref.kind == "file"


def by_ref(ref: ModelRef, parts: Iterable[str]) -> Mapping[ModelRef, Mapping[str, Source]]:
    """The sources of components, by the model that they come from: each is asked once for all of its own."""
    found: dict[ModelRef, dict[str, Source]] = {}
    for part in parts:
        source = source_of(ref, part)
        found.setdefault(source.ref, {})[part] = source
    return found


def _download(ref: ModelRef, wanted: Mapping[str, Source], pickled: frozenset[str]) -> Path:
    patterns = [
        source.inside(name)
        for part, source in wanted.items()
        for name in (_PICKLED_FILES if part in pickled else COMPONENT_FILES)
    ]
    folders = [source.folder for source in wanted.values()]
    return hub.snapshot(
        ref.repo, patterns, whole=lambda root: all(is_whole(root / folder) for folder in folders)
    )


def is_whole(folder: Path) -> bool:
    """Whether nothing of the component in a folder is missing, as far as names tell: a download may have broken off."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if indexes := [name for name in names if name.endswith(SHARDS)]:
        try:
            shards = [json.loads((folder / name).read_text())["weight_map"].values() for name in indexes]
        except (OSError, ValueError, KeyError):
            return False
        return CONFIG in names and all(set(each) <= names for each in shards)
    if any(PurePosixPath(name).match(pattern) for name in names for pattern in _WEIGHTS):
        return CONFIG in names
    return any(files <= names for files in _VOCABULARIES)


def files_of(ref: ModelRef, wanted: Mapping[str, Source]) -> frozenset[str]:
    """Names of a model's files in some folders."""
    patterns = [source.inside("*") for source in wanted.values()]
    if ref.kind == "folder":
        return hub.names(Path(ref.location), patterns)
    here = ref.repo.cached(INDEX, CONFIG)
    if here is not None and all(is_whole(here / source.folder) for source in wanted.values()):
        return hub.names(here, patterns)
    return hub.listing(ref.repo, patterns)


def _pickled(ref: ModelRef, wanted: Mapping[str, Source]) -> frozenset[str]:
    """Components that have pickles and no other weights."""
    files = files_of(ref, wanted)

    def has(source: Source, *suffixes: str) -> bool:
        return any(
            name.endswith(suffixes) and str(PurePosixPath(name).parent) == (source.folder or ".")
            for name in files
        )

    return frozenset(
        part for part, source in wanted.items() if has(source, ".bin") and not has(source, ".safetensors")
    )


def weight_places(ref: ModelRef) -> list[str]:
    """Names of all that a model's weights come from: paths, and hub ids."""
    if ref.kind != "file":
        return [each.place for each in (ref, ref.vae) if each is not None]
    family, configs = family_and_configs(ref)
    parts = (*family.parts, *family.text_parts(configs["index"]), *family.tokenizers)
    return list(dict.fromkeys(source.place for source in by_ref(ref, parts)))


def is_present(name: str) -> bool:
    """Whether a model's files, text encoders included, are all on this machine; asks no network, reads no weights."""
    try:
        ref = resolve(name)
        if ref.kind not in ("folder", "hub"):
            return True
        root = Path(ref.location) if ref.kind == "folder" else ref.repo.cached(INDEX)
        if root is None:
            return False
        index = read_json(ref, root, INDEX)
    except UsageError:
        return False
    family = family_of(str(index.get("_class_name")))
    if family is None:
        return False
    parts = (*family.parts, *family.text, *family.tokenizers)
    return all(is_whole(root / part) for part in parts if class_of(index, part) is not None)


# ---- the small decoder


def find_tiny_vae(ref: ModelRef, family: Family) -> str | None:
    """A small decoder of a model's latents: a folder or a hub id; None where none is to be had.

    ``tiny_vae/`` in a model's folder; else the family's on the hub: from the cache or, for a model that came from
    there as well, downloaded (10 MB).
    """
    own = Path(ref.location) / "tiny_vae"
    if ref.kind == "folder" and own.is_dir():
        return str(own)
    if family.tiny_vae is None or published.holds(ref.location):
        return family.tiny_vae
    try:
        _tiny_vae(family.tiny_vae, cached=ref.kind != "hub")
    except DinoRayError:
        log.info("%s is not here: guidance decodes by the whole VAE, which takes longer", family.tiny_vae)
        return None
    return family.tiny_vae


def fetch_tiny_vae(name: str) -> Path:
    """The folder of what ``find_tiny_vae`` found, on this machine, downloaded first where it has to be."""
    return Path(name) if Path(name).is_dir() else _tiny_vae(name)


def _tiny_vae(name: str, cached: bool = False) -> Path:
    return hub.snapshot(hub.Repo(name), COMPONENT_FILES, whole=is_whole, cached=cached)
