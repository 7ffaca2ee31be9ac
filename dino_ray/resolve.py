"""What the user left open, settled; what can't be honoured, refused. No weights are loaded, no work starts."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Literal

from dino_ray.config import PRESET_STEPS, UpscaleConfig, refuse_given
from dino_ray.dino_settings import choose_dino
from dino_ray.errors import UsageError
from dino_ray.model_settings import (
    CONTROL_OPTIONS,
    MODEL_OPTIONS,
    check_conditioning,
    check_speed,
    denoise_of,
    model_options,
    negative_prompt,
)
from dino_ray.plan.geometry import make_grid
from dino_ray.prompts import read_regions
from dino_ray.raster.export import ExportOptions
from dino_ray.raster.source import ReadOptions
from dino_ray.settings import Settings

if TYPE_CHECKING:
    from dino_ray.diffusion.denoiser import Description

log = logging.getLogger(__name__)

NO_MODEL = "none"

BASE_TILE = {"lanczos": 1024, "net": 512}
"""Tile side without a diffusion model, canvas_px: large enough that a call's fixed cost does not count. The net's
activations take a kilobyte per pixel."""

BASE_MULTIPLE = 16
"""Tile origins without a diffusion model, canvas_px: cells come out as whole blocks."""

TORCH_OPTIONS = ("device", "threads", "gpus_per_worker")
"""Options that only a net can honour, of diffusion or not."""


def resolve(config: UpscaleConfig, *, planning: bool = False, loaded: Description | None = None) -> Settings:
    """Settle a config against what its model can do.

    Parameters
    ----------
    planning
        Nothing is to run here: ``--fit 24GB`` may speak of another machine, which has what this one lacks.
    loaded
        Of a model that another program has loaded already, and keeps; ``config.model`` is but a name for it.

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

    options = model_options(config)
    place = config.model if loaded else finding.located(config.model)
    model = loaded or loading.describe(place, config.dino_adapter, options)
    if options.controlnet is not None and not model.takes_control:
        raise UsageError(f"--controlnet: the model {model.name} takes none; leave it out")
    base: Literal["net", "lanczos"] = "lanczos" if config.base == "lanczos" else "net"
    denoise = denoise_of(config, model)
    cfg = config.cfg if config.cfg is not None else model.cfg
    check_conditioning(config, model, denoise, cfg)
    if config.seed and 0 < denoise <= model.noise_free_to:
        log.warning(
            "--seed plays no part here: the model %s starts without noise up to --denoise %g",
            *(model.name, model.noise_free_to),
        )
    if denoise == 0:
        refuse_given(
            config, MODEL_OPTIONS, "has nothing to act on: --denoise 0 keeps the base; leave one of them out"
        )
    steps = config.steps
    if steps is None:
        steps = model.steps * (PRESET_STEPS[config.preset] if config.preset and not model.draws_anew else 1)
    if config.sampler == "heun" and steps == 1:
        raise UsageError(
            "--sampler heun: differs from euler from --steps 2 on; raise --steps or leave it out"
        )
    check_speed(config, options, steps)
    tile = config.tile if config.tile is not None else model.tile
    if model.largest_tile is not None and tile > model.largest_tile:
        raise UsageError(
            f"--tile {tile}: the model {model.name} knows positions for {model.largest_tile} px at most; "
            "give that or less"
        )
    # A cluster's machines are others, and judge for themselves.
    elsewhere = config.address not in ("none", "local") or (planning and config.fit not in ("auto", "off"))
    here = None if elsewhere else config.device
    if loaded is None:
        keeping.check(place, config.dtype, options, tile, here)
    dino, strength = choose_dino(config, model, denoise)
    sketch = loading.find_sketch(place, options) if strength > 0 and loaded is None else None
    kept = fitting.Kept(config.dtype, options)
    if denoise > 0 and loaded is None:
        job = fitting.Job(tile, config.batch, sketch, dino, strength)
        kept = fitting.settle(config, model, job, options, planning=planning)
        keeping.check(place, kept.dtype, kept.options, tile, here)
    half = tile // model.pixel_multiple // 2 * model.pixel_multiple  # the most that the plan allows
    overlap = config.overlap if config.overlap is not None else min(model.overlap, half)
    settings = Settings(
        scale=config.scale,
        model=model if denoise > 0 else None,
        base=base,
        net=_net(config, base),
        denoise=denoise,
        steps=steps,
        sampler=config.sampler,
        prompt=config.prompt if config.prompt is not None else model.prompt,
        regions=read_regions(config.prompts) if config.prompts is not None else (),
        captioner=config.captioner,
        negative_prompt=negative_prompt(config, model, cfg),
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


def _consistency(config: UpscaleConfig) -> float:
    """How closely the source is to be shown: all the way where the model has pixels of its own to draw between its."""
    return config.consistency if config.consistency is not None else min(1.0, 2 * (config.scale - 1))


def _without_model(config: UpscaleConfig) -> Settings:
    refuse_given(
        config,
        (*MODEL_OPTIONS, *CONTROL_OPTIONS, "denoise"),
        "needs a diffusion model; leave it out with --model none",
    )
    if config.base != "net":
        refuse_given(
            config, TORCH_OPTIONS, "has nothing to act on: Lanczos resampling runs as it is; leave it out"
        )
    base: Literal["net", "lanczos"] = "net" if config.base == "net" else "lanczos"
    settings = Settings(
        scale=config.scale,
        model=None,
        base=base,
        net=_net(config, base),
        tile=config.tile if config.tile is not None else BASE_TILE[base],
        overlap=config.overlap if config.overlap is not None else 0,  # a base's tiles need no seams
        multiple=BASE_MULTIPLE,
        **_around(config),
    )
    _check_tiles(settings)
    return settings


def _net(config: UpscaleConfig, base: Literal["net", "lanczos"]) -> Literal["auto", "clean", "worn"] | None:
    if base == "lanczos":
        refuse_given(
            config, ("net",), "has nothing to act on: the base is Lanczos's; leave it out, or give --base net"
        )
        return None
    if config.scale == 1:
        refuse_given(
            config, ("net",), "has nothing to act on at --scale 1, where no net enlarges; leave it out"
        )
        return None
    return config.net


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
