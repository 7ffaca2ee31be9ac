"""Which way of keeping a model fits a GPU: pure arithmetic. ``dino_ray.fitting`` gathers the facts.

Ways are tried in the order of the harm they do: first what changes nothing, then what makes the VAE work in windows,
then what has weights wait in host memory between uses, then weights in fewer bits, and last blocks or layers that come
to the GPU one by one, which takes longest. The first that fits is taken; so with more memory it is never a worse one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from dino_ray.diffusion.footprint import WORK_ALLOWANCE, Count, weight_bytes
from dino_ray.diffusion.model_options import Offload, Quantizer

RESERVE = 1.0e9
"""Bytes of a GPU that are left alone: CUDA's context and kernels take 0.4 to 0.6 GB in each process, and a screen or
a second look at the memory, some time later, may find a little less than the first."""

HOST_SHARE = 0.8
"""Of free host memory, what waiting weights may take: the rest is for tiles, and for reading the files."""

VAE_WINDOWS = (512, 256)
"""canvas_px: as of ``vae.VAE_WINDOWS``, which imports torch."""

OUTPUT_BYTES = 24
"""Per pixel of a tile whose VAE works in windows: three channels in four bytes, of the rows that are done and of the
whole that is put together from them."""


@dataclass(frozen=True)
class Way:
    """One way of keeping a model."""

    dtype: str = "bf16"
    """Of what predicts: ``fp32``, ``bf16``, ``fp16``, or ``fp8`` for weights kept in that and computed in bf16."""
    quantize: Quantizer | None = None
    offload: Offload = "none"
    vae_tile: int | None = None
    """canvas_px; None: whole tiles."""

    def __str__(self) -> str:
        words = [f"{self.quantize} weights" if self.quantize else self.dtype]
        if self.offload != "none":
            words.append(f"--offload {self.offload}")
        if self.vae_tile is not None:
            words.append(f"VAE in windows of {self.vae_tile} px")
        return ", ".join(words)


SCHEMES: Mapping[Quantizer, str] = {
    "nf4": "nf4",
    "int8": "int8",
    "torchao-int8": "int8",
    "torchao-fp8": "fp8",
}
"""How ``footprint`` counts them."""


@dataclass(frozen=True)
class Stages:
    """Bytes beside the weights, of one tile in two-byte precision, by what is being done."""

    step: int
    """Evaluating the transformer or UNet; of as many tiles as go together."""
    encode: int
    decode: int
    look: int = 0
    """Looking at the latents through a decoder, with a gradient; of as many tiles as go together."""
    dino: int = 0
    """At those pixels through DINO, likewise; in its own precision."""


@dataclass(frozen=True)
class Demand:
    """What a model and a job ask of a replica's GPU."""

    core: Count
    vae: Count
    text: tuple[tuple[Count, bool], ...]
    """Text encoders, and whether each is large enough to be quantised."""
    stages: Mapping[int | None, Stages]
    """By the side of the VAE's windows; None: whole tiles. Only those that are smaller than a tile."""
    tile_pixels: int
    vae_dtype: str | None = None
    """Of the VAE; None: what the core computes in."""
    beside: int = 0
    """Bytes of weights that are always there: DINO, a small decoder, an adapter."""
    guides_by_vae: bool = False
    """Guidance looks through the VAE itself, for want of a smaller decoder."""


@dataclass(frozen=True)
class Machine:
    """What a replica runs on."""

    free: float
    """Bytes of GPU memory."""
    host: float | None = None
    """Bytes of host memory that are free; None: not known, and taken to be enough."""
    quantizers: Collection[Quantizer] = field(default_factory=tuple)
    """Those that are installed, and work there."""


@dataclass(frozen=True)
class Asked:
    """What the user has settled; None: it is open."""

    dtype: str | None = None
    quantize: Quantizer | None = None
    offload: Offload | None = None
    vae_tile: int | None = None
    compiled: bool = False
    """Blocks are compiled whole, so that their layers can't be moved one by one."""

    def allows(self, way: Way) -> bool:
        """Whether a way is as was asked for."""
        return not (self.compiled and way.offload == "sequential") and (
            self.dtype in (None, way.dtype)
            and self.quantize in (None, way.quantize)
            and self.offload in (None, way.offload)
            and self.vae_tile in (None, way.vae_tile)
        )


ANYTHING = Asked()

EIGHT_BITS: tuple[Quantizer, ...] = ("torchao-int8", "int8", "torchao-fp8")
"""Ways of quantising to eight bits, the nearest to the weights first: an integer and a scale for each row keep more
than a float of eight bits does."""


def ways(demand: Demand, machine: Machine, asked: Asked = ANYTHING) -> Iterator[Way]:
    """Ways that the machine has and the user leaves open, the least harmful first."""
    dtype = asked.dtype or "bf16"
    smaller = {side for side in (*demand.stages, asked.vae_tile) if side is not None}
    tiles = [None, *sorted(smaller, reverse=True)]
    eight = next((name for name in EIGHT_BITS if name in machine.quantizers), None)
    if asked.quantize is not None:
        eight = asked.quantize
    order = [
        *(Way(dtype, None, "none", tile) for tile in tiles),
        Way(dtype, None, "model", tiles[-1]),
        *(Way(dtype, eight, "none", tile) for tile in tiles if eight),
        *(Way("fp8", None, "none", tile) for tile in tiles),
        *(Way(dtype, "nf4", "none", tile) for tile in tiles if "nf4" in machine.quantizers),
        *(Way(dtype, None, "group", tile) for tile in tiles),
        *(Way(dtype, None, "sequential", tile) for tile in tiles),
    ]
    if asked.offload == "model":
        order += [Way(way.dtype, way.quantize, "model", way.vae_tile) for way in order]
    yield from filter(asked.allows, dict.fromkeys(order))


