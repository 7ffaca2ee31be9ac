"""Every option, once: its unit, range and default. The CLI, the Python API and config files all use this model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from dino_ray.diffusion.dtypes import Dtypes
from dino_ray.diffusion.model_options import Offload, Quantizer
from dino_ray.errors import UsageError
from dino_ray.workers import MOST_WORKERS, Workers


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _on_or_off(value: Any) -> Any:
    """YAML takes a bare on or off for a truth value."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _fit(value: Any) -> Any:
    """YAML takes a bare off for a truth value."""
    return "off" if value is False else value


Wrap = Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)]
ColorLock = Annotated[Literal["wavelet", "adain", "off"], BeforeValidator(_on_or_off)]
Depth = Annotated[Literal[8, 16], BeforeValidator(_number)]


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Several = Annotated[tuple[str, ...], BeforeValidator(_several)]
"""An option that may be given several times; in a file, a list."""


Preset = Literal["conservative", "balanced", "creative"]

PRESETS: Mapping[Preset, Mapping[str, float]] = {
    "conservative": {"denoise": 0.15, "dino_strength": 1.0, "adaptive": 0.75},
    "balanced": {"denoise": 0.25, "dino_strength": 0.6, "adaptive": 0.5},
    "creative": {"denoise": 0.45, "dino_strength": 0.3, "adaptive": 0.25},
}
"""What a preset sets, of the options that are not given."""

PRESET_STEPS: Mapping[Preset, int] = {"conservative": 1, "balanced": 1, "creative": 2}
"""By what it multiplies the steps that suit the model: who starts from more noise has farther to go."""


