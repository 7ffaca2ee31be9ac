"""LoRA files (Hu et al. 2021, arXiv:2106.09685): where they lie, and whether they are for a model. No torch.

A file is judged by its header alone: by the layers that its weights are for, as any of the usual trainers names them
(diffusers and peft, sd-scripts, ComfyUI), and by the channels that those layers read.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_ray.diffusion import extras, places
from dino_ray.diffusion.extras import SUFFIX
from dino_ray.errors import UsageError

USUAL_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers' training scripts save; taken where a repository has more files than one."""

MOST_WEIGHT = 10.0
"""Beyond any in use: such a weight is a slip of the keyboard."""

_PREFIXES = re.compile(
    r"(base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.|unet\.|lora_unet_|lora_transformer_)+"
)
"""What trainers and programs write before the name of a layer."""

_TEXT = re.compile(r"(text_encoder|lora_te|te\d?_|text_encoders\.)")
"""How weights for text encoders begin."""

_DOWN = re.compile(
    r"(?P<layer>.+?)[._]lora\d?(_linear_layer)?[._](A|down)(\.default)?\.weight|(?P<other>.+)\.down\.weight"
)
"""The first of a layer's two factors: its second axis is the channels that the layer reads."""

_ELSE = ("dora_scale", ".hada_", ".lokr_", ".oft_", ".glora", ".boft")
"""Marks of what is trained like a LoRA and applied otherwise; of the first, diffusers would apply a part."""


@dataclass(frozen=True)
class Lora:
    """One ``--lora``."""

    location: str
    """A file's absolute path, or ``owner/name/file.safetensors`` on the hub."""
    weight: float
    """What its change of the weights is multiplied by; not 0."""

    @property
    def option(self) -> str:
        """For messages."""
        return f"--lora {self.location}"


@dataclass(frozen=True)
class LoraLayers:
    """By what a LoRA for a family's network is known."""

    names: re.Pattern[str]
    """Matches the names of its layers, as diffusers and the original code name them, dots as underscores."""
    probe: re.Pattern[str]
    """Matches those of them that tell its width, by the channels that they read."""
    width: Callable[[Mapping[str, Any]], int]
    """Its config to that number."""
    published: Mapping[int, str]
    """Models of this family that people train LoRAs for, by that number."""
    blocks: Callable[[Mapping[str, Any]], Mapping[str, int]] = lambda config: {}
    """Its config to how many there are of some kinds of block, by the names that come before their number."""
    comfy_as_kohya: bool = False
    """diffusers reads its LoRAs as ComfyUI names layers only once they are named as sd-scripts does."""


def parse(options: Iterable[str]) -> tuple[Lora, ...]:
    """What the ``--lora`` options name, in an order that does not depend on theirs, without those of weight 0.

    Raises
    ------
    UsageError
        Where one names no safetensors file, a missing one, a weight out of range, or the same file as another.
    """
    named = [_parse(option) for option in options]
    seen: set[str] = set()
    for lora in named:
        if lora.location in seen:
            raise UsageError(f"{lora.option}: is named twice; name it once, with the weight that you want")
        seen.add(lora.location)
    # Sums of rounded numbers depend on their order: the same LoRAs give the same pixels however they are listed.
    return tuple(sorted((lora for lora in named if lora.weight), key=lambda lora: lora.location))


def split(option: str) -> tuple[str, str]:
    """A ``--lora`` as what it names and the weight, with its colon; the latter may be empty."""
    name, colon, tail = option.rpartition(":")
    if not colon or Path(option).expanduser().exists() or _number(tail) is None:
        return option, ""
    return name, colon + tail


def _parse(option: str) -> Lora:
    name, weighed = split(option)
    weight = float(weighed[1:] or 1)
    if not name:
        raise UsageError(f"--lora {option!r}: names no file; give FILE.safetensors or FILE.safetensors:0.8")
    if not (math.isfinite(weight) and abs(weight) <= MOST_WEIGHT):
        raise UsageError(f"--lora {option}: its weight must be within -{MOST_WEIGHT:g} to {MOST_WEIGHT:g}")
    return Lora(_locate(name), weight)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _locate(name: str) -> str:
    """A file's absolute path, or the whole name of one on the hub."""
    path = extras.find(name, "loras")
    if path is not None and path.is_dir():
        return str(_only_file(name, [each for each in path.iterdir() if each.suffix == SUFFIX]).resolve())
    if path is not None:
        if path.suffix != SUFFIX:
            raise UsageError(
                f"--lora {name}: is no {SUFFIX} file, and reading other formats can run any code; get it as {SUFFIX}"
            )
        return os.path.abspath(path)
    if extras.on_hub(name):
        nested = name.count("/") > 1
        if nested and name.endswith(SUFFIX):
            return name
        if not nested and not name.endswith(SUFFIX):
            return f"{name}/{_only_file(name, extras.listing(name, '--lora')).as_posix()}"
    looked = ", ".join(map(str, extras.libraries("loras"))) or f"no others: {places.FOLDERS} names none"
    raise UsageError(
        f"--lora {name}: no such file here; give a {SUFFIX} file, or a Hugging Face hub's owner/name or "
        f"owner/name/file{SUFFIX}; looked in {looked}"
    )


