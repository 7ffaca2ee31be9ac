"""What a single file of weights holds, told by its header: names and shapes of tensors, and no more is read. No torch.

Three layouts are in use: that of a model's authors, which ComfyUI and others keep and in which whole checkpoints come;
the same without the rest of the checkpoint; and that of diffusers. Models that differ in nothing but their training are
told apart by what the file says of itself, or by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from dino_ray.diffusion.weight_header import Header, Shapes, read_header, spread
from dino_ray.errors import UsageError

_CORE_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "model.", "")
_VAE_PREFIXES = ("first_stage_model.", "vae.")
_TEXT_PREFIXES = {
    "cond_stage_model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.0.model.": "text_encoder_2",  # of SDXL's refiner, which has no first one
    "conditioner.embedders.1.model.": "text_encoder_2",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_2",  # FLUX.1's; SD3's is its third
}
"""By the names of its tensors in a whole checkpoint, which text encoder it is."""

_FOREIGN = {
    ".absmax": "bitsandbytes",
    ".quant_state.bitsandbytes__nf4": "bitsandbytes",
    ".qweight": "nunchaku or GPTQ",
    ".weight_scale_2": "NVFP4",
}
"""Endings of tensors' names that only other programs' quantisation has."""

V_BIAS_SPREAD = 0.09
"""Standard deviation of one bias of Stable Diffusion 2's UNet, above which it is taken to predict a velocity. The two
kinds have the same tensors, and ComfyUI tells them apart by this; ``--components`` says which it is where it errs."""

_V_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    parts: Mapping[str, str]
    """By component: how the names of its tensors begin."""
    core: str
    """The component that predicts, ``transformer`` or ``unet``; empty where there is none: a VAE alone."""
    cls: str
    """Its class in diffusers."""
    title: str
    """For people."""
    model: str | None
    """The published model of its shape, as the catalogue names it; None where no such is known."""
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    """What the file says of the schedule it was trained with, as a ``scheduler_config.json`` spells it."""


@dataclass(frozen=True)
class _Kind:
    core: str
    cls: str
    title: str
    marks: tuple[str, ...]
    """Tensors, one for each layout: which has one of them is of this kind."""


_UNET = _Kind(
    *("unet", "UNet2DConditionModel", "Stable Diffusion"),
    ("input_blocks.0.0.weight", "down_blocks.0.resnets.0.conv1.weight"),
)
_FLUX2 = _Kind(
    *("transformer", "Flux2Transformer2DModel", "FLUX.2"),
    ("single_stream_modulation.lin.weight", "single_stream_modulation.linear.weight"),
)
_FLUX = _Kind(
    *("transformer", "FluxTransformer2DModel", "FLUX.1"),
    ("double_blocks.0.img_attn.norm.key_norm.scale", "single_transformer_blocks.0.proj_mlp.weight"),
)
_SD3 = _Kind(
    *("transformer", "SD3Transformer2DModel", "Stable Diffusion 3"),
    ("joint_blocks.0.x_block.attn.qkv.weight", "pos_embed.pos_embed"),
)
_QWEN = _Kind(
    *("transformer", "QwenImageTransformer2DModel", "Qwen-Image"),
    ("transformer_blocks.0.img_mod.1.weight",),
)
_Z = _Kind(
    *("transformer", "ZImageTransformer2DModel", "Z-Image"),
    ("noise_refiner.0.attention.qkv.weight", "noise_refiner.0.attention.to_q.weight"),
)
_KINDS = (_UNET, _FLUX2, _FLUX, _SD3, _QWEN, _Z)

_OTHERS = {
    "distilled_guidance_layer.in_proj.bias": "Chroma",
    "txtfusion.projector.weight": "Krea 2",
    "double_layers.0.attn.w1q.weight": "AuraFlow",
    "edm_mean": "Playground 2.5",
    "control_model.time_embed.0.weight": "a ControlNet",
    "controlnet_cond_embedding.conv_in.weight": "a ControlNet",
    "head.modulation": "Wan",
}
"""Tensors by which a file is known that is of none of these."""


def contents(path: Path, option: str = "--model", allow_pickle: bool = False) -> Contents:
    """What a file holds, by its header.

    Raises
    ------
    UsageError
        Where it can't be read, is a pickle that is not allowed, or holds nothing that is known here.
    """
    state = path.stat()
    return _contents(path, option, allow_pickle, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=16)
def _contents(path: Path, option: str, allow_pickle: bool, *state: int) -> Contents:
    asked = f"{option} {path}"
    header = read_header(path, asked, allow_pickle)
    for ending, maker in _FOREIGN.items():
        if any(name.endswith(ending) for name in header.shapes):
            raise UsageError(
                f"{asked}: its weights are quantised by {maker}, which is not read from a single file; give a "
                "plain, an 8-bit floating-point or a GGUF file, or a diffusers folder"
            )
    if any("lora_" in name for name in header.shapes):
        raise UsageError(f"{asked}: holds a LoRA, which goes on top of a model; give the model")
    by_prefix = {prefix: header.under(prefix) for prefix in _CORE_PREFIXES}
    for mark, title in _OTHERS.items():
        if any(mark in shapes for shapes in by_prefix.values()):
            raise UsageError(f"{asked}: holds {title}, which is not driven; {_known()}")
    for prefix, shapes in by_prefix.items():
        for kind in _KINDS:
            if any(mark in shapes for mark in kind.marks):
                return _of_kind(kind, shapes, prefix, header, path, asked)
    if parts := _vae(header, (*_VAE_PREFIXES, "")):
        return Contents(parts, "", "", "a VAE", None)
    raise UsageError(f"{asked}: holds no model that is known here; {_known()}")


def _known() -> str:
    titles = ", ".join(kind.title for kind in _KINDS)
    return f"single files of {titles} are read"


def _of_kind(kind: _Kind, shapes: Shapes, prefix: str, header: Header, path: Path, asked: str) -> Contents:
    said = " ".join([path.stem, *(header.metadata.get(name, "") for name in _TITLES)]).lower()
    scheduler: dict[str, Any] = {}
    if kind is _UNET:
        title, model = _which_unet(shapes, asked)
        scheduler = _schedule(header, prefix, title, path)
    elif kind is _FLUX:
        title, model = _which_flux(shapes, said, asked)
    else:
        title, model = kind.title, _WHICH[kind.title](shapes, said)
    parts = {kind.core: prefix, **_vae(header), **_text(header, kind)}
    return Contents(parts, kind.core, kind.cls, title, model, scheduler)


_TITLES = ("modelspec.title", "modelspec.architecture", "general.name")
"""Where a file names itself."""


def _vae(header: Header, prefixes: Sequence[str] = _VAE_PREFIXES) -> dict[str, str]:
    for prefix in prefixes:
        if f"{prefix}decoder.conv_in.weight" in header.shapes:
            return {"vae": prefix}
    return {}


def _text(header: Header, kind: _Kind) -> dict[str, str]:
    found = {}
    for prefix, part in _TEXT_PREFIXES.items():
        if any(name.startswith(prefix) for name in header.shapes):
            third = kind is _SD3 and "t5xxl" in prefix
            found["text_encoder_3" if third else part] = prefix
    return found


# ---- which of its kind


def _which_unet(shapes: Shapes, asked: str) -> tuple[str, str | None]:
    first = shapes.get("input_blocks.0.0.weight") or shapes.get("conv_in.weight", (0, 4))
    if first[1] != 4:
        raise UsageError(
            f"{asked}: its UNet takes {first[1]} channels where text-to-image models take 4; inpainting and editing "
            "variants are not driven: give the text-to-image model"
        )
    widths = {shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")}
    told = shapes.get("label_emb.0.0.weight") or shapes.get("add_embedding.linear_1.weight")
    width = widths.pop() if len(widths) == 1 else 0
    if told is not None:
        sizes = {2816: ("Stable Diffusion XL", "sdxl"), 2560: ("Stable Diffusion XL refiner", "sdxl-refiner")}
        return sizes.get(told[1], ("Stable Diffusion XL", None))
    return {768: ("Stable Diffusion 1", "sd15"), 1024: ("Stable Diffusion 2", "sd21")}.get(
        width, ("Stable Diffusion", None)
    )


def _schedule(header: Header, prefix: str, title: str, path: Path) -> dict[str, Any]:
    """What is said by tensors put there for it, by metadata, or by how Stable Diffusion 2 was trained."""
    found: dict[str, Any] = {"rescale_betas_zero_snr": True} if "ztsnr" in header.shapes else {}
    said = header.metadata.get("modelspec.prediction_type", "")
    if "v_pred" in header.shapes or said == "v":
        return found | {"prediction_type": "v_prediction"}
    if said == "epsilon":
        return found | {"prediction_type": "epsilon"}
    if title == "Stable Diffusion 2" and (width := spread(path, prefix + _V_BIAS)) is not None:
        return found | {"prediction_type": "v_prediction" if width > V_BIAS_SPREAD else "epsilon"}
    return found


def _which_flux(shapes: Shapes, said: str, asked: str) -> tuple[str, str | None]:
    inputs = shapes.get("img_in.weight") or shapes.get("x_embedder.weight", (3072, 64))
    if inputs[1] > 64:
        raise UsageError(
            f"{asked}: its transformer takes {inputs[1]} channels where plain FLUX.1 takes 64; fill and control "
            "variants are not driven: give the text-to-image model"
        )
    if inputs != (3072, 64):
        return "FLUX.1", None
    guided = any(name.startswith(("guidance_in.", "time_text_embed.guidance_embedder.")) for name in shapes)
    if guided and "kontext" in said:
        return "FLUX.1 Kontext", "flux-kontext"
    return ("FLUX.1 dev", "flux-dev") if guided else ("FLUX.1 schnell", "flux-schnell")


def _which_sd3(shapes: Shapes, said: str) -> str | None:
    places = shapes.get("pos_embed") or shapes.get("pos_embed.pos_embed", (1, 0, 0))
    known = {"sd3-medium": (36864, 1536), "sd35-medium": (147456, 1536), "sd35-large": (36864, 2432)}
    return next((name for name, shape in known.items() if places[1:] == shape), None)


def _which_flux2(shapes: Shapes, said: str) -> str | None:
    inputs = shapes.get("img_in.weight") or shapes.get("x_embedder.weight", (0, 0))
    if "base" in said:  # of the same shape, and not distilled
        return None
    return {6144: "flux2-dev", 3072: "flux2-klein", 4096: "flux2-klein-9b"}.get(inputs[0])


def _which_qwen(shapes: Shapes, said: str) -> str | None:
    if shapes.get("img_in.weight", (0,))[0] != 3072:
        return None
    if "edit" not in said:
        return "qwen-image"
    found = re.search(r"25\d\d", said)
    year = "2511" if "__index_timestep_zero__" in shapes else found[0] if found else ""
    return {"2509": "qwen-image-edit-2509", "2511": "qwen-image-edit-2511"}.get(year, "qwen-image-edit")


def _which_z(shapes: Shapes, said: str) -> str | None:
    turbo = shapes.get("cap_embedder.1.weight") == (3840, 2560) and "base" not in said
    return "z-image-turbo" if turbo else None


_WHICH = {
    "FLUX.2": _which_flux2,
    "Stable Diffusion 3": _which_sd3,
    "Qwen-Image": _which_qwen,
    "Z-Image": _which_z,
}
