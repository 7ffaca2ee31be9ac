"""What the user left open, settled; what can't be honoured, refused. No weights are loaded, no work starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dino_ray.config import PRESET_STEPS, UpscaleConfig, option_name
from dino_ray.diffusion.dtypes import Dtypes
from dino_ray.diffusion.model_options import AS_PUBLISHED, ModelOptions
from dino_ray.errors import UsageError
from dino_ray.plan.geometry import Grid, Scaling, make_grid
from dino_ray.prompts import Region, find_captioner, read_regions
from dino_ray.raster.export import ExportOptions
from dino_ray.raster.metadata import panorama
from dino_ray.raster.source import ReadOptions, SourceInfo

if TYPE_CHECKING:
    from dino_ray.diffusion.denoiser import Description
    from dino_ray.diffusion.image_prompt_file import ImagePrompt

log = logging.getLogger(__name__)

NO_MODEL = "none"

BASE_TILE = {"lanczos": 1024, "net": 512}
"""Tile side without a diffusion model, canvas_px: large enough that a call's fixed cost does not count. The net's
activations take a kilobyte per pixel."""

BASE_MULTIPLE = 16
"""Tile origins without a diffusion model, canvas_px: cells come out as whole blocks."""

TOKENS_STRENGTH, GUIDANCE_STRENGTH = 1.0, 0.5
"""``--dino-strength`` unless the user says otherwise: of a model that was trained on DINO's tokens at full strength,
and of one that is only guided."""

GOOD_DINO = "dinov2-base"
"""Guides and judges models that were trained with none: as large as its use on tiles allows, and no longer to load."""

MODEL_OPTIONS = (
    *(
        "preset",
        "steps",
        "sampler",
        "prompt",
        "prompts",
        "captioner",
        "negative_prompt",
        "controlnet",
        "cfg",
        "dino",
        "dino_strength",
        "dino_adapter",
        "lora",
        "image_prompt",
    ),
    *("image_prompt_of", "image_prompt_scale"),
    *("adaptive", "verify", "consistency", "color_lock", "seed", "dtype", "batch"),
    *("components", "vae", "allow_pickle"),
    *("quantize", "offload", "vae_tile", "fit"),
    *("compile", "attention", "step_cache"),
)
"""Options that only a diffusion model can honour."""

CONTROL_OPTIONS = ("control_scale", "control_start", "control_end")
"""Options that only a ControlNet can honour."""

TORCH_OPTIONS = ("device", "threads", "gpus_per_worker")
"""Options that only a net can honour, of diffusion or not."""


@dataclass(frozen=True)
class Settings:
    """A config with nothing left open."""

    scale: float
    model: Description | None
    """None: the base alone."""
    base: Literal["net", "lanczos"]
    denoise: float
    steps: int
    sampler: Literal["euler", "heun"]
    prompt: str
    regions: tuple[Region, ...]
    """Where tiles are told something else."""
    captioner: str | None
    negative_prompt: str | None
    control_scale: float
    control_range: tuple[float, float]
    """Part of the steps in which a ControlNet acts."""
    text_sees_source: bool
    """The model's text encoder looks at the source."""
    cfg: float | None
    tile: int
    overlap: int
    multiple: int
    dino: str | None
    """None: no DINO model takes part."""
    dino_tokens: bool
    """The diffusion model attends to DINO features of the source."""
    dino_strength: float
    dino_adapter: str | None
    sketch: str | None
    """The small decoder that guidance looks through; None: the model's own."""
    adaptive: float
    verify: bool
    consistency: float
    color_lock: Literal["wavelet", "adain", "off"]
    seed: int
    model_place: str
    """What the replicas load: ``--model`` as it was found here, an absolute path or a hub id."""
    dtype: Dtypes
    model_options: ModelOptions
    fit: str | None
    """What was decided of how the model is kept, and why; None: nothing was."""
    gpu_bytes: Mapping[str, float]
    """That a GPU is to have for a ``replica``, and for the ``text`` encoders on one of them; empty: not known."""
    host_bytes: float | None
    """That a replica on a CPU takes; None: not known."""
    batch: int
    """Tiles that a replica refines at once; 1 without a model."""

    wrap: Literal["auto", "on", "off"]
    read: ReadOptions
    export: ExportOptions
    shared: bool
    """Every node of the cluster sees the job directory under the same name."""

    @property
    def image_prompt(self) -> Literal["image", "tile"] | None:
        """What an image prompt looks at; None: there is none."""
        prompt = self.model_options.image_prompt
        return prompt.of if prompt is not None and self.model is not None else None

    @property
    def fitted(self) -> dict[str, Any]:
        """What ``--fit`` has settled, as options; empty where it has not."""
        if self.fit is None:
            return {}
        kept = self.model_options
        return {
            "fit": "off",
            "dtype": str(self.dtype),
            "quantize": kept.quantize,
            "offload": kept.offload,
            "vae_tile": kept.vae_tile,
        }

    def layout(self, info: SourceInfo) -> tuple[Scaling, Grid]:
        """Canvas and tiles for a source.

        Raises
        ------
        UsageError
            If its edges are to meet, and can't.
        """
        scaling, grid = self._layout(info)
        self._check_prompts(info, grid)
        return scaling, grid

    def _layout(self, info: SourceInfo) -> tuple[Scaling, Grid]:
        scaling = Scaling.from_factor(info.width, info.height, self.scale)
        if self.wrap == "off" or (self.wrap == "auto" and not _is_panorama(info)):
            return scaling, self._grid(scaling, wrap=False)
        try:
            return scaling, self._grid(scaling, wrap=True)
        except UsageError as error:
            if self.wrap == "on":
                raise
            log.warning("%s: is a 360° panorama, whose edges will not quite meet: %s", info.name, error)
            return scaling, self._grid(scaling, wrap=False)

    def _check_prompts(self, info: SourceInfo, grid: Grid) -> None:
        """Warn of what is told to tiles that do not show it."""
        if self.model is not None and grid.n_tiles > 1 and self.prompt not in ("", self.model.prompt):
            log.warning(
                "--prompt is told to each of the %s tiles of %s, and what only a part of the picture shows may be "
                "drawn into all of them: name style and quality, or give regions their own with --prompts",
                *(f"{grid.n_tiles:,}", info.name),
            )
        for region in self.regions:
            if not region.touches(info.width, info.height):
                log.warning(
                    "--prompts: the region of %r lies outside %s, which has %d × %d px",
                    *(region.prompt, info.name, info.width, info.height),
                )

    def _grid(self, scaling: Scaling, *, wrap: bool) -> Grid:
        # Only a model's latents tie the circle to a lattice.
        multiple = 1 if wrap and self.model is None and scaling.canvas_w % self.multiple else self.multiple
        if wrap:
            scaling.check_closes(multiple)
        size = (scaling.canvas_w, scaling.canvas_h)
        return make_grid(*size, tile=self.tile, overlap=self.overlap, multiple=multiple, wrap=wrap)


