"""From a model's name to its description, its denoiser and its text embeddings.

``describe`` reads configuration files only and imports no torch. Weights are read from safetensors only,
because unpickling runs whatever code a file holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ray.diffusion import adapter_file, model_files
from dino_ray.diffusion.catalogue import ALIASES, KNOWN, KnownModel
from dino_ray.diffusion.denoiser import Denoiser, Description
from dino_ray.diffusion.device import pick_device, pick_dtype
from dino_ray.diffusion.families import flux_config
from dino_ray.diffusion.model_files import ModelRef, resolve

if TYPE_CHECKING:
    from torch import Tensor

    from dino_ray.diffusion.bundled.model import BundledDenoiser
    from dino_ray.diffusion.families.flux import FluxDenoiser

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

_MODEL = ("transformer", "vae")
"""What a replica holds, of a FLUX.1 model."""
_TEXT = ("text_encoder", "text_encoder_2")
_TOKENIZERS = ("tokenizer", "tokenizer_2")


def describe(model: str, adapter: str | None = None) -> Description:
    """What the planner must know of ``model``, from its configuration files; no weights are fetched.

    Parameters
    ----------
    model : str
        A name that ``resolve`` understands.
    adapter : str, optional
        File of a DINO adapter that is to be used with it.

    Raises
    ------
    UsageError
        Where the model is unknown, unreachable, of a class that can't be driven, or lacks safetensors of any
        component, text encoders included; where the adapter is none, or another model's. Of a model on the hub, whose
        weights may not be here yet, ``load`` looks at the weights that the adapter was trained for.
    ValueError
        For ``none``, which has no model to describe.
    """
    ref = resolve(model)
    _refuse_none(ref)
    if ref.kind == "bundled":
        from dino_ray.diffusion import bundled

        description = bundled.describe(_bundled_folder(ref))
    else:
        description = _describe(ref)
        model_files.check_weights(ref, (*_MODEL, *_TEXT))
    if adapter is None:
        return description
    return adapter_file.describe(adapter, adapter_target(ref)).applied_to(description)


def load(
    model: str,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | None = None,
    *,
    sketch: str | None = None,
) -> Denoiser:
    """A replica's model, with weights on ``device``; text encoders are not touched.

    Parameters
    ----------
    model : str
        A name that ``resolve`` understands.
    device : str
        As torch spells it, or ``auto``: CUDA where there is one, else the CPU.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        ``auto``: bfloat16 on CUDA, else float32; the bundled model always float32.
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
    ref = resolve(model)
    _refuse_none(ref)
    device = pick_device(device)
    denoiser = _load(ref, device, dtype, sketch)
    if adapter is None:
        return denoiser
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
    width = flux_config.text_width(model_files.configs(ref)["transformer"])
    here = fetch or ref.kind == "folder"
    folder = model_files.fetch(ref, ("transformer",)) / "transformer" if here else None
    return adapter_file.Target(ref.name, "flux", width, folder)


def _load(ref: ModelRef, device: str, dtype: str, sketch: str | None) -> BundledDenoiser | FluxDenoiser:
    if ref.kind == "bundled":
        from dino_ray.diffusion import bundled

        return bundled.load(
            _bundled_folder(ref), device=device, dtype="float32" if dtype == "auto" else dtype
        )
    from dino_ray.diffusion.families import flux

    description = _describe(ref)
    schedule = flux_config.Schedule.from_config(model_files.configs(ref)["scheduler"], ref.name)
    model_files.check_weights(ref, _MODEL)
    folder = model_files.fetch(ref, _MODEL)
    tiny_vae = None if sketch is None else model_files.fetch_tiny_vae(sketch)
    return flux.load(folder, schedule, description, device, pick_dtype(dtype, device), tiny_vae)


def find_sketch(model: str) -> str | None:
    """A small decoder of the model's latents, for guidance to look through: a folder or a hub id, for ``load``.

    Decided once for a job, since pixels depend on it. None where the family has none or none is to be had.
    """
    ref = resolve(model)
    return model_files.find_tiny_vae(ref) if ref.kind in ("folder", "hub") else None


def encode_text(model: str, prompt: str, device: str = "auto", dtype: str = "auto") -> Mapping[str, Tensor]:
    """The prompt as ``model``'s transformer takes it; loads text encoders only, and frees them.

    Returns
    -------
    Mapping of str to Tensor
        CPU float32, which holds exactly whatever ``dtype`` they were computed in, so that they can travel as
        NumPy arrays; each has a batch axis of 1. FLUX.1: ``prompt_embeds`` (1, tokens, width) of T5 and
        ``pooled_prompt_embeds`` (1, width) of CLIP. Empty for a model that takes no text.

    Raises
    ------
    UsageError, JobError
        As ``load`` does.
    """
    ref = resolve(model)
    if ref.kind in ("none", "bundled"):
        return {}
    from dino_ray.diffusion.families import flux_text

    device = pick_device(device)
    tokens = flux_config.text_tokens(model_files.configs(ref)["transformer"])
    model_files.check_weights(ref, _TEXT)
    folder = model_files.fetch(ref, (*_TEXT, *_TOKENIZERS))
    return flux_text.encode(folder, prompt, tokens, device, pick_dtype(dtype, device))


def _describe(ref: ModelRef) -> Description:
    configs = model_files.configs(ref)
    return flux_config.describe(ref.name, configs["transformer"], configs["vae"], configs["scheduler"])


def _refuse_none(ref: ModelRef) -> None:
    if ref.kind == "none":
        raise ValueError("the model 'none' is resampling alone: there is nothing to describe or load")


def _bundled_folder(ref: ModelRef) -> Path | None:
    return Path(ref.location) if ref.location else None
