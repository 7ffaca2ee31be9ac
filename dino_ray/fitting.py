"""``--fit``: what the user has left open of how a model is kept, settled by the memory that there is."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ray.config import UpscaleConfig
from dino_ray.diffusion import fit, storage
from dino_ray.diffusion.dtypes import AUTO, FP8, Dtypes
from dino_ray.diffusion.footprint import weight_bytes
from dino_ray.diffusion.model_options import ModelOptions, Quantizer
from dino_ray.errors import UsageError

if TYPE_CHECKING:
    from dino_ray.diffusion.denoiser import Description
    from dino_ray.diffusion.model_files import ModelRef
    from dino_ray.diffusion.sizing import Sizes

log = logging.getLogger(__name__)

GB = 1e9

BIG = 4e9
"""Bytes in bf16 from which on a model without a GPU deserves a word."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([gm]i?)b?", re.IGNORECASE)
_UNITS = {"g": 1e9, "gi": 2**30, "m": 1e6, "mi": 2**20}


@dataclass(frozen=True)
class Job:
    """What of a job decides how much memory its model works in."""

    tile: int
    """canvas_px."""
    batch: int
    sketch: str | None
    """The small decoder that guidance looks through; None: the VAE."""
    dino: str | None
    dino_strength: float


@dataclass(frozen=True)
class Kept:
    """How a job's model is to be kept."""

    dtype: Dtypes
    options: ModelOptions
    said: str | None = None
    """What was decided and why, in one line; None: nothing was."""
    gpu_bytes: Mapping[str, float] = field(default_factory=dict)
    """That a GPU is to have: for a ``replica``, and for the ``text`` encoders before it, on one of them. Empty: not
    known."""
    host_bytes: float | None = None
    """Of a replica that runs on a CPU; None: not known."""


def settle(
    config: UpscaleConfig, model: Description, job: Job, given: ModelOptions, *, planning: bool = False
) -> Kept:
    """Decide how a model is kept.

    Parameters
    ----------
    given
        What the config says of it.
    planning
        What is decided is said elsewhere, and not logged.

    Raises
    ------
    UsageError
        Where no way fits.
    """
    kept = Kept(config.dtype, given)
    if model.family == "bundled":
        if config.fit not in ("auto", "off"):
            raise UsageError(
                f"--fit {config.fit}: the bundled model is small and fits anywhere; leave it out"
            )
        return kept
    from dino_ray.diffusion import model_files, sizing

    ref = model_files.resolve(config.model, given)
    machine, why_not = _machine(config)
    if machine is None and not planning and not sizing.is_known(ref):
        return kept  # nothing is to be decided, and counting takes seconds
    found = sizing.sizes(ref, given.controlnet)
    if found.quantized:
        return kept  # how large it is, its files say and its configs do not; what more to do is the user's to know
    wanted = demand(found, model, job, config.dtype)
    kept = replace(
        kept,
        gpu_bytes=_bytes(wanted, _as_given(config, given, found, "bf16")),
        host_bytes=fit.replica_needs(wanted, _as_given(config, given, found, "fp32")),
    )
    if machine is None:
        if why_not and found.core.count.parameters * 2 > BIG:
            log.warning(
                "--fit auto: %s, so the model is kept as it is; --fit 24GB names the memory of one", why_not
            )
        return kept
    able = [how for how in machine.quantizers if _can_be_quantised(ref, found, how)]
    decided = _decide(config, model, job, found, replace(machine, quantizers=able), kept)
    if decided.said is not None and not planning:
        log.log(logging.INFO if decided.options == given else logging.WARNING, "%s", decided.said)
    return decided


def _decide(
    config: UpscaleConfig, model: Description, job: Job, found: Sizes, machine: fit.Machine, kept: Kept
) -> Kept:
    """What fits a machine, of what the config leaves open."""
    wanted = demand(found, model, job, config.dtype)
    asked = _asked(config, kept.options, found)
    if not list(fit.ways(wanted, machine, asked)):
        return kept  # all is settled
    chosen = fit.choose(wanted, machine, asked)
    free = f"--fit {config.fit}: {machine.free / GB:.1f} GB free"
    if chosen is None:
        raise UsageError(f"{free}; {_what_would(config, found, model, job, machine, asked)}")
    way = chosen.way
    opens_dtype = asked.dtype is None and way.dtype == FP8
    return replace(
        kept,
        dtype=Dtypes(FP8) if opens_dtype else config.dtype,
        options=replace(kept.options, quantize=way.quantize, offload=way.offload, vae_tile=way.vae_tile),
        said=f"{free}; {_words(chosen)}",
        gpu_bytes=_bytes(wanted, way),
    )


def demand(found: Sizes, model: Description, job: Job, dtype: Dtypes) -> fit.Demand:
    """What a model and a job ask of a GPU."""
    pixels = job.tile**2
    seen = 2 * pixels if model.takes_reference else pixels  # whose tokens stand beside the tile's
    guides = job.dino is not None and job.dino_strength > 0
    look = dino_work = 0
    beside = sum(weight_bytes(part.count) for part in found.beside)
    if job.dino is not None:
        from dino_ray.dino import footprint as dino_footprint
        from dino_ray.dino.loading import describe

        facts = describe(job.dino)
        beside += dino_footprint.weight_bytes(facts.dim)
        if guides:
            dino_work = dino_footprint.guide_bytes(facts.dim, facts.patch, job.tile, job.tile)
    if guides:
        look = TINY_BYTES * pixels if job.sketch else found.vae.work.bytes("sketch", pixels)
    sides = (None, *(side for side in fit.VAE_WINDOWS if side < job.tile))
    stages = {
        side: fit.Stages(
            step=job.batch * found.core.work.bytes("step", seen),
            encode=found.vae.work.bytes("encode", side**2 if side else pixels),
            decode=found.vae.work.bytes("decode", side**2 if side else pixels),
            look=job.batch * look,
            dino=job.batch * dino_work,
        )
        for side in sides
    }
    vae = dtype.of("vae")
    return fit.Demand(
        core=found.core.count,
        vae=found.vae.count,
        text=found.encoders,
        stages=stages,
        tile_pixels=pixels,
        vae_dtype=vae if vae in ("fp32", "fp16", "bf16") else None,
        beside=beside,
        guides_by_vae=guides and job.sketch is None,
    )