def _is_panorama(info: SourceInfo) -> bool:
    found = panorama(info.metadata)
    return found is not None and found.closes


def resolve(config: UpscaleConfig, *, planning: bool = False) -> Settings:
    """Settle a config against what its model can do.

    Parameters
    ----------
    planning
        Nothing is to run here: ``--fit 24GB`` may speak of another machine, which has what this one lacks.

    Raises
    ------
    UsageError
        If the model is unknown, or an option that was set can't be honoured by it.
    """
    _check_placement(config)
    if config.shared and config.job_dir is None:
        raise UsageError("--shared: says that every node sees the job directory; name it with --job-dir")
    if config.model == NO_MODEL:
        return _without_model(config)
    from dino_ray import fitting
    from dino_ray.diffusion import finding, keeping, loading

    options = _model_options(config)
    place = finding.located(config.model)
    model = loading.describe(place, config.dino_adapter, options)
    if options.controlnet is not None and not model.takes_control:
        raise UsageError(f"--controlnet: the model {model.name} takes none; leave it out")
    base: Literal["net", "lanczos"] = "lanczos" if config.base == "lanczos" else "net"
    denoise = _denoise(config, model)
    cfg = config.cfg if config.cfg is not None else model.cfg
    _check_conditioning(config, model, denoise, cfg)
    if config.seed and 0 < denoise <= model.noise_free_to:
        log.warning(
            "--seed plays no part here: the model %s starts without noise up to --denoise %g",
            *(model.name, model.noise_free_to),
        )
    if denoise == 0:
        _refuse(
            config, MODEL_OPTIONS, "has nothing to act on: --denoise 0 keeps the base; leave one of them out"
        )
    steps = config.steps
    if steps is None:
        steps = model.steps * (PRESET_STEPS[config.preset] if config.preset and not model.draws_anew else 1)
    if config.sampler == "heun" and steps == 1:
        raise UsageError(
            "--sampler heun: differs from euler from --steps 2 on; raise --steps or leave it out"
        )
    _check_speed(config, options, steps)
    tile = config.tile if config.tile is not None else model.tile
    if model.largest_tile is not None and tile > model.largest_tile:
        raise UsageError(
            f"--tile {tile}: the model {model.name} knows positions for {model.largest_tile} px at most; "
            "give that or less"
        )
    # A cluster's machines are others, and judge for themselves.
    elsewhere = config.address not in ("none", "local") or (planning and config.fit not in ("auto", "off"))
    here = None if elsewhere else config.device
    keeping.check(place, config.dtype, options, tile, here)
    dino, strength = _dino(config, model, denoise)
    sketch = loading.find_sketch(place, options) if strength > 0 else None
    kept = fitting.Kept(config.dtype, options)
    if denoise > 0:
        job = fitting.Job(tile, config.batch, sketch, dino, strength)
        kept = fitting.settle(config, model, job, options, planning=planning)
        keeping.check(place, kept.dtype, kept.options, tile, here)
    half = tile // model.pixel_multiple // 2 * model.pixel_multiple  # the most that the plan allows
    overlap = config.overlap if config.overlap is not None else min(model.overlap, half)
    settings = Settings(
        scale=config.scale,
        model=model if denoise > 0 else None,
        base=base,
        denoise=denoise,
        steps=steps,
        sampler=config.sampler,
        prompt=config.prompt if config.prompt is not None else model.prompt,
        regions=read_regions(config.prompts) if config.prompts is not None else (),
        captioner=config.captioner,
        negative_prompt=_negative_prompt(config, model, cfg),
        control_scale=config.control_scale if options.controlnet is not None else 0.0,
        control_range=(config.control_start, config.control_end),
        text_sees_source=model.reads_picture,
        cfg=cfg,
        tile=tile,
        overlap=overlap,
        multiple=model.pixel_multiple,
        dino=dino,
        dino_tokens=model.dino_dim is not None,
        dino_strength=strength,
        sketch=sketch,
        dino_adapter=config.dino_adapter and os.path.abspath(os.path.expanduser(config.dino_adapter)),
        adaptive=config.adaptive if denoise > 0 else 0.0,
        verify=config.verify is not False and denoise > 0,
        consistency=_consistency(config) if denoise > 0 else 0.0,
        color_lock=config.color_lock if denoise > 0 else "off",
        seed=config.seed,
        model_place=place,
        dtype=kept.dtype,
        model_options=kept.options,
        fit=kept.said,
        gpu_bytes=kept.gpu_bytes,
        host_bytes=kept.host_bytes,
        batch=config.batch,
        **_around(config),
    )
    _check_tiles(settings)
    return settings


