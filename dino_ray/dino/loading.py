"""From a name, a folder or a hub id to a DINO model that turns pixels into tokens.

`describe` reads ``config.json`` only and never imports torch; `load` reads weights, from safetensors alone.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dino_ray import hub
from dino_ray.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Dtype = Literal["float32", "bfloat16", "float16"]

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).parent / "weights"

ALIASES = {
    "dinov2-small": "facebook/dinov2-small",
    "dinov2-base": "facebook/dinov2-base",
    "dinov2-large": "facebook/dinov2-large",
    "dinov2-reg-small": "facebook/dinov2-with-registers-small",
    "dinov2-reg-base": "facebook/dinov2-with-registers-base",
    "dinov2-reg-large": "facebook/dinov2-with-registers-large",
    "dinov3-small": "facebook/dinov3-vits16-pretrain-lvd1689m",
    "dinov3-base": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    "dinov3-large": "facebook/dinov3-vitl16-pretrain-lvd1689m",
}
"""Short names for models on the Hugging Face hub. DINOv3's must be asked for there first."""

_LICENCES = {name: "DINOv3 License" for name in ALIASES if name.startswith("dinov3")}

_WEIGHTS = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")

CLASSES = {
    "dinov2": ("transformers.models.dinov2.modeling_dinov2", "Dinov2Model"),
    "dinov2_with_registers": (
        "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers",
        "Dinov2WithRegistersModel",
    ),
    "dinov3_vit": ("transformers.models.dinov3_vit.modeling_dinov3_vit", "DINOv3ViTModel"),
}
"""``model_type`` of a config to the module and class that run it; by name: each import costs seconds."""

