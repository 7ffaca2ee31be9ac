"""A model's components, from their files to memory: the one place where weights of diffusers models are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dino_ray.diffusion.denoiser import Description
from dino_ray.diffusion.lora import Loras
from dino_ray.errors import JobError

_FAILURES = (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError)
"""What loading weights that are damaged, or do not fit their configuration, raises."""


@dataclass(frozen=True)
class PartFiles:
    """Where one component lies."""

    part: str
    library: str
    """``diffusers`` or ``transformers``."""
    cls: str
    """Its class there."""
    path: Path
    """Its folder."""


def load_model(
    files: PartFiles, dtype: torch.dtype, device: str, change: Callable[[Any], None] | None = None
) -> Any:
    """A component with weights, on ``device``.

    Parameters
    ----------
    change
        What is done to its weights, LoRAs and the like: where they are quick to change, and while they are whole.

    Raises
    ------
    JobError
        Where its weights are damaged or do not fit their config.
    """
    named = {"diffusers": "torch_dtype", "transformers": "dtype"}[files.library]
    with _explained(files.path):
        model, info = _class(files).from_pretrained(
            files.path,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{named: dtype},
        )
        if missing := sorted(info["missing_keys"]):  # or else they would stay random
            raise ValueError(f"its weights lack {missing[0]}")
        model = model.to(device)
    if change is not None:
        change(model)
    return model


def load_tiny_vae(folder: Path, description: Description, dtype: torch.dtype, device: str) -> Any:
    """A small decoder of a model's latents.

    Raises
    ------
    JobError
        Where it is damaged, or of other latents.
    """
    tiny = load_model(PartFiles("tiny_vae", "diffusers", "AutoencoderTiny", folder), dtype, device)
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
    dtypes: Mapping[str, torch.dtype]
    device: str
    loras: Loras | None = None
    """What changes their weights."""

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
        if name not in self.dtypes:
            return load_tokenizer(self.files[name])
        change = None if self.loras is None else partial(self.loras.into, name)
        model = load_model(self.files[name], self.dtypes[name], self.device, change)
        return model.eval().requires_grad_(False)


def _class(files: PartFiles) -> Any:
    if files.library == "diffusers":
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