def _image_prompt(config: UpscaleConfig) -> ImagePrompt | None:
    if config.image_prompt is None:
        _refuse(
            config, ("image_prompt_of", "image_prompt_scale"), "needs --image-prompt; name a model for it"
        )
        return None
    from dino_ray.diffusion import image_prompt_file

    return image_prompt_file.parse(config.image_prompt, config.image_prompt_of, config.image_prompt_scale)


def _check_speed(config: UpscaleConfig, options: ModelOptions, steps: int) -> None:
    """Refuse ways to be faster that don't go with the sampling, or with this machine, if it is to do the work."""
    if config.step_cache > 0:
        if steps == 1:
            raise UsageError(
                "--step-cache: takes over from one step to the next, and there is one; leave it out"
            )
        if config.sampler == "heun":
            raise UsageError("--step-cache: would skip the second look that --sampler heun takes; give euler")
        if config.batch > 1:  # or what becomes of a tile would depend on the others
            raise UsageError("--step-cache: decides for all tiles of a batch at once; give --batch 1")
    if config.address not in ("none", "local") or not (options.compile or options.attention != "auto"):
        return  # on another machine, a replica says so when it loads
    from dino_ray.diffusion import speed, storage
    from dino_ray.diffusion.device import pick_device
    from dino_ray.diffusion.dtypes import TORCH

    device = pick_device(config.device)
    core = "unet" if config.dtype.names("unet") else "transformer"
    speed.check_machine(options, device, TORCH[storage.compute(config.dtype, device, core)])


