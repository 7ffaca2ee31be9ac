"""How a component's weights are kept: in what type, quantised by whom; and whether a machine can. No torch.

Decided here once, for what loads weights and for what only tells how much memory they will take.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, cast, get_args

from dino_ray.diffusion.dtypes import AUTO, DEFAULT_PART, FP8, TORCH, Compute, Dtypes
from dino_ray.diffusion.model_options import ModelOptions, Quantizer
from dino_ray.errors import UsageError

Role = Literal["core", "vae", "text"]

SMALL_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
"""Text encoders of a few hundred MB, which nobody quantises: little is gained, and CLIP's pooled vector suffers."""

PACKAGES: Mapping[Quantizer, str] = {
    "nf4": "bitsandbytes",
    "int8": "bitsandbytes",
    "torchao-int8": "torchao",
    "torchao-fp8": "torchao",
}
"""Who quantises."""

QUANTIZED_IN_PLACE = ("bitsandbytes", "torchao")
"""Who loads weights straight onto the device."""

PRE_QUANTIZED = (*QUANTIZED_IN_PLACE, "gguf")
"""Quantised checkpoints that can be loaded, by ``quant_method`` of a component's config.json."""

WINDOW_MULTIPLE = 4
"""Latents: windows overlap by a quarter of their side, which is to be whole latents."""

_INSTALL = 'pip install "dino-ray[quantize]"'


@dataclass(frozen=True)
class Kept:
    """How one component's weights are kept."""

    compute: Compute
    """What it computes in; its weights are of this type too, unless one of the next says otherwise."""
    fp8: bool = False
    """Weights in 8 bits, made ``compute`` for as long as their layer works; norms and embeddings of places are not."""
    quantize: Quantizer | None = None
    """To be quantised as it is loaded."""
    quantized: str | None = None
    """Its files are quantised already, by this method."""

    @property
    def package(self) -> str | None:
        """What is needed to load it."""
        return PACKAGES[self.quantize] if self.quantize else self.quantized


def automatic(device: str) -> Compute:
    """The type that suits a device: bf16, which models are published in, on CUDA, else fp32."""
    return "bf16" if device.startswith("cuda") else "fp32"


def kept(
    part: str,
    role: Role,
    cls: str,
    config: Mapping[str, Any],
    dtypes: Dtypes,
    options: ModelOptions,
    device: str,
) -> Kept:
    """How a component is to be kept.

    Parameters
    ----------
    part, cls, config
        Its name, its class and its config.json.
    device : str
        ``cpu`` or ``cuda…``.

    Raises
    ------
    UsageError
        Where what is asked for can't be had together, or of this component.
    """
    large = role == "core" or (role == "text" and cls not in SMALL_ENCODERS)
    asked = dtypes.of(part)
    if role == "vae" and asked == FP8 and dtypes.names(part):
        raise UsageError(f"--dtype {part}=fp8: a VAE is small and loses by it; give fp32, bf16 or fp16")
    made = Kept(
        _compute(part, role, config, dtypes, device),
        fp8=asked == FP8 and (large or dtypes.names(part)),
        quantize=options.quantize if large else None,
        quantized=_method(part, config),
    )
    if made.quantized and made.quantize:
        raise UsageError(
            f"--quantize {made.quantize}: the model's {part} is quantised already, by {made.quantized}; leave it out"
        )
    if made.fp8 and made.package:
        raise UsageError(
            f"--dtype {dtypes}: weights of {part} can't be kept in fp8 and quantised by {made.package} as well; "
            "give a type to compute in"
        )
    return made


def _compute(part: str, role: Role, config: Mapping[str, Any], dtypes: Dtypes, device: str) -> Compute:
    asked = compute(dtypes, device, part)
    if role == "vae" and asked == "fp16" and not dtypes.names(part) and config.get("force_upcast", True):
        return "fp32"  # its activations exceed fp16's range, and tiles come out black
    return asked


def compute(dtypes: Dtypes, device: str, part: str = DEFAULT_PART) -> Compute:
    """The type that a component is asked to compute in; of one kept in fp8, that of those that aren't named."""
    asked = next((name for name in (dtypes.of(part), dtypes.default) if name in TORCH), None)
    return automatic(device) if asked is None else cast(Compute, asked)


