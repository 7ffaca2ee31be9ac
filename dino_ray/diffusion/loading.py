"""From a model's name to its description, its denoiser and its text embeddings.

``describe`` reads configuration files and headers only, and imports no torch. Weights are read from safetensors and
GGUF, and from pickles only where ``allow_pickle`` says so, because unpickling runs whatever code a file holds.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_ray.diffusion import (
    adapter_file,
    controlnet_files,
    image_prompt_file,
    keeping,
    lora_file,
    model_files,
    speed,
    storage,
    weight_check,
)
from dino_ray.diffusion.catalogue import ALIASES, KNOWN, KnownModel
from dino_ray.diffusion.denoiser import Denoiser, Description, Embeddings
from dino_ray.diffusion.device import pick_device
from dino_ray.diffusion.dtypes import FP8, TORCH, Dtypes
from dino_ray.diffusion.families import FLUX, Configs, Family, denoiser_config, flux_config, lora_layers
from dino_ray.diffusion.families.family import Picture, class_of, no_picture
from dino_ray.diffusion.model_files import ModelRef, resolve
from dino_ray.diffusion.model_options import AS_PUBLISHED, ModelOptions
from dino_ray.diffusion.storage import Kept
from dino_ray.errors import UsageError

if TYPE_CHECKING:
    from dino_ray.diffusion.components import PartFiles
    from dino_ray.diffusion.image_prompt import ImageEncoder
    from dino_ray.diffusion.image_prompt_file import ImagePrompt

__all__ = [
    "ALIASES",
    "KNOWN",
    "KnownModel",
    "ModelRef",
    "adapter_target",
    "describe",
    "encode_text",
    "load",
    "pick_device",
    "resolve",
]

_LIBRARIES = ("diffusers", "transformers")
"""Whose classes are loaded: a model's index could name any."""


def describe(model: str, adapter: str | None = None, options: ModelOptions = AS_PUBLISHED) -> Description:
    """What the planner must know of ``model``, from its configuration files; no weights are fetched.

    Parameters
    ----------
    model : str
        A name that ``resolve`` understands.
    adapter : str, optional
        File of a DINO adapter that is to be used with it.
    options : ModelOptions
        LoRAs among them are downloaded where they are not here, for their headers to be read.

    Raises
    ------
    UsageError
        Where the model is unknown, unreachable, of a class that can't be driven, or lacks safetensors of any
        component, text encoders included; where the adapter, a LoRA or an image prompt is none, or another model's. Of
        a model on the hub, whose weights may not be here yet, ``load`` looks at those that the adapter was trained for.
    ValueError
        For ``none``, which has no model to describe.
    """
    ref = resolve(model, options)
    _refuse_none(ref)
    if ref.kind == "bundled":
        from dino_ray.diffusion import bundled

        description = bundled.describe(_bundled_folder(ref))
        lora_file.check(options.loras, description.name, None, {}, ())
        if options.image_prompt is not None:
            image_prompt_file.check(options.image_prompt, description.name, None, {})
        speed.check_model(ref.name, None, options, adapter=adapter is not None)
    else:
        family, configs = model_files.family_and_configs(ref)
        speed.check_model(ref.name, family, options, adapter=adapter is not None)
        description = family.describe(ref.name, configs)
        lora_file.check(options.loras, ref.name, family.lora, denoiser_config(configs), lora_layers.KNOWN)
        if options.image_prompt is not None:
            image_prompt_file.check(options.image_prompt, ref.name, family, denoiser_config(configs))
        weight_check.check_weights(ref, (*family.parts, *family.text_parts(configs["index"])))
        weight_check.check_tokenizers(ref, _named(family.tokenizers, configs))
        if options.controlnet is not None:
            controlnet_files.describe(options.controlnet, family, configs)
            description = replace(description, takes_control=True)
    if adapter is None:
        return description
    return adapter_file.describe(adapter, adapter_target(ref)).applied_to(description)


def load(
    model: str,
    device: str = "auto",
    dtype: Dtypes | str = "auto",
    adapter: str | None = None,
    *,
    sketch: str | None = None,
    options: ModelOptions = AS_PUBLISHED,
) -> Denoiser:
    """A replica's model, with weights on ``device``; text encoders are not touched.

    Parameters
    ----------
    model : str
        A name that ``resolve`` understands.
    device : str
        As torch spells it, or ``auto``: CUDA where there is one, else the CPU.
    dtype : Dtypes or str
        As ``Dtypes.parse`` takes it; torch's names will do as well. ``auto``: bfloat16 on CUDA, else float32; the
        bundled model always float32.
    adapter : str, optional
        File of a DINO adapter that was trained for it; works in float32 whatever ``dtype`` is.
    sketch : str, optional
        What ``find_sketch`` found: the small decoder that guidance looks through.

    Raises
    ------
    UsageError
        As ``describe`` does.
    JobError
        Where weights are damaged or do not fit their configuration.
    ValueError
        For ``none``.
    """
    ref = resolve(model, options)
    _refuse_none(ref)
    device = pick_device(device)
    denoiser: Any = _load(ref, device, keeping.dtypes(dtype), sketch, options)
    if adapter is not None:
        denoiser = _adapted(denoiser, ref, adapter, device)
    made: Denoiser = denoiser
    return made


