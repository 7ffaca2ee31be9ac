"""A component with weights, out of a single file: by diffusers' own converters, from the tensors that are its own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino_ray.diffusion.weight_header import GGUF, PICKLES, SCALES

_UNET_PREFIX, _LAYERS = "model.diffusion_model.", "input_blocks."
"""Diffusers knows a UNet in its authors' layout by how the names of its tensors begin, and by no more."""

_SCALE_LEFTOVERS = ("scaled_fp8", ".scale_input", ".input_scale", ".comfy_quant")


def load(library: str, cls: type[Any], path: Path, config: Path, prefix: str, dtype: torch.dtype) -> Any:
    """A component, on the CPU.

    Parameters
    ----------
    library : str
        ``diffusers`` or ``transformers``.
    cls : type
        Its class.
    path : Path
        The file: safetensors, GGUF, or a pickle that was allowed.
    config : Path
        The folder with its config.json.
    prefix : str
        How the names of its tensors begin in the file.
    dtype : torch.dtype
        What it computes in, and is kept in but for what GGUF has quantised.

    Raises
    ------
    ValueError, RuntimeError, KeyError, OSError, SafetensorError
        Where the file is damaged, or lacks something that the configuration says.
    """
    tensors = _tensors(path, prefix, dtype)
    try:
        model = (
            _text_encoder(cls, tensors, prefix, config, dtype)
            if library == "transformers"
            else _diffusers_model(cls, tensors, path, config, dtype)
        )
    except NotImplementedError as error:  # torch's, of a weight that nothing has filled
        raise ValueError("its weights lack some that its configuration asks for") from error
    if missing := sorted(name for name, value in model.named_parameters() if value.is_meta):
        raise ValueError(f"its weights lack {missing[0]}")
    return model


def _tensors(path: Path, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    suffix = path.suffix.lower()
    if suffix == GGUF or suffix in PICKLES:
        named = _gguf(path) if suffix == GGUF else _pickled(path)
        found = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    else:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            found = {
                name.removeprefix(prefix): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
                if name.startswith(prefix)
            }
    return _rescaled(found, dtype)


def _gguf(path: Path) -> dict[str, Tensor]:
    from diffusers.models.model_loading_utils import load_gguf_checkpoint

    named: dict[str, Tensor] = load_gguf_checkpoint(path)
    return named


def _pickled(path: Path) -> dict[str, Tensor]:
    from dino_ray.diffusion import pickles

    return pickles.read(path)


def _rescaled(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """With the 8-bit weights that have a scale of their own multiplied by it, as those who made them do."""
    for name in [name for name in tensors if name.endswith(SCALES)]:
        scale, weight = tensors.pop(name), name.rpartition(".")[0] + ".weight"
        tensors[weight] = (tensors[weight].float() * scale.float()).to(dtype)
    return {name: value for name, value in tensors.items() if not name.endswith(_SCALE_LEFTOVERS)}


def _diffusers_model(
    cls: type[Any],
    tensors: dict[str, Tensor],
    path: Path,
    config: Path,
    dtype: torch.dtype,
) -> Any:
    from diffusers.utils import logging as diffusers_logging

    if any(name.startswith(_LAYERS) for name in tensors):
        tensors = {_UNET_PREFIX + name: value for name, value in tensors.items()}
    more: dict[str, Any] = {}
    if path.suffix.lower() == GGUF:
        from diffusers import GGUFQuantizationConfig

        more["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
    before = diffusers_logging.get_verbosity()
    # It warns of tensors that nothing needs, such as averages of training.
    diffusers_logging.set_verbosity(logging.ERROR)
    try:
        return cls.from_single_file(
            tensors, config=str(config), torch_dtype=dtype, local_files_only=True, **more
        )
    finally:
        diffusers_logging.set_verbosity(before)


def _text_encoder(
    cls: type[Any], tensors: dict[str, Tensor], prefix: str, config: Path, dtype: torch.dtype
) -> Any:
    from diffusers.loaders import single_file_utils

    named = {prefix + name: value for name, value in tensors.items()}
    make = (
        single_file_utils.create_diffusers_t5_model_from_checkpoint
        if "t5xxl" in prefix
        else single_file_utils.create_diffusers_clip_model_from_ldm
    )
    return make(cls, checkpoint=named, config=str(config), torch_dtype=dtype, local_files_only=True)
