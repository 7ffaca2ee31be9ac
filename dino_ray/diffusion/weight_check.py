"""Whether the weights of a model can be had, and are such as may be read: said before any is. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from dino_ray import hub
from dino_ray.diffusion import published
from dino_ray.diffusion.finding import INDEX, ModelRef
from dino_ray.diffusion.model_files import SHARDS, by_ref, files_of, is_whole
from dino_ray.diffusion.sources import companion, contents, part_config, read_json
from dino_ray.diffusion.weight_header import PICKLES, check_pickle
from dino_ray.errors import UsageError

SINGLE_FILE_VAE = "AutoencoderKL"
"""The one class of VAEs that diffusers reads from a single file, of those that are driven here."""


def check_weights(ref: ModelRef, components: Iterable[str]) -> None:
    """See that every component has its weights as safetensors, reading none and downloading none.

    Raises
    ------
    UsageError
        Where a component has no weights, pickles only that are not allowed, or lacks some of its shards.
    """
    for source_ref, wanted in by_ref(ref, components).items():
        if source_ref.kind == "file":
            _check_file(ref, source_ref, wanted)
            continue
        if published.holds(source_ref.location):
            continue  # it stands in for a model whose weights are not here yet
        files = files_of(source_ref, wanted)
        for part, source in wanted.items():
            own = {name for name in files if str(PurePosixPath(name).parent) == (source.folder or ".")}
            _check_component(source_ref, source.folder or part, own)
            if source_ref.kind == "folder":
                _check_shards(source_ref, own)


def _check_file(ref: ModelRef, file: ModelRef, wanted: Iterable[str]) -> None:
    held = contents(file)
    if missing := [part for part in wanted if part not in held.parts]:
        raise UsageError(
            f"{file.asked}: holds no {missing[0]}, but {held.title}; give another file, or leave it out"
        )
    if "vae" in wanted:
        cls = part_config(ref, "vae").get("_class_name")
        if cls != SINGLE_FILE_VAE:
            raise UsageError(
                f"{file.asked}: the model's VAE is an {cls}, which is not read from a single file; give --vae a "
                "diffusers folder or a hub id"
            )


def check_tokenizers(ref: ModelRef, parts: Iterable[str]) -> None:
    """See that what a single file's model reads prompts with, which no file holds, can be had.

    Raises
    ------
    UsageError
        Where it can't.
    """
    if ref.kind != "file" or not (wanted := list(parts)):
        return
    other = companion(ref)
    if published.holds(other.location):
        return
    if other.kind == "folder":
        missing = [part for part in wanted if not is_whole(Path(other.location) / part)]
    else:
        here = other.repo.cached(INDEX, *(f"{part}/tokenizer_config.json" for part in wanted))
        if here is not None and all(is_whole(here / part) for part in wanted):
            return
        names = hub.listing(other.repo, [f"{part}/*" for part in wanted])
        missing = [part for part in wanted if not any(name.startswith(f"{part}/") for name in names)]
    if missing:
        raise UsageError(
            f"{other.asked}: has no {missing[0]}/, and a single file holds no tokenizer; name a model of the same "
            "kind with --components"
        )


def _check_component(ref: ModelRef, component: str, files: set[str]) -> None:
    if any(name.endswith(".safetensors") for name in files):
        return
    if pickles := sorted(name for name in files if name.endswith(PICKLES)):
        check_pickle(pickles[0], ref.asked, ref.allow_pickle)
        return
    raise UsageError(f"{ref.asked}: no .safetensors file in {component}/; get the whole model again")


def _check_shards(ref: ModelRef, files: set[str]) -> None:
    for index in (name for name in files if name.endswith(SHARDS)):
        folder = PurePosixPath(index).parent
        shards = set(read_json(ref, Path(ref.location), index).get("weight_map", {}).values())
        if missing := sorted(shard for shard in shards if str(folder / shard) not in files):
            raise UsageError(f"{ref.asked}: {folder / missing[0]} is missing; get the whole model again")
