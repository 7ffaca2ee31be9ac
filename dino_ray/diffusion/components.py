"""A model's components, from their files to memory: the one place where weights of diffusers models are read."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dino_ray.diffusion import offload, single_file, storage
from dino_ray.diffusion.denoiser import Description
from dino_ray.diffusion.dtypes import TORCH
from dino_ray.diffusion.lora import Loras
from dino_ray.diffusion.model_options import Offload, Quantizer
from dino_ray.diffusion.storage import Kept
from dino_ray.errors import JobError

_FAILURES = (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError)
"""What loading weights that are damaged, or do not fit their configuration, raises."""


@dataclass(frozen=True)
class PartFiles:
    """Where one component lies."""

    part: str
    package: str
    """``diffusers`` or ``transformers``."""
    cls: str
    """Its class there."""
    path: Path
    """Its folder, or a single file of weights."""
    config: Path | None = None
    """Of a single file: the folder with its config.json."""
    prefix: str = ""
    """Of a single file: how the names of its tensors begin there."""
    pickled: bool = False
    """Its weights are pickles, and allowed to be."""


CAST_BY_THEIR_WEIGHT = ("wo", "encoder_hid_proj")
"""Layers of T5, and an IP-Adapter's first, whose type is asked for, to cast what goes in, before the layer can make it
that it computes in."""

Change = Callable[[Any], None]
"""What is done to a component's weights: LoRAs and the like."""


def load_model(files: PartFiles, kept: Kept, device: str, change: Change | None = None) -> Any:
    """A component with weights, on ``device``.

    Weights that are neither cast nor moved nor changed are mapped from their file, not copied: replicas of a machine
    share them.

    Parameters
    ----------
    change
        Done on ``device``, where it is quick; but before weights are cast to fp8, which are too coarse to add to.

    Raises
    ------
    JobError
        Where its weights are damaged or do not fit their config.
    """
    with _explained(files.path):
        model = (_from_folder if files.config is None else _from_file)(files, kept, device)
        if device == "cpu" or kept.package not in storage.QUANTIZED_IN_PLACE:  # the others are there
            model = model.to("cpu" if kept.fp8 else device)
    if change is not None:
        change(model)
    if not kept.fp8:
        return model
    _cast_layerwise(model, compute_dtype(kept))
    return model.to(device)


def _from_folder(files: PartFiles, kept: Kept, device: str) -> Any:
    named = {"diffusers": "torch_dtype", "transformers": "dtype"}[files.package]
    model, info = _class(files).from_pretrained(
        files.path,
        use_safetensors=not files.pickled,
        local_files_only=True,
        output_loading_info=True,
        **{named: compute_dtype(kept)},
        **_quantization(files, kept, device),
    )
    if missing := sorted(info["missing_keys"]):  # or else they would stay random
        raise ValueError(f"its weights lack {missing[0]}")
    return model


def _from_file(files: PartFiles, kept: Kept, device: str) -> Any:
    assert files.config is not None
    where = (files.path, files.config, files.prefix)
    model = single_file.load(files.package, _class(files), *where, compute_dtype(kept))
    if kept.quantize is not None:  # diffusers takes a single file's weights for quantised already
        from torchao.quantization import quantize_

        quantize_(model.to(device), _torchao(kept.quantize))
    return model


def compute_dtype(kept: Kept) -> torch.dtype:
    """What a component computes in."""
    dtype: torch.dtype = getattr(torch, TORCH[kept.compute])
    return dtype


def _cast_layerwise(model: Any, compute: torch.dtype) -> None:
    from diffusers.hooks import apply_layerwise_casting
    from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN

    own = getattr(model, "_skip_layerwise_casting_patterns", None) or ()
    keep = getattr(model, "_keep_in_fp32_modules", None) or ()
    apply_layerwise_casting(
        model,
        storage_dtype=torch.float8_e4m3fn,
        compute_dtype=compute,
        skip_modules_pattern=(*DEFAULT_SKIP_MODULES_PATTERN, *own, *keep, *CAST_BY_THEIR_WEIGHT),
    )


def _quantization(files: PartFiles, kept: Kept, device: str) -> Mapping[str, Any]:
    """What ``from_pretrained`` is told of weights that are quantised, or are to be."""
    in_place = kept.package in storage.QUANTIZED_IN_PLACE
    there = {"device_map": {"": device}} if in_place and device != "cpu" else {}
    if kept.quantize is None:
        return there
    library: Any = importlib.import_module(files.package)
    if kept.quantize == "nf4":
        config = library.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype(kept)
        )
    elif kept.quantize == "int8":
        config = library.BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = library.TorchAoConfig(_torchao(kept.quantize))
    return {"quantization_config": config, **there}


def _torchao(how: Quantizer) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    by_name = {"torchao-int8": Int8WeightOnlyConfig, "torchao-fp8": Float8WeightOnlyConfig}
    return by_name[how]()


def load_tiny_vae(folder: Path, description: Description, kept: Kept, device: str) -> Any:
    """A small decoder of a model's latents.

    Raises
    ------
    JobError
        Where it is damaged, or of other latents.
    """
    tiny = load_model(PartFiles("tiny_vae", "diffusers", "AutoencoderTiny", folder), kept, device)
    if tiny.config.latent_channels != description.latent_channels:
        raise JobError(
            f"{folder}: its latents have {tiny.config.latent_channels} channels, those of {description.name} "
            f"{description.latent_channels}; take it away, or put the model's own tiny decoder there"
        )
    return tiny


def load_tokenizer(files: PartFiles) -> Any:
    """A component without weights: a tokenizer or a processor.

    Raises
    ------
    JobError
        Where its files are missing or damaged.
    """
    with _explained(files.path):
        return _class(files).from_pretrained(files.path, local_files_only=True)


@dataclass(frozen=True)
class TextParts:
    """A model's text encoders and what belongs to them, to be loaded when they are needed."""

    files: Mapping[str, PartFiles]
    """By component."""
    kept: Mapping[str, Kept]
    """By component that has weights."""
    device: str
    """Where they compute, and inputs go: a part that is offloaded has its weights elsewhere, or nowhere."""
    loras: Loras | None = None
    """What changes their weights."""
    offload: Offload = "none"

    @contextmanager
    def loaded(self, *names: str) -> Iterator[Sequence[Any]]:
        """Some of them, in memory for as long as the context lasts.

        Raises
        ------
        JobError
            Where one can't be loaded.
        """
        parts = [self._load(name) for name in names]
        try:
            yield parts
        finally:
            parts.clear()
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()  # a replica may load on the same device next

    def _load(self, name: str) -> Any:
        if name not in self.kept:
            return load_tokenizer(self.files[name])
        change = None if self.loras is None else partial(self.loras.into, name)
        piecewise = self.offload in offload.PIECEWISE
        model = load_model(self.files[name], self.kept[name], "cpu" if piecewise else self.device, change)
        model.eval().requires_grad_(False)
        if piecewise:
            offload.piecewise(model, self.device, self.offload)
        return model


def _class(files: PartFiles) -> Any:
    if files.package == "diffusers":
        import diffusers

        return getattr(diffusers, files.cls)
    import transformers

    return getattr(transformers, files.cls)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Load quietly, for this program draws its own progress; and say what it was where it fails."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except _FAILURES as error:
        reason = str(error).strip().partition("\n")[0]
        raise JobError(f"{path}: can't be loaded ({reason}); download the model again whole") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