class UpscaleConfig(BaseModel):
    """What to make of an image and with which machines.

    ``None`` stands for "what suits the model"; the run report names the value that was used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    scale: float = Field(default=2.0, ge=1, le=16, description="Enlargement per side; 1 refines in place.")
    model: str = Field(
        default="bundled",
        min_length=1,
        description="Who refines the tiles: bundled, none (the base alone), an alias such as flux-schnell, "
        "a hub id with @revision or without, a diffusers folder, or a .safetensors or GGUF file; names of files and "
        "folders are also looked for in DINO_RAY_MODELS, in the Hugging Face cache and in COMFYUI_PATH.",
    )
    components: str | None = Field(
        default=None,
        min_length=1,
        description="Model that has what a single file given as --model lacks: VAE, text encoders, tokenizers, "
        "configuration. An alias, a hub id or a diffusers folder. Default: the published model of the file's kind.",
    )
    vae: str | None = Field(
        default=None,
        min_length=1,
        description="File, folder or hub id of a VAE to use instead of the model's own. Default: the model's own.",
    )
    allow_pickle: bool = Field(
        default=False,
        description="Read weights from .ckpt, .pt, .pth and .bin files too: such a file can run any code.",
    )
    base: Literal["auto", "net", "lanczos"] = Field(
        default="auto",
        description="What every tile starts from: the bundled ×2 net, or Lanczos resampling. "
        "auto: lanczos with --model none, else net.",
    )
    net: Literal["auto", "clean", "worn"] = Field(
        default="auto",
        description="Which bundled net makes the base: that for clean sources, or that for worn ones, which takes out "
        "noise, blur and JPEG blocks. auto: as the source's grain measures.",
    )
    preset: Preset | None = Field(
        default=None,
        description="How much may change, all at once: sets --denoise, --dino-strength, --adaptive and --steps where "
        "they are not given. Default: none of them.",
    )
    denoise: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Noise level to start from, the noise's share in the mix: more invents more, 0 keeps the base. "
        "Default: 0.25, or what suits the model.",
    )
    steps: int | None = Field(
        default=None, ge=1, le=1000, description="Denoising steps from there to a clean image."
    )
    sampler: Literal["euler", "heun"] = Field(
        default="euler", description="Integrator of the denoising steps."
    )
    prompt: str | None = Field(
        default=None,
        description="What each tile is told to show, for models that take text: style and quality rather than what the "
        "whole picture is of, which would be drawn into every tile. Default: a general one that suits the model.",
    )
    prompts: str | None = Field(
        default=None,
        min_length=1,
        description="JSON or GeoJSON file of regions of the source, each with a prompt of its own; the rest of the "
        "picture gets --prompt. See docs/models.md. Default: none.",
    )
    captioner: str | None = Field(
        default=None,
        min_length=1,
        description="Python function, package.module:function, that is shown parts of the source as arrays and says "
        "what each shows; tiles are told that, followed by --prompt. Default: none.",
    )
    negative_prompt: str | None = Field(
        default=None,
        description="What is to be kept out, for models with classifier-free guidance. Default: nothing.",
    )
    controlnet: str | None = Field(
        default=None,
        min_length=1,
        description="ControlNet that holds each tile to its base, such as a tile or an upscaler one: a folder or a hub "
        "id. Default: none.",
    )
    control_scale: float = Field(
        default=0.6, ge=0, le=2, description="How firmly the ControlNet holds; 1 as it was trained, 0 is off."
    )
    control_start: float = Field(
        default=0.0, ge=0, le=1, description="Part of the steps after which the ControlNet begins."
    )
    control_end: float = Field(
        default=1.0, ge=0, le=1, description="Part of the steps after which the ControlNet ends."
    )
    cfg: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Guidance scale, for models that take one: how firmly they follow the prompt.",
    )
    tile: int | None = Field(
        default=None, ge=32, le=8192, description="Side of a tile, in pixels of the result."
    )
    overlap: int | None = Field(
        default=None,
        ge=0,
        le=4096,
        description="Least overlap of neighbouring tiles, in pixels of the result.",
    )
    dino: str = Field(
        default="auto",
        min_length=1,
        description="DINO model that guides and judges the tiles: bundled, dinov2-base, a hub id or a folder. "
        "auto: the one the model was trained with; else dinov2-base if it is in the local cache, or the bundled one.",
    )
    dino_strength: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="How strongly DINO holds the tiles to what the image shows, while they are made; 0 is off. "
        "Default: 1 where the model attends to DINO features, else 0.5.",
    )
    adaptive: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="How much less may change where structure is (edges of things, faces, lettering) than where "
        "texture is; flat tiles are left to the base. 0: the same everywhere, and every tile is refined.",
    )
    verify: bool | None = Field(
        default=None,
        description="Compare each refined tile with its base, as DINO sees them, and mend what has drifted. "
        "Default: yes.",
    )
    consistency: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="How closely the result, reduced again, is to show the source, but for the source's own noise and "
        "JPEG blocks; 0 is off. Default: 1 from --scale 1.5 on, less below, 0 where nothing is enlarged.",
    )
    color_lock: ColorLock = Field(
        default="wavelet",
        description="Keeps colours: wavelet takes large areas' from the base, adain each tile's mean and contrast.",
    )
    dino_adapter: str | None = Field(
        default=None,
        min_length=1,
        description="File of an adapter that scripts/train_adapter.py trained, by which this model attends to DINO "
        "features. Default: none.",
    )
    lora: Several = Field(
        default=(),
        description="A LoRA and, after a colon, its weight: FILE.safetensors:0.8, or owner/name or "
        "owner/name/FILE.safetensors of the hub. Give it again for another. Default: none.",
    )
    image_prompt: str | None = Field(
        default=None,
        min_length=1,
        description="What lets the picture itself speak beside the prompt: an IP-Adapter's .safetensors file, or "
        "FLUX.1 Redux's folder or hub id. Default: none.",
    )
    image_prompt_of: Literal["image", "tile"] = Field(
        default="image", description="What it looks at: the whole image, or each tile for itself."
    )
    image_prompt_scale: float = Field(
        default=1.0, gt=0, le=2, description="How much it says; 1 is what it was trained with."
    )
    seed: int = Field(default=0, ge=0, lt=2**64, description="Seed of the noise field.")
    wrap: Wrap = Field(
        default="auto",
        description="Whether left and right edge meet, as in 360° panoramas; bare, it means on. "
        "auto: where the file's GPano metadata say so.",
    )
    page: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Page or frame of a file that has several. Default: the first.",
    )
    to_srgb: bool = Field(
        default=False, description="Convert to sRGB through the file's colour profile, instead of keeping it."
    )
    format: Literal["png", "jpeg", "webp", "tiff", "dzi", "ome-zarr"] | None = Field(
        default=None, description="Format of the output. Default: by its suffix."
    )
    quality: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="Of lossy output: JPEG, WebP, TIFF compressed by these, Deep Zoom. Default: what suits the format.",
    )
    compression: str | None = Field(
        default=None,
        min_length=1,
        description="TIFF: deflate, none, lzw, zstd, jpeg, webp. PNG: 3, and 0 to 9. WebP: lossy, lossless. Deep Zoom: "
        "jpeg, png, webp. OME-Zarr: blosc, zstd, gzip, none. Default: the first of these.",
    )
    depth: Depth | None = Field(
        default=None,
        description="Bits per sample of the output. Default: the source's, if the format holds them.",
    )
    pyramid: bool | None = Field(
        default=None, description="Reduced levels within a TIFF, for viewers. Default: from some size on."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where the models run.")
    dtype: Annotated[Dtypes, BeforeValidator(Dtypes.parse), PlainSerializer(str)] = Field(
        default=Dtypes(),
        description="Precision of the diffusion model, of all its components or by name: transformer=fp8,vae=fp32; "
        "default is what is not named. fp8 keeps weights in 8 bits, where that saves much, and computes in another "
        "type. auto: bf16 on a GPU, fp32 on a CPU.",
    )
    quantize: Quantizer | None = Field(
        default=None,
        description="Quantises the weights of the transformer or UNet, and of large text encoders, as they are loaded: "
        "nf4 and int8 by bitsandbytes, which needs CUDA, the others by torchao. Default: not at all.",
    )
    offload: Offload = Field(
        default="none",
        description="What waits in host memory until a GPU needs it: whole models, groups of layers, or single layers; "
        "each saves more and takes longer. Changes no pixels.",
    )
    vae_tile: int | None = Field(
        default=None,
        ge=64,
        le=8192,
        description="Side of the windows that the VAE works in, in pixels of the result, to need less memory. Default: "
        "whole tiles, until memory runs out.",
    )
    fit: Annotated[
        str, BeforeValidator(_fit), Field(pattern=r"^(auto|off|\d+(\.\d+)?\s*([GMgm][Ii]?[Bb]?))$")
    ] = Field(
        default="auto",
        description="Settles what --dtype, --quantize, --offload and --vae-tile leave open, so that a model fits a "
        "GPU's memory, with the least harm: that which is free here, or as much as is named, such as 24GB.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the model's blocks before the first tile: minutes once, kept for later runs; then each "
        "step takes less.",
    )
    attention: Literal["auto", "sdpa", "math", "cudnn", "flash", "flash3", "sage", "xformers"] = Field(
        default="auto",
        description="What computes the model's attention: torch (sdpa; math, the plain formula; cudnn) or a package "
        "that is installed. auto: as torch sees fit.",
    )
    step_cache: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Skip most of a step where the model's first block changed by less than this since the last: 0.1 "
        "saves about half of 8 steps and more, and costs some detail; 0 is off. For FLUX.1 and Qwen-Image.",
    )
    workers: Annotated[
        Workers, BeforeValidator(Workers.parse), PlainSerializer(lambda workers: workers.plain)
    ] = Field(
        default=Workers(),
        description="Model replicas: 4, or 2 to 16 as machines come and go: 2:16. auto: one per GPU, or as many "
        "as the CPUs carry.",
    )
    gpus_per_worker: float | None = Field(
        default=None,
        gt=0,
        le=16,
        description="GPUs that each replica holds; a fraction shares one. Default: one, where there are any.",
    )
    batch: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Tiles that a replica refines at once, if its GPU's memory holds them; fixed, since pixels can "
        "depend on it.",
    )
    threads: int = Field(
        default=1, ge=1, le=256, description="CPU threads per replica; fixed, since pixels can depend on it."
    )
    address: str = Field(
        default="local",
        min_length=1,
        description="Ray cluster to use: an address, auto for the running one, local to start one here, "
        "none to work in this process.",
    )
    job_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Where the work in progress lies, from which it can be resumed: a folder or an fsspec URL such as "
        "s3://bucket/job. Default: a folder beside the output, removed at the end.",
    )
    shared: bool = Field(
        default=False,
        description="Every node of the cluster sees --job-dir under the same name, so merges run anywhere. "
        "A URL always counts as shared.",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _fill_from_preset(
        cls, options: Any, handler: ModelWrapValidatorHandler[UpscaleConfig]
    ) -> UpscaleConfig:
        if not isinstance(options, Mapping) or options.get("preset") not in PRESETS:
            return handler(options)
        given = {name: value for name, value in options.items() if value is not None}
        config = handler({**PRESETS[options["preset"]], **given})
        # What the preset has filled in was not asked for: under another preset it is another one's to say.
        config.model_fields_set.intersection_update(given)
        return config

    @classmethod
    def parse(cls, options: dict[str, Any], where: str = "") -> UpscaleConfig:
        """Validate options.

        Parameters
        ----------
        options
            By field name; strings are converted.
        where
            The file they came from; empty for the command line or the API.

        Raises
        ------
        UsageError
            Naming the first option that is unknown or out of range, and its value.
        """
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise UsageError(_first_fault(error, where)) from error

    @classmethod
    def from_yaml(cls, path: Path, overrides: dict[str, Any]) -> UpscaleConfig:
        """Options of a YAML file, with ``overrides`` (those the user typed) on top.

        Raises
        ------
        UsageError
            If the file can't be read, is no YAML mapping, or holds an option that is unknown or out of range.
        """
        import yaml

        try:
            loaded = yaml.load(path.read_text(encoding="utf-8"), _yaml_loader())
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: can't be read ({error})") from error
        except yaml.YAMLError as error:
            raise UsageError(f"{path}: no valid YAML ({str(error).splitlines()[0]})") from error
        if not isinstance(loaded, dict | None):
            raise UsageError(f"{path}: expected a mapping such as 'scale: 2', found {type(loaded).__name__}")
        options = {str(key).replace("-", "_"): value for key, value in (loaded or {}).items()}
        cls.parse(options, where=str(path))
        return cls.parse(options | overrides)


def _yaml_loader() -> Any:
    """PyYAML's safe loader, but for the integers of base 60 of YAML 1.1, which make 136 of ``2:16``."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    integer = "tag:yaml.org,2002:int"
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != integer]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(integer, re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
    return Loader


def option_name(field: str) -> str:
    """The command line's spelling of a field: ``dino_strength`` → ``--dino-strength``."""
    return "--" + field.replace("_", "-")


def refuse_given(config: UpscaleConfig, fields: Sequence[str], why: str) -> None:
    """Refuse options that were given another value than their default, and would be ignored."""
    for field in fields:
        if getattr(config, field) != UpscaleConfig.model_fields[field].default:
            raise UsageError(f"{option_name(field)} {why}")


def _first_fault(error: ValidationError, where: str) -> str:
    fault = error.errors()[0]
    name = str(fault["loc"][0])
    prefix = f"{where}: " if where else ""
    option = option_name(name)
    if fault["type"] == "extra_forbidden":
        known = ", ".join(UpscaleConfig.model_fields)
        return f"{prefix}unknown option '{name}'; the options are {known}"
    if name == "workers":
        return (
            f"{prefix}{option} must be a number such as 4, a range such as 2:16, or auto, within 1 to {MOST_WORKERS}, "
            f"not {fault['input']!r}"
        )
    if name == "dtype":
        reason = fault["msg"].removeprefix("Value error, ")
        return f"{prefix}{option} {fault['input']}: {reason}; give {Dtypes.SYNTAX}"
    if name == "fit":
        return f"{prefix}{option} must be auto, off or a size such as 24GB, not {fault['input']!r}"
    if fault["type"] == "string_too_short":
        return f"{prefix}{option} must not be empty"
    message = fault["msg"].removeprefix("Input should be ").split(", unable")[0]
    return f"{prefix}{option} must be {message}, not {fault['input']!r}"