def _adapted(denoiser: Any, ref: ModelRef, adapter: str, device: str) -> Any:
    facts = adapter_file.describe(adapter, adapter_target(ref, fetch=True))
    from dino_ray.diffusion import adapter as adapters

    return denoiser.adapted(adapters.load(adapter, facts, device), facts)


def adapter_target(ref: ModelRef, fetch: bool = False) -> adapter_file.Target:
    """What a DINO adapter has to be trained for, to be used with a model.

    Parameters
    ----------
    fetch : bool
        Download the weights of a model on the hub, unless they are here: by them alone it is told from another training
        of its kind.

    Raises
    ------
    UsageError
        As ``describe`` does.
    """
    if ref.kind == "bundled":
        from dino_ray.diffusion import bundled

        spec = bundled.read_spec(_bundled_folder(ref))
        return adapter_file.Target(spec.name, "bundled", spec.dino_dim, spec.transformer)
    family, configs = model_files.family_and_configs(ref)
    if family is not FLUX:
        raise UsageError(
            f"--dino-adapter: adapters are for FLUX.1 and the bundled model; {ref.name} is of the family {family.title}"
        )
    width = flux_config.text_width(configs["transformer"])
    if ref.kind == "file":
        raise UsageError(
            f"--dino-adapter: adapters are for models as diffusers lays them out; {ref.location} is a single file: "
            "give --model the folder or hub id that the adapter was trained with"
        )
    here = fetch or ref.kind == "folder"
    folder = model_files.fetch(ref, ("transformer",))["transformer"].path if here else None
    return adapter_file.Target(ref.name, "flux", width, folder)


def _load(ref: ModelRef, device: str, dtypes: Dtypes, sketch: str | None, options: ModelOptions) -> Any:
    if ref.kind == "bundled":
        from dino_ray.diffusion import bundled

        dtype = TORCH[storage.bundled(dtypes, options)]
        return bundled.load(_bundled_folder(ref), device=device, dtype=dtype)
    import torch

    from dino_ray.diffusion import components, offload
    from dino_ray.diffusion.families.latent_denoiser import Loaded
    from dino_ray.diffusion.vae import Place

    family, configs = model_files.family_and_configs(ref)
    description = family.describe(ref.name, configs)
    weight_check.check_weights(ref, family.parts)
    kept = dict(keeping.kept(ref, family, configs, family.parts, dtypes, options, device))
    storage.check_device(options, kept, family.core, device)
    files = _part_files(ref, family, configs, family.parts)
    changes = {family.core: partial(_change_core, family, configs, options)}
    models = {
        part: components.load_model(
            files[part],
            kept[part],
            offload.loaded_to(kept[part], device, options.offload),
            changes.get(part),
        )
        for part in files
    }
    models["vae"].enable_slicing()  # one tile alone fills a GPU, and nothing's activations are as large
    if sketch is not None:
        kept["tiny_vae"] = Kept(storage.compute(dtypes, device))
        models["tiny_vae"] = components.load_tiny_vae(
            model_files.fetch_tiny_vae(sketch), description, kept["tiny_vae"], device
        )
    if options.controlnet is not None:
        found = components.PartFiles(
            "controlnet",
            "diffusers",
            controlnet_files.describe(options.controlnet, family, configs),
            controlnet_files.fetch(options.controlnet),
        )
        kept["controlnet"] = Kept(
            storage.compute(dtypes, device, "controlnet"), fp8=dtypes.of("controlnet") == FP8
        )
        models["controlnet"] = components.load_model(
            found, kept["controlnet"], offload.loaded_to(kept["controlnet"], device, options.offload)
        )
        description = replace(description, takes_control=True)
    if device.startswith("cuda"):
        for model in models.values():
            speed.lay_out_convolutions(model)
    places = {part: Place(torch.device(device), components.compute_dtype(kept[part])) for part in models}
    denoiser = _module(family).build(Loaded(models, places), configs, description)
    if options.vae_tile is not None:
        denoiser.work_in_windows(options.vae_tile)
    # Not before: a family may give its network other ways to attend.
    precision = str(places[family.core].dtype).removeprefix("torch.")
    speed.accelerate(models[family.core], options, device, precision)
    offload.apply(models, family.core, device, options.offload)
    return denoiser


def _change_core(family: Family, configs: Configs, options: ModelOptions, core: Any) -> None:
    """What is added to the network as it is published: LoRAs to its weights, an image prompt's attention."""
    if options.loras:
        from dino_ray.diffusion.lora import Loras

        Loras.of(options.loras, family, configs).into(family.core, core)
    if options.image_prompt is not None:
        from dino_ray.diffusion import image_prompt

        image_prompt.attach(options.image_prompt, family.core, core, configs)


