"""A named model's components, and how each is to be kept in memory; what can't be is refused. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dino_ray.diffusion import model_files, storage
from dino_ray.diffusion.device import pick_device
from dino_ray.diffusion.dtypes import Dtypes
from dino_ray.diffusion.families import Configs, Family
from dino_ray.diffusion.families.family import class_of
from dino_ray.diffusion.model_files import ModelRef, resolve
from dino_ray.diffusion.model_options import ModelOptions
from dino_ray.diffusion.storage import Kept
from dino_ray.errors import UsageError


def check(model: str, dtype: Dtypes | str, options: ModelOptions, tile: int, device: str | None) -> None:
    """Refuse ways to fit a model into memory that it, or the machine, does not have; no weights are read.

    Parameters
    ----------
    tile : int
        canvas_px: side of the tiles that it will be given.
    device : str, optional
        As ``load`` takes it, of this machine; None: the models run elsewhere, and are judged there as they are loaded.

    Raises
    ------
    UsageError
    """
    ref, asked = resolve(model, options), dtypes(dtype)
    if ref.kind == "bundled":
        storage.bundled(asked, options)
        return
    family, configs = model_files.family_and_configs(ref)
    parts = (*family.parts, *family.text_parts(configs["index"]))
    found = kept(ref, family, configs, parts, asked, options, "cuda")
    if device is not None and (options.offload != "none" or any(each.package for each in found.values())):
        storage.check_device(options, found, family.core, pick_device(device))
    if options.vae_tile is not None:
        storage.check_vae_tile(options.vae_tile, tile, family.describe(ref.name, configs).latent_scale)


def kept(
    ref: ModelRef,
    family: Family,
    configs: Configs,
    parts: Sequence[str],
    asked: Dtypes,
    options: ModelOptions,
    device: str,
) -> Mapping[str, Kept]:
    """How the weights of some components are to be kept.

    Raises
    ------
    UsageError
        Where that can't be.
    """
    others = ("controlnet",) if options.controlnet is not None else ()
    storage.check_parts(asked, (*family.parts, *family.text_parts(configs["index"]), *others))
    made = {}
    for part in parts:
        role: storage.Role = "core" if part == family.core else "vae" if part == "vae" else "text"
        config = configs[part] if part in configs else model_files.part_config(ref, part)
        cls = (class_of(configs["index"], part) or ("", ""))[1]
        made[part] = storage.kept(part, role, cls, config, asked, options, device)
        if made[part].quantize and model_files.in_single_file(ref, part):
            _check_single_file(part, role, made[part])
    storage.check_offload(options, made)
    return made


def _check_single_file(part: str, role: storage.Role, kept: Kept) -> None:
    """Refuse to quantise what only a folder's weights can be quantised from."""
    asked = f"--quantize {kept.quantize}: {part} lies in a single file"
    if role == "text":
        raise UsageError(
            f"{asked}, whose text encoders are not quantised; give --model a file without them, or a folder"
        )
    if kept.package != "torchao":
        raise UsageError(
            f"{asked}, and {kept.package} quantises weights from a folder only; give torchao-int8 or torchao-fp8, a "
            "GGUF file, or a folder"
        )


def dtypes(dtype: Dtypes | str) -> Dtypes:
    """What ``--dtype`` says.

    Raises
    ------
    UsageError
        Where it says nothing that can be understood.
    """
    try:
        return Dtypes.parse(dtype)
    except ValueError as error:
        raise UsageError(f"--dtype {dtype}: {error}") from error