def _only_file(name: str, files: Sequence[Path]) -> Path:
    if usual := [file for file in files if file.name == USUAL_FILE]:
        return usual[0]
    if len(files) == 1:
        return files[0]
    if not files:
        raise UsageError(f"--lora {name}: holds no {SUFFIX} file; give one that does")
    names = ", ".join(sorted(file.name for file in files))
    raise UsageError(f"--lora {name}: holds {len(files)} LoRAs, name one of them: {names}")


def local_path(lora: Lora) -> Path:
    """Its file on this machine, downloaded first where it has to be.

    Raises
    ------
    UsageError
        Where there is none.
    """
    path = extras.inside(lora.location, option="--lora")
    if not path.is_file():
        raise UsageError(f"{lora.option}: no such file; check the spelling")
    return path


_COMFY = {
    "diffusion_model.": "lora_unet_",
    "text_encoders.clip_l.transformer.": "lora_te1_",
    "text_encoders.clip_g.transformer.": "lora_te2_",
}
"""How ComfyUI and how sd-scripts begin the names of a component's layers."""


def kohya_name(key: str) -> str | None:
    """A weight's name as sd-scripts has it, of ComfyUI's name for it; None where there is none.

    >>> kohya_name("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight")
    'lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight'
    """
    begins = next((begin for begin in _COMFY if key.startswith(begin)), None)
    parts = re.fullmatch(r"(.+?)\.(alpha|(lora_A|lora_B|lora_down|lora_up)\.weight)", key)
    if begins is None or parts is None:
        return None
    layer = parts[1].removeprefix(begins).replace(".", "_")
    factor = parts[2].replace("lora_A", "lora_down").replace("lora_B", "lora_up")
    return f"{_COMFY[begins]}{layer}.{factor}"


def check(
    loras: Iterable[Lora],
    model: str,
    layers: LoraLayers | None,
    config: Mapping[str, Any],
    known: Iterable[LoraLayers],
) -> None:
    """See by their headers that LoRAs are for a model.

    Parameters
    ----------
    model
        Its name, for messages.
    layers
        How LoRAs of its family are known; None: it takes none.
    config
        Of what predicts.
    known
        All families', to say what a LoRA is for of whose layers most are not this one's, or are as wide.

    Raises
    ------
    UsageError
        Where one is damaged, none, or for another model.
    """
    for lora in loras:
        if layers is None:
            raise UsageError(f"{lora.option}: the model {model} takes no LoRA; leave it out")
        reads, text = _read(lora)
        if not reads and text:
            continue  # of text encoders alone: what they are is seen where they are loaded
        width = _width(layers, reads)
        fitting = sum(layers.names.match(layer) is not None for layer in reads)
        if 2 * fitting < len(reads) or width not in (None, layers.width(config)):
            raise UsageError(
                f"{lora.option}: is for {_meant_for(reads, known)}, the model {model} is another kind; "
                "use it with the model that it was trained for"
            )
        for layer in reads:
            block = re.match(r"(\w+?)_(\d+)_", layer)
            if block and int(block[2]) >= layers.blocks(config).get(block[1], math.inf):
                raise UsageError(
                    f"{lora.option}: is for a model with more blocks than {model} has ({layer}); "
                    "use it with the model that it was trained for"
                )


def _read(lora: Lora) -> tuple[Mapping[str, int], int]:
    """Layers of the network with the channels that they read, and how many layers of text encoders there are."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(local_path(lora), framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{lora.option}: can't be read as safetensors ({error}); get it again") from error
    if other := next((name for name in shapes if any(mark in name for mark in _ELSE)), None):
        raise UsageError(
            f"{lora.option}: is no plain LoRA but a DoRA or LyCORIS ({other}), which is not applied; get the plain one"
        )
    reads, text = {}, 0
    for name, shape in shapes.items():
        if not (found := _DOWN.fullmatch(name)) or len(shape) < 2:
            continue
        if _TEXT.match(name):
            text += 1
            continue
        layer = _PREFIXES.sub("", found["layer"] or found["other"], count=1)
        reads[layer.replace(".", "_")] = shape[1]
    if not reads and not text:
        raise UsageError(f"{lora.option}: holds no LoRA weights; give the file of a LoRA")
    return reads, text


def _width(layers: LoraLayers, reads: Mapping[str, int]) -> int | None:
    """Channels that the first telling layer reads; None where there is none."""
    return next((width for layer, width in reads.items() if layers.probe.match(layer)), None)


def _meant_for(reads: Mapping[str, int], known: Iterable[LoraLayers]) -> str:
    """The model that a LoRA is likely for, in words."""
    for layers in known:
        width = _width(layers, reads)
        if (
            width is not None
            and width in layers.published
            and all(layers.names.match(layer) for layer in reads)
        ):
            return layers.published[width]
    layer, width = next(iter(reads.items()))
    return f"no model known here (its layer {layer} reads {width} channels)"