def find_sketch(model: str, options: ModelOptions = AS_PUBLISHED) -> str | None:
    """A small decoder of the model's latents, for guidance to look through: a folder or a hub id, for ``load``.

    Decided once for a job, since pixels depend on it. None where the family has none or none is to be had.
    """
    ref = resolve(model, options)
    if ref.kind in ("none", "bundled"):
        return None
    family, _ = model_files.family_and_configs(ref)
    return model_files.find_tiny_vae(ref, family)


def load_image_encoder(
    prompt: ImagePrompt, device: str = "auto", dtype: Dtypes | str = "auto"
) -> ImageEncoder:
    """What looks at the pictures of an image prompt.

    Raises
    ------
    UsageError, JobError
        As ``load`` does.
    """
    from dino_ray.diffusion.image_prompt import ImageEncoder

    device = pick_device(device)
    return ImageEncoder(prompt, device, Kept(storage.compute(keeping.dtypes(dtype), device)))


def encode_text(model: str, prompt: str, device: str = "auto", dtype: Dtypes | str = "auto") -> Embeddings:
    """One prompt's embeddings; see `encode_texts`."""
    return encode_texts(model, [prompt], device, dtype)[prompt]


def encode_texts(
    model: str,
    prompts: Sequence[str],
    device: str = "auto",
    dtype: Dtypes | str = "auto",
    *,
    picture: Picture = no_picture,
    options: ModelOptions = AS_PUBLISHED,
) -> Mapping[str, Embeddings]:
    """Prompts as ``model``'s transformer takes them; loads text encoders only, and frees them.

    Parameters
    ----------
    picture : callable
        The source, reduced to at most so many px on its longer side, (h, w, 3) in [0, 1]; asked for by models alone
        whose description ``reads_picture``.

    Returns
    -------
    Mapping of str to Embeddings
        By prompt. CPU float32, which holds exactly whatever ``dtype`` they were computed in, so that they can travel as
        NumPy arrays; each has a batch axis of 1. FLUX.1: ``prompt_embeds`` (1, tokens, width) of T5 and
        ``pooled_prompt_embeds`` (1, width) of CLIP. Empty for a model that takes no text.

    Raises
    ------
    UsageError, JobError
        As ``load`` does.
    """
    ref = resolve(model, options)
    if ref.kind in ("none", "bundled"):
        return {prompt: {} for prompt in prompts}
    from dino_ray.diffusion.components import TextParts
    from dino_ray.diffusion.lora import Loras

    device = pick_device(device)
    family, configs = model_files.family_and_configs(ref)
    encoders = family.text_parts(configs["index"])
    weight_check.check_weights(ref, encoders)
    kept = keeping.kept(ref, family, configs, encoders, keeping.dtypes(dtype), options, device)
    storage.check_device(options, kept, family.core, device)
    parts = TextParts(
        files=_part_files(ref, family, configs, (*encoders, *family.tokenizers)),
        kept=kept,
        device=device,
        loras=Loras.of(options.loras, family, configs) if options.loras else None,
        offload=options.offload,
    )
    prompts = list(dict.fromkeys(prompts))
    encoded: Mapping[str, Embeddings] = _module(family).encode_text(parts, configs, prompts, picture)
    return encoded


def _module(family: Family) -> Any:
    """The half of a family that knows torch."""
    return importlib.import_module(family.module)


def _part_files(
    ref: ModelRef, family: Family, configs: Configs, parts: Sequence[str]
) -> Mapping[str, PartFiles]:
    """Where the components that a model has, of those asked for, lie on this machine; downloaded first where need be.

    Raises
    ------
    UsageError
        Where the model's index names a class that is none of diffusers' or transformers'.
    """
    from dino_ray.diffusion.components import PartFiles

    named = _named(parts, configs)
    for part, (library, cls) in named.items():
        if library not in _LIBRARIES:
            raise UsageError(
                f"--model {ref.location}: its {part} is a {library}.{cls}, and only classes of "
                f"{' and '.join(_LIBRARIES)} are loaded, since others could run any code"
            )
    found = model_files.fetch(ref, named)
    return {
        part: PartFiles(
            part, library, cls, found[part].path, found[part].config, found[part].prefix, found[part].pickled
        )
        for part, (library, cls) in named.items()
    }


def _named(parts: Iterable[str], configs: Configs) -> Mapping[str, tuple[str, str]]:
    """Library and class of the components that a model has, of some."""
    return {part: found for part in parts if (found := class_of(configs["index"], part)) is not None}


def _refuse_none(ref: ModelRef) -> None:
    if ref.kind == "none":
        raise ValueError("the model 'none' is resampling alone: there is nothing to describe or load")


def _bundled_folder(ref: ModelRef) -> Path | None:
    return Path(ref.location) if ref.location else None
