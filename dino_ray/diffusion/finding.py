"""What a model's name means, and where it is looked for. No torch, no network.

A name is ``bundled``, ``none``, an alias of the catalogue, a path of a folder (as diffusers saves pipelines, or of the
bundled model's format) or of a single file of weights, a hub id ``owner/name`` with ``@revision`` or without, or the
name of a file or folder in one of the user's folders of models.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dino_ray import hub
from dino_ray.diffusion import places
from dino_ray.diffusion.bundled.spec import is_bundled
from dino_ray.diffusion.catalogue import ALIASES, KNOWN
from dino_ray.diffusion.model_options import AS_PUBLISHED, ModelOptions
from dino_ray.diffusion.weight_header import SUFFIXES
from dino_ray.errors import UsageError

INDEX = "model_index.json"


@dataclass(frozen=True)
class ModelRef:
    """What a ``--model`` value turned out to mean, and what is to go with it."""

    name: str
    """As reports print it."""
    kind: Literal["none", "bundled", "folder", "hub", "file"]
    """``folder`` and ``hub`` have diffusers' layout; a folder with a model.json is ``bundled``; ``file`` is a single
    file of weights."""
    location: str
    """An absolute path or a hub id; empty for what ships with the package."""
    revision: str | None = None
    """Of a model on the hub: a branch, tag or commit; None: its main branch."""
    option: str = "--model"
    """That named it, for messages."""
    components: ModelRef | None = None
    """Where a single file's model gets what the file lacks; None: from the published model of its kind."""
    vae: ModelRef | None = None
    """Takes the place of its VAE."""
    allow_pickle: bool = False

    @property
    def asked(self) -> str:
        """How messages begin."""
        return f"{self.option} {self.place}"

    @property
    def place(self) -> str:
        """A name that means the same wherever it is looked up: an absolute path, or a hub id with its revision."""
        if self.kind == "hub":
            return str(self.repo)
        return self.location or self.name

    @property
    def repo(self) -> hub.Repo:
        """On the hub."""
        return hub.Repo(self.location, self.revision, self.option, _licence(self.location))


def resolve(model: str, options: ModelOptions = AS_PUBLISHED, option: str = "--model") -> ModelRef:
    """Decide what ``model`` means; touches the disk only to see what lies there.

    Raises
    ------
    UsageError
        Where it can mean nothing, or several things.
    """
    ref = _resolve(model, option)
    whole = ref.kind in ("bundled", "none")
    for name, value in (("--components", options.components), ("--vae", options.vae)):
        if value is not None and whole:
            raise UsageError(
                f"{name}: the model {ref.name} has all its parts, and takes no others; leave it out"
            )
    if options.components is not None and ref.kind != "file":
        raise UsageError(
            f"--components: {ref.name} has all its parts; leave it out, or give --model a single file of weights"
        )
    return replace(
        ref,
        components=None if options.components is None else _companion(options.components),
        vae=None
        if options.vae is None
        else replace(_resolve(options.vae, "--vae"), allow_pickle=options.allow_pickle),
        allow_pickle=options.allow_pickle,
    )


def located(model: str, option: str = "--model") -> str:
    """A name that means the same on every machine that sees the same files: an absolute path, or a hub id.

    Raises
    ------
    UsageError
        As ``resolve`` does.
    """
    return resolve(model, option=option).place


def _companion(name: str) -> ModelRef:
    ref = _resolve(name, "--components")
    if ref.kind not in ("folder", "hub"):
        raise UsageError(f"{ref.asked}: give an alias, a hub id, or a folder that holds {INDEX}")
    return ref


def _resolve(model: str, option: str) -> ModelRef:
    if model in ("none", "bundled"):
        return ModelRef(model, model, "", option=option)  # type: ignore[arg-type]
    alias, at, revision = model.partition("@")
    if alias in ALIASES:
        return ModelRef(ALIASES[alias], "hub", ALIASES[alias], revision if at else None, option)
    path = Path(model).expanduser()
    if model and path.exists():
        return at_path(path.resolve(), option)
    if path.is_absolute() or model.startswith("."):
        raise UsageError(f"{option} {model}: no such file or folder")
    if not model.strip():
        raise UsageError(f"{option} {model}: no such name; {_choices()}")
    libraries = places.libraries(option)
    found = {path.resolve(): None for library in libraries for path in library.find(model)}
    if len(found) > 1:
        raise _ambiguous(model, option, [str(path) for path in found])
    if found:
        return at_path(next(iter(found)), option)
    repo = None if path.suffix in SUFFIXES else hub.parse(model, option)
    named = hub.named_in_cache(model) if repo is None else []
    if len(named) > 1:
        raise _ambiguous(model, option, named)
    if named:
        repo = hub.Repo(named[0])
    if repo is not None:
        return ModelRef(repo.id, "hub", repo.id, repo.revision, option)
    raise _nowhere(model, option, libraries)


def _ambiguous(model: str, option: str, found: Sequence[str]) -> UsageError:
    return UsageError(f"{option} {model}: means {len(found)} models: {', '.join(found)}; give one of these")


def _nowhere(model: str, option: str, libraries: Sequence[places.Library]) -> UsageError:
    looked = [
        f"here ({os.getcwd()})",
        *(f"{library.path} (of {library.source})" for library in libraries),
        f"the Hugging Face cache ({hub.cache()})",
    ]
    more = f"; {' and '.join(places.unset())} would name more" if places.unset() else ""
    return UsageError(
        f"{option} {model}: no such file, folder or known name; looked in {', '.join(looked)}{more}; {_choices()}"
    )


def _choices() -> str:
    return (
        f"a model is bundled, none, {', '.join(ALIASES)}, a folder that holds {INDEX}, "
        f"a file ({', '.join(SUFFIXES[:3])}), or a Hugging Face hub id such as owner/name"
    )


def at_path(path: Path, option: str = "--model") -> ModelRef:
    """What lies at an absolute path that exists.

    Raises
    ------
    UsageError
        If it is a folder of no kind that is known.
    """
    if path.is_file():
        return ModelRef(path.stem, "file", str(path), option=option)
    if is_bundled(path):
        return ModelRef(path.name, "bundled", str(path), option=option)
    if (path / INDEX).is_file() or (option == "--vae" and (path / "config.json").is_file()):
        return ModelRef(path.name, "folder", str(path), option=option)
    raise UsageError(
        f"{option} {path}: the folder has no {INDEX}, so it is no diffusers model; "
        "give the folder that holds it, with transformer/ and vae/ beside it"
    )


def _licence(repo: str) -> str:
    return next((known.licence for known in KNOWN if known.repo == repo), "")