UNUSED_WEIGHTS = frozenset({"embeddings.mask_token"})
"""May be absent from a file: only masked pre-training reads them."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DinoFacts:
    """What a planner or a report must know of a DINO model; from its ``config.json``."""

    name: str
    """As it was asked for: ``bundled``, an alias, a folder, a hub id."""
    model_type: str
    """A key of `CLASSES`."""
    dim: int
    """Channels of a token."""
    patch: int
    """Side of a patch, px."""
    prefix_tokens: int
    """Class and register tokens that come before the patch tokens."""


@dataclass(frozen=True)
class Dino:
    """A loaded model: pixels to patch tokens. Its weights are frozen; gradients reach the pixels."""

    facts: DinoFacts
    model: torch.nn.Module
    device: torch.device

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def patch(self) -> int:
        return self.facts.patch

    @property
    def dim(self) -> int:
        return self.facts.dim

    @property
    def prefix_tokens(self) -> int:
        return self.facts.prefix_tokens

    def __call__(self, pixels: Tensor) -> Tensor:
        """Patch tokens of a batch of images.

        Parameters
        ----------
        pixels
            (B, 3, H, W) float32 RGB in [0, 1]. Sides that are no multiple of ``patch`` are resized to the
            nearest one; the model alone would crop them.

        Returns
        -------
        (B, rows, cols, dim) float32: the last layer's normalised tokens, each scaled to a root mean square of
        1; rows and cols are the (resized) sides over ``patch``.
        """
        import torch
        from torch.nn import functional

        rows, cols = (max(1, round(side / self.patch)) for side in pixels.shape[-2:])
        size = (rows * self.patch, cols * self.patch)
        pixels = pixels.to(self.device, torch.float32)
        if tuple(pixels.shape[-2:]) != size:
            pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        mean = pixels.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
        std = pixels.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
        dtype = next(self.model.parameters()).dtype
        hidden: Tensor = self.model(((pixels - mean) / std).to(dtype)).last_hidden_state
        tokens = hidden[:, self.prefix_tokens :].float()
        return unit_rms(tokens).reshape(-1, rows, cols, self.dim)


def unit_rms(tokens: Tensor) -> Tensor:
    """Tokens (..., dim), each scaled by itself to a root mean square of 1: what every consumer expects."""
    return tokens * tokens.square().mean(dim=-1, keepdim=True).clamp_min(1e-12).rsqrt()


def describe(name: str = BUNDLED) -> DinoFacts:
    """What ``name`` is, from its ``config.json`` alone; imports no torch.

    Parameters
    ----------
    name
        ``bundled``, a key of `ALIASES`, a folder with a ``config.json``, or a hub id (fetched, then cached).

    Raises
    ------
    UsageError
        Nothing of that name can be found, or it is not a DINO model.
    """
    folder = _folder(name)
    if folder is None:
        folder = hub.snapshot(_repo(name), ["config.json"])
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(
            f"--dino {name}: no config.json in {folder}; name a folder saved by transformers' save_pretrained"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"--dino {name}: {path} is not JSON ({error}); fetch the model again") from error
    return _facts(name, config if isinstance(config, dict) else {})


def load(name: str = BUNDLED, device: str = "cpu", dtype: Dtype = "float32") -> Dino:
    """Loads a DINO model; ``name`` as for `describe`.

    Raises
    ------
    UsageError
        As `describe`; or the weights are not there as safetensors, or do not fit the config. A model is never
        completed by random weights.
    """
    facts = describe(name)
    folder = fetch(name)
    if not any(folder.glob("*.safetensors")):
        raise UsageError(
            f"--dino {name}: no .safetensors file in {folder}; other formats can run code and are not read"
        )
    import torch
    from safetensors import SafetensorError

    try:
        with _quiet():
            module, class_name = CLASSES[facts.model_type]
            model, info = getattr(importlib.import_module(module), class_name).from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                dtype=getattr(torch, dtype),
                ignore_mismatched_sizes=True,  # or transformers raises an error that names no weight
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UsageError(f"--dino {name}: its weights cannot be loaded: {_first_line(error)}") from error
    misshapen = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    unfit = sorted((set(info["missing_keys"]) | misshapen) - UNUSED_WEIGHTS)
    if unfit:
        raise UsageError(
            f"--dino {name}: {len(unfit)} weights are missing or of another shape than config.json says"
            f" (first: {unfit[0]}); fetch the model again"
        )
    model.eval().requires_grad_(False).to(device)
    return Dino(facts, model, torch.device(device))


def fetch(name: str) -> Path:
    """The folder with a model's files, downloaded first where it has to be; ``name`` as for `describe`.

    Raises
    ------
    UsageError, JobError
        Where that can't be done.
    """
    return _folder(name) or hub.snapshot(_repo(name), ["config.json", *_WEIGHTS], whole=_has_weights)


def is_cached(name: str) -> bool:
    """Whether a hub's model lies in the local cache; asks no network."""
    folder = _repo(name).cached("config.json")
    return folder is not None and _has_weights(folder)


def _has_weights(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file()


def _folder(name: str) -> Path | None:
    """The local folder that ``name`` means, or None where it can only be a hub id."""
    if name == BUNDLED:
        return BUNDLED_FOLDER
    if name in ALIASES:
        return None
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UsageError(f"--dino {name}: is a file; name the folder that holds config.json and .safetensors")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        known = ", ".join((BUNDLED, *ALIASES))
        raise UsageError(f"--dino {name}: no such folder, hub id (owner/name) or known name ({known})")
    return None


def _repo(name: str) -> hub.Repo:
    repo = hub.parse(ALIASES.get(name, name), "--dino", _LICENCES.get(name, ""))
    if repo is None:
        raise UsageError(f"--dino {name}: no folder and no hub repository of that name")
    return repo


def _facts(name: str, config: dict[str, Any]) -> DinoFacts:
    model_type = config.get("model_type")
    if model_type not in CLASSES:
        raise UsageError(
            f"--dino {name}: its config.json says model_type {model_type!r};"
            f" dino_ray knows {', '.join(CLASSES)}"
        )
    registers = 0 if model_type == "dinov2" else _integer(name, config, "num_register_tokens", least=0)
    return DinoFacts(
        name=name,
        model_type=model_type,
        dim=_integer(name, config, "hidden_size"),
        patch=_integer(name, config, "patch_size"),
        prefix_tokens=1 + registers,
    )


def _integer(name: str, config: dict[str, Any], key: str, least: int = 1) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < least:
        raise UsageError(f"--dino {name}: its config.json has {key}={value!r}; a whole number is needed")
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and load report: what is wrong is raised, not printed."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