def needs(demand: Demand, way: Way) -> float:
    """Bytes of GPU memory that a replica takes at once, at most, without `RESERVE`."""
    return max(replica_needs(demand, way), text_needs(demand, way))


def replica_needs(demand: Demand, way: Way) -> float:
    """Of the denoiser, DINO and their work."""
    core, vae = _core_bytes(demand.core, way), _vae_bytes(demand, way)
    stages = demand.stages.get(way.vae_tile) or demand.stages[None]
    work = WORK_ALLOWANCE * (2 if way.dtype == "fp32" else 1)
    vae_work = WORK_ALLOWANCE * (2 if _vae_dtype(demand, way) == "fp32" else 1)
    step, guide = work * stages.step, vae_work * stages.look + WORK_ALLOWANCE * stages.dino
    coded = vae_work * max(stages.encode, stages.decode)
    if way.vae_tile is not None:
        coded += OUTPUT_BYTES * demand.tile_pixels
    if way.offload == "model":  # one of them is there, and DINO always
        by_vae = max(coded, guide if demand.guides_by_vae else 0)
        by_core = max(step, 0 if demand.guides_by_vae else guide)
        return demand.beside + max(core + by_core, vae + by_vae)
    return demand.beside + core + vae + max(step, coded, guide)


def text_needs(demand: Demand, way: Way) -> float:
    """Of the text encoders, which are there before the others are, on one replica: all of them at once."""
    total = 0.0
    for count, large in demand.text:
        quantize = SCHEMES[way.quantize] if way.quantize and large else None
        dtype = way.dtype if large or way.dtype != "fp8" else "bf16"
        total += _piecewise(count, way) if way.offload in _PIECEWISE else weight_bytes(count, dtype, quantize)
    return total


def host_needs(demand: Demand, way: Way) -> float:
    """Bytes of host memory in which weights wait."""
    if way.offload == "none":
        return 0.0
    quantize = SCHEMES[way.quantize] if way.quantize else None
    return float(
        weight_bytes(demand.core, way.dtype, quantize) + weight_bytes(demand.vae, _vae_dtype(demand, way))
    )


_PIECEWISE: tuple[Offload, ...] = ("group", "sequential")


def _compute(dtype: str) -> str:
    return "bf16" if dtype == "fp8" else dtype


def _vae_dtype(demand: Demand, way: Way) -> str:
    return demand.vae_dtype or _compute(way.dtype)


def _core_bytes(count: Count, way: Way) -> float:
    if way.offload in _PIECEWISE:
        return _piecewise(count, way)
    return weight_bytes(count, way.dtype, SCHEMES[way.quantize] if way.quantize else None)


def _vae_bytes(demand: Demand, way: Way) -> float:
    """Of the VAE, which stays on the GPU while the core's blocks come and go."""
    dtype = _vae_dtype(demand, way)
    if way.offload == "sequential":
        return _scaled(demand.vae.largest_leaf, demand.vae, dtype)
    return weight_bytes(demand.vae, dtype)


def _piecewise(count: Count, way: Way) -> float:
    """The most of a component that is on the GPU at once where it comes piece by piece, in whatever it is kept in."""
    dtype = _compute(way.dtype)
    if way.offload == "group":  # the next block comes while one computes
        return _scaled(count.outside_blocks + 2 * count.largest_block, count, dtype)
    return _scaled(count.largest_leaf, count, dtype)


def _scaled(parameters: int, count: Count, dtype: str) -> float:
    return weight_bytes(count, dtype) * parameters / count.parameters


@dataclass(frozen=True)
class Fit:
    """A way that fits, and what it takes."""

    way: Way
    needs: float
    """Bytes, without the reserve."""
    first: Way
    """What was tried first, and what that would take."""
    first_needs: float


def choose(demand: Demand, machine: Machine, asked: Asked = ANYTHING) -> Fit | None:
    """The least harmful way that fits; None: none does."""
    first: tuple[Way, float] | None = None
    for way in ways(demand, machine, asked):
        needed = needs(demand, way)
        first = first or (way, needed)
        if fits(demand, way, machine):
            return Fit(way, needed, *first)
    return None


def fits(demand: Demand, way: Way, machine: Machine) -> bool:
    """Whether a machine has room for a model that is kept so."""
    if needs(demand, way) + RESERVE > machine.free:
        return False
    return machine.host is None or host_needs(demand, way) <= HOST_SHARE * machine.host


def least(demand: Demand, machine: Machine, asked: Asked = ANYTHING) -> tuple[Way, float] | None:
    """Of all ways, the one that takes the least GPU memory; None: what was asked for rules out all."""
    tried = [(way, needs(demand, way)) for way in ways(demand, machine, asked)]
    return min(tried, key=lambda pair: pair[1], default=None)