def _denoise(config: UpscaleConfig, model: Description) -> float:
    """The noise level to start from: what was asked for, be it impossible, or what suits the model."""
    if config.denoise is None:
        return model.denoise
    if "denoise" not in config.model_fields_set and model.draws_anew:
        log.warning(
            "--preset %s: the model %s draws each tile anew; of the preset --dino-strength and --adaptive count",
            *(config.preset, model.name),
        )
        return model.denoise
    return config.denoise


def _consistency(config: UpscaleConfig) -> float:
    """How closely the source is to be shown: all the way where the model has pixels of its own to draw between its."""
    return config.consistency if config.consistency is not None else min(1.0, 2 * (config.scale - 1))


def _refuse(config: UpscaleConfig, fields: Sequence[str], why: str) -> None:
    """Refuse options that were given another value than their default, and would be ignored."""
    for field in fields:
        if getattr(config, field) != UpscaleConfig.model_fields[field].default:
            raise UsageError(f"{option_name(field)} {why}")


def _without_model(config: UpscaleConfig) -> Settings:
    _refuse(
        config,
        (*MODEL_OPTIONS, *CONTROL_OPTIONS, "denoise"),
        "needs a diffusion model; leave it out with --model none",
    )
    if config.base != "net":
        _refuse(
            config, TORCH_OPTIONS, "has nothing to act on: Lanczos resampling runs as it is; leave it out"
        )
    base: Literal["net", "lanczos"] = "net" if config.base == "net" else "lanczos"
    settings = Settings(
        scale=config.scale,
        model=None,
        base=base,
        denoise=0.0,
        steps=0,
        sampler=config.sampler,
        prompt="",
        regions=(),
        captioner=None,
        negative_prompt=None,
        control_scale=0.0,
        control_range=(0.0, 1.0),
        text_sees_source=False,
        cfg=None,
        tile=config.tile if config.tile is not None else BASE_TILE[base],
        overlap=config.overlap if config.overlap is not None else 0,  # a base's tiles need no seams
        multiple=BASE_MULTIPLE,
        dino=None,
        dino_tokens=False,
        dino_strength=0.0,
        dino_adapter=None,
        sketch=None,
        adaptive=0.0,
        verify=False,
        consistency=0.0,
        color_lock="off",
        seed=0,
        model_place=NO_MODEL,
        dtype=config.dtype,
        model_options=AS_PUBLISHED,
        fit=None,
        gpu_bytes={},
        host_bytes=None,
        batch=1,
        **_around(config),
    )
    _check_tiles(settings)
    return settings


def _around(config: UpscaleConfig) -> dict[str, Any]:
    """Settings of what comes before and after the model."""
    return {
        "wrap": config.wrap,
        "read": ReadOptions(page=config.page, to_srgb=config.to_srgb),
        "export": ExportOptions(
            format=config.format,
            quality=config.quality,
            compression=config.compression,
            depth=config.depth,
            pyramid=config.pyramid,
        ),
        "shared": config.shared,
    }


def _check_tiles(settings: Settings) -> None:
    """Refuse a tile or an overlap that the model can't have."""
    make_grid(1, 1, tile=settings.tile, overlap=settings.overlap, multiple=settings.multiple)


def _check_placement(config: UpscaleConfig) -> None:
    gpus = config.gpus_per_worker
    if gpus is not None and config.device == "cpu":
        raise UsageError("--gpus-per-worker: --device cpu uses none; leave one of them out")
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise UsageError(f"--gpus-per-worker {gpus:g}: above 1 it must be a whole number")
    if config.address != "none":
        return
    if config.workers.least > 1:
        raise UsageError(f"--workers {config.workers}: --address none has one worker, this process")
    if config.gpus_per_worker is not None:
        raise UsageError("--gpus-per-worker: --address none places nothing; choose with --device")


def _model_options(config: UpscaleConfig) -> ModelOptions:
    """What is to be done with the model; names as they mean the same on every machine that sees the same files."""
    from dino_ray.diffusion import finding, lora_file

    if config.controlnet is None:
        _refuse(config, CONTROL_OPTIONS, "has nothing to act on without --controlnet; leave it out")
    elif config.control_scale == 0:
        raise UsageError("--controlnet: has no effect at --control-scale 0; leave one of them out")
    elif config.control_start >= config.control_end:
        raise UsageError(
            f"--control-end {config.control_end:g}: must lie after --control-start {config.control_start:g}"
        )
    located = {
        name: finding.located(value, option_name(name))
        for name in ("components", "vae")
        if (value := getattr(config, name)) is not None
    }
    return ModelOptions(
        loras=lora_file.parse(config.lora),
        image_prompt=_image_prompt(config),
        **located,
        allow_pickle=config.allow_pickle,
        controlnet=config.controlnet,
        quantize=config.quantize,
        offload=config.offload,
        vae_tile=config.vae_tile,
        compile=config.compile,
        attention=config.attention,
        step_cache=config.step_cache,
    )