def _method(part: str, config: Mapping[str, Any]) -> str | None:
    """Who quantised a component's files; None: nobody.

    Raises
    ------
    UsageError
        Where it is nobody whose files can be loaded.
    """
    found = config.get("quantization_config")
    if not found:
        return None
    method = str(found.get("quant_method")) if isinstance(found, Mapping) else str(found)
    if method not in PRE_QUANTIZED:
        raise UsageError(
            f"--model: its {part} is quantised by {method}, and only files of {' and '.join(PRE_QUANTIZED)} are "
            "loaded; give the model unquantised, with --quantize if need be"
        )
    return method


def check_parts(dtypes: Dtypes, parts: Iterable[str]) -> None:
    """Refuse a type for a component that a model doesn't have.

    Raises
    ------
    UsageError
    """
    known = list(parts)
    if unknown := [part for part, _ in dtypes.parts if part not in known]:
        raise UsageError(
            f"--dtype {dtypes}: the model has no {unknown[0]}; its components are {', '.join(known)}, "
            "and default stands for those that are not named"
        )


def check_offload(options: ModelOptions, parts: Mapping[str, Kept]) -> None:
    """Refuse what can't wait in host memory.

    Raises
    ------
    UsageError
    """
    if options.offload not in ("group", "sequential"):
        return
    for part, each in parts.items():
        if each.package == "bitsandbytes" or (each.package and options.offload == "sequential"):
            raise UsageError(
                f"--offload {options.offload}: weights of {part}, quantised by {each.package}, can't be moved "
                f"piece by piece; give --offload model{', or group' if each.package == 'torchao' else ''}"
            )


def check_vae_tile(side: int, tile: int, latent_scale: int) -> None:
    """Refuse windows of the VAE, in canvas_px, that do not lie on its latents, or that hold a tile as it is.

    Raises
    ------
    UsageError
    """
    multiple = WINDOW_MULTIPLE * latent_scale
    if side % multiple:
        raise UsageError(f"--vae-tile {side}: must be a multiple of {multiple} px for this model's VAE")
    if side >= tile:
        raise UsageError(
            f"--vae-tile {side}: tiles of {tile} px are no larger, so it has nothing to act on; leave it out, or give "
            f"{tile // 2 // multiple * multiple or multiple}"
        )


def check_device(options: ModelOptions, parts: Mapping[str, Kept], core: str, device: str) -> None:
    """Refuse what this machine lacks.

    Raises
    ------
    UsageError
        A package is not installed, or the models run on a CPU that can't do it.
    """
    cuda = device.startswith("cuda")
    if options.offload != "none" and not cuda:
        raise UsageError(
            f"--offload {options.offload}: the models run on the CPU, whose memory is the host's; leave it out"
        )
    for part, each in parts.items():
        if each.package is None:
            continue
        what = (
            f"--quantize {each.quantize}"
            if each.quantize
            else f"--model: its {part}, quantised by {each.package},"
        )
        if find_spec(each.package) is None:
            raise UsageError(f"{what} needs {each.package}; {_INSTALL}")
        # transformers runs its models of bitsandbytes on a CPU, diffusers its own not.
        if each.package == "bitsandbytes" and not cuda and (part == core or each.quantize):
            instead = "torchao-int8 or torchao-fp8" if each.quantize else "the model unquantised"
            raise UsageError(f"{what} needs a CUDA device, and this machine uses none; give {instead}")


def quantizers() -> Mapping[Quantizer, bool]:
    """Which methods of ``--quantize`` are installed here."""
    return {method: find_spec(PACKAGES[method]) is not None for method in get_args(Quantizer)}


def bundled(dtypes: Dtypes, options: ModelOptions) -> Compute:
    """The type of the bundled model, which has one component and is a few MB; by default fp32, whatever the device.

    Raises
    ------
    UsageError
        Where it is to be made smaller, or to wait elsewhere.
    """
    check_parts(dtypes, ("transformer",))
    asked = dtypes.of("transformer")
    for option, given in (
        (f"--quantize {options.quantize}", options.quantize),
        (f"--offload {options.offload}", options.offload != "none"),
        (f"--vae-tile {options.vae_tile}", options.vae_tile),
        (f"--dtype {asked}", asked == FP8),
    ):
        if given:
            raise UsageError(f"{option}: the bundled model is small, and has no VAE; leave it out")
    return "fp32" if asked == AUTO else cast(Compute, asked)