def _can_be_quantised(ref: ModelRef, found: Sizes, how: Quantizer) -> bool:
    """Whether `keeping` would let a model be, of which some or all may lie in a single file."""
    from dino_ray.diffusion import model_files

    large = [part for part, each in found.text.items() if each.cls not in storage.SMALL_ENCODERS]
    if any(model_files.in_single_file(ref, part) for part in large):
        return False
    return storage.PACKAGES[how] == "torchao" or not model_files.in_single_file(ref, found.family.core)


TINY_BYTES = 1400
"""Per pixel of a tile: what a small decoder (TAEF1 and its like) keeps for the gradient, and its weights with it;
counted on the meta device."""


def _bytes(wanted: fit.Demand, way: fit.Way) -> dict[str, float]:
    made = {"replica": fit.replica_needs(wanted, way)}
    text = fit.text_needs(wanted, way)
    return {**made, "text": text} if text else made


def _as_given(config: UpscaleConfig, given: ModelOptions, found: Sizes, automatic: str) -> fit.Way:
    """The way that the config itself names."""
    dtype = config.dtype.of(found.family.core)
    return fit.Way(automatic if dtype == AUTO else dtype, given.quantize, given.offload, given.vae_tile)


def _asked(config: UpscaleConfig, given: ModelOptions, found: Sizes) -> fit.Asked:
    """What of it the user has typed."""
    typed = config.model_fields_set
    dtype = config.dtype.of(found.family.core) if "dtype" in typed and config.dtype != Dtypes() else None
    return fit.Asked(
        dtype="bf16" if dtype == AUTO else dtype,
        quantize=given.quantize,
        offload=given.offload if "offload" in typed else None,
        vae_tile=given.vae_tile,
        compiled=given.compile,
    )


def size(text: str) -> float | None:
    """Bytes that ``24GB`` and its like name; None: it names none."""
    match = _SIZE.fullmatch(text.strip())
    return None if match is None else float(match[1]) * _UNITS[match[2].lower()]


def _machine(config: UpscaleConfig) -> tuple[fit.Machine | None, str]:
    """What the replicas run on; or None, and, where a user may wonder, why."""
    if config.fit == "off":
        return None, ""
    installed = [name for name, here in storage.quantizers().items() if here]
    named = size(config.fit)
    if named is not None:
        return fit.Machine(named * _share(config), None, installed), ""
    if config.device == "cpu":
        return None, ""
    if config.address not in ("local", "none"):
        return None, "the GPUs of a cluster can't be asked from here"
    from dino_ray.diffusion import gpu_memory

    gpu = gpu_memory.look()
    if gpu is None:
        return None, "there is no GPU here"
    return fit.Machine(gpu.free * _share(config), _host_free(), installed), ""


def _share(config: UpscaleConfig) -> float:
    """Of a GPU, what one replica holds."""
    return min(1.0, config.gpus_per_worker or 1.0)


def _host_free() -> float | None:
    """Host memory that can be had, bytes; None: not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def _words(chosen: fit.Fit) -> str:
    total = f"{chosen.way}, {chosen.needs / GB:.1f} GB in all"
    if chosen.way == chosen.first:
        return total
    return f"{chosen.first} takes {chosen.first_needs / GB:.1f} GB: {total}"


def _what_would(
    config: UpscaleConfig,
    found: Sizes,
    model: Description,
    job: Job,
    machine: fit.Machine,
    asked: fit.Asked,
) -> str:
    """What is needed at least, and what would fit."""
    wanted = demand(found, model, job, config.dtype)
    way, needed = fit.least(wanted, machine, asked) or (fit.Way(), 0.0)
    said = (
        f"{model.name} with tiles of {job.tile} px takes {(needed + fit.RESERVE) / GB:.1f} GB at least "
        f"({way})"
    )
    changes: dict[str, Job] = {}
    half = job.tile // 2 // model.pixel_multiple * model.pixel_multiple
    if job.batch > 1:
        changes["--batch 1"] = replace(job, batch=1)
    if job.dino_strength > 0:
        changes["--dino-strength 0"] = replace(job, dino_strength=0.0)
    if half >= 256:
        changes[f"--tile {half}"] = replace(job, tile=half)
        changes[f"--tile {half} --dino-strength 0"] = replace(job, tile=half, dino_strength=0.0)
    for words, other in changes.items():
        if fit.choose(demand(found, model, other, config.dtype), machine, asked) is not None:
            return f"{said}; {words} fits, and --fit off tries as it is"
    if fit.choose(wanted, machine) is not None:
        return (
            f"{said}; leave --dtype, --quantize, --offload and --vae-tile to it, or --fit off tries as it is"
        )
    return f"{said}; give a GPU with so much or a smaller model, or --fit off tries as it is"