def _check_conditioning(config: UpscaleConfig, model: Description, denoise: float, cfg: float | None) -> None:
    for name in ("prompt", "prompts", "captioner"):
        if getattr(config, name) and not model.takes_text:
            raise UsageError(
                f"--{name}: the model {model.name} takes no text; leave it out, or name a model that does"
            )
    if config.prompts is not None and config.captioner is not None:
        raise UsageError("--captioner: --prompts says already what regions show; leave one of them out")
    if config.captioner is not None:
        find_captioner(config.captioner)
    if config.cfg is not None and model.guidance == "none":
        raise UsageError(f"--cfg: the model {model.name} takes no guidance scale; leave it out")
    if config.negative_prompt is not None and model.guidance != "classifier-free":
        raise UsageError(
            f"--negative-prompt: the model {model.name} has no classifier-free guidance, and takes none; leave it out"
        )
    if config.negative_prompt is not None and cfg == 1:
        raise UsageError(
            "--negative-prompt: has no effect at a guidance scale of 1; raise --cfg, or leave it out"
        )
    if denoise in (0, model.within(denoise)):
        return
    least, most = model.noise_levels
    if model.draws_anew:
        raise UsageError(
            f"--denoise {denoise:g}: the model {model.name} draws each tile anew, with the base as its reference, and "
            f"starts from no other noise level than {most:g}; leave it out, or 0 for the base alone"
        )
    raise UsageError(
        f"--denoise {denoise:g}: the model {model.name} was trained on noise levels of {least:.3g} to {most:.3g}; "
        "give one within"
    )


def _negative_prompt(config: UpscaleConfig, model: Description, cfg: float | None) -> str | None:
    """None where it is not to be encoded."""
    if model.guidance != "classifier-free" or cfg == 1:
        return None
    return config.negative_prompt if config.negative_prompt is not None else model.negative_prompt


def _dino(config: UpscaleConfig, model: Description, denoise: float) -> tuple[str | None, float]:
    """The DINO model to load and the strength to guide with; (None, 0) where nothing asks for one."""
    attends = model.dino_dim is not None
    strength = config.dino_strength
    if strength is None:
        strength = TOKENS_STRENGTH if attends else GUIDANCE_STRENGTH
    if denoise == 0:
        return None, 0.0
    if strength == 0 and config.dino_adapter is not None:
        raise UsageError("--dino-adapter: --dino-strength 0 passes it no features; leave one of them out")
    if strength == 0 and config.adaptive == 0 and config.verify is False:
        if config.dino != "auto":
            raise UsageError(
                "--dino: nothing uses it with --dino-strength 0, --adaptive 0 and --no-verify; leave one of them out"
            )
        return None, 0.0
    from dino_ray.dino import calibration, loading

    name = config.dino if config.dino != "auto" else _suitable_dino(model)
    facts = loading.describe(name)
    calibration.find(name)  # a replica reads its thresholds; that they are damaged is said before any work
    if (
        attends and strength > 0 and 2 * facts.dim != model.dino_dim
    ):  # a token is a coarse feature and a fine one
        assert model.dino_dim is not None
        raise UsageError(
            f"--dino {name}: its features have {facts.dim} channels, and "
            f"{'the adapter' if config.dino_adapter else f'the model {model.name}'} was trained on "
            f"{model.dino_dim // 2}; use the DINO model it was trained with ({model.dino}), or --dino-strength 0"
        )
    known = loading.ALIASES
    if config.dino_adapter and known.get(name, name) != known.get(model.dino, model.dino):
        log.warning(
            "--dino %s: the adapter was trained with %s; others' features may mislead it", name, model.dino
        )
    return name, strength


def _suitable_dino(model: Description) -> str:
    """The DINO model that a diffusion model was trained with; else the best one that is at hand."""
    from dino_ray.dino import loading

    if model.dino_dim is not None:
        return model.dino
    if loading.is_cached(GOOD_DINO):
        return GOOD_DINO
    log.warning(
        "DINOv2 is not in the local cache: the small bundled DINO guides and judges the tiles; "
        "--dino %s fetches a better one (0.4 GB)",
        GOOD_DINO,
    )
    return loading.BUNDLED
