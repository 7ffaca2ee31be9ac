"""How much memory a model takes: of its weights by precision, and of its work by the size of a tile. No torch.

Parameters are counted, not estimated: ``footprints.json`` holds what ``scripts/count_footprints.py`` counted of each
component of the published models, by what their configuration files say; a component of any other config is counted
when it is asked for, which takes torch and some seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("footprints.json")

SIDES = (512, 1024, 2048)
"""canvas_px: sides of the tiles whose work is in the table."""

WORK_ALLOWANCE = 1.3
"""By what a GPU's libraries exceed what torch is asked for: workspaces of convolutions and matrix products, and blocks
that its allocator keeps or rounds up. Reserved is more than allocated by 5 to 25 % in published profiles of such
models; not measured here."""

_UNTOLD = ("torch_dtype", "dtype", "transformers_version", "architectures", "quantization_config")
"""Keys of a config that say nothing of a component's shape, beside those that begin with an underscore."""


@dataclass(frozen=True)
class Count:
    """Parameters of one component."""

    parameters: int
    """All, with buffers that are saved among them, such as tables of positions."""
    linear: int
    """Weights of its linear layers: what bitsandbytes and torchao quantise."""
    castable: int
    """What diffusers stores in fp8 where it casts layer by layer."""
    largest_block: int
    """Of the repeated blocks, which group offloading moves one after the other."""
    outside_blocks: int
    largest_leaf: int
    """Of single layers, which sequential offloading moves one after the other."""


@dataclass(frozen=True)
class Work:
    """Bytes beside the weights, in a precision of two bytes, for one tile of each of `SIDES`."""

    step: tuple[int, ...] = ()
    """One evaluation of a transformer or UNet."""
    encode: tuple[int, ...] = ()
    decode: tuple[int, ...] = ()
    sketch: tuple[int, ...] = ()
    """A decoder with the gradient that guidance takes through it."""

    def bytes(self, stage: str, pixels: int) -> int:
        """Of a stage, for a tile of so many canvas_px.

        Between the sizes that were counted as a straight line has it, which is more than a parabola; below the smallest
        as that, and beyond the largest as the square of the pixels.
        """
        counted: Sequence[int] = getattr(self, stage)
        sizes = [side**2 for side in SIDES]
        if not counted or pixels <= sizes[0]:
            return counted[0] if counted else 0
        for (left, right), (low, high) in zip(pairwise(sizes), pairwise(counted), strict=True):
            if pixels <= right:
                return low + (high - low) * (pixels - left) // (right - left)
        return int(counted[-1] * (pixels / sizes[-1]) ** 2)


@dataclass(frozen=True)
class Part:
    """A component: its weights and its work."""

    cls: str
    count: Count
    work: Work = field(default_factory=Work)


WEIGHT_BYTES: Mapping[str, float] = {"fp32": 4, "fp16": 2, "bf16": 2}
FP8_BYTES = 1
INT8_BYTES = 1.01
"""A byte, and a scale for each output channel."""
NF4_BYTES = 0.5 + 4 / 64
"""Four bits, and a scale in fp32 for each 64 weights (Dettmers et al. 2023, arXiv:2305.14314), itself not quantised."""
QUANTISED_BYTES: Mapping[str, float] = {"int8": INT8_BYTES, "fp8": INT8_BYTES, "nf4": NF4_BYTES}
"""Of a weight of a linear layer, by the scheme; all else stays as it is."""


def weight_bytes(count: Count, dtype: str = "bf16", quantize: str | None = None) -> int:
    """Memory that a component's weights take.

    Parameters
    ----------
    dtype : {"fp32", "bf16", "fp16", "fp8"}
        fp8 stores layers in a byte per weight where diffusers does, and the others in bf16.
    quantize : {"int8", "fp8", "nf4"}, optional
        Of its linear layers.
    """
    if quantize is not None:
        rest = WEIGHT_BYTES.get(dtype, 2)
        return int(count.linear * QUANTISED_BYTES[quantize] + (count.parameters - count.linear) * rest)
    if dtype == "fp8":
        return count.castable * FP8_BYTES + (count.parameters - count.castable) * 2
    return int(count.parameters * WEIGHT_BYTES[dtype])


def digest(cls: str, config: Mapping[str, Any]) -> str:
    """The same for components of one shape."""
    told = {key: value for key, value in config.items() if key[:1] != "_" and key not in _UNTOLD}
    text = json.dumps([cls, told], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_known(cls: str, config: Mapping[str, Any]) -> bool:
    """Whether a component is in the table, so that nothing has to be counted."""
    return digest(cls, config) in table()


def part(library: str, cls: str, config: Mapping[str, Any]) -> Part:
    """Weights and work of a component: from the table, or counted now.

    What work takes of a component that is not in the table is the most that one of its class takes there, of its size.
    """
    known = table().get(digest(cls, config))
    if known is not None:
        return known
    from dino_ray.diffusion import metering

    config = {key: value for key, value in config.items() if key != "quantization_config"}
    return Part(cls, metering.count(metering.build(library, cls, config)), _like(cls))


def _like(cls: str) -> Work:
    alike = [known.work for known in table().values() if known.cls == cls] or [
        known.work for known in table().values()
    ]

    def most(stage: str) -> tuple[int, ...]:
        counted = [getattr(work, stage) for work in alike if getattr(work, stage)]
        return tuple(max(column) for column in zip(*counted, strict=True))

    return Work(**{stage: most(stage) for stage in ("step", "encode", "decode", "sketch")})


@cache
def table() -> Mapping[str, Part]:
    """What was counted of the published models' components, by `digest`."""
    return read(json.loads(TABLE.read_text(encoding="utf-8")))


def read(content: Mapping[str, Any]) -> dict[str, Part]:
    """A table from what `written` made of it."""
    return {
        key: Part(
            row["cls"],
            Count(**row["count"]),
            Work(**{stage: tuple(counted) for stage, counted in row["work"].items()}),
        )
        for key, row in content.items()
    }


def written(parts: Mapping[str, Part]) -> str:
    """A table as ``footprints.json`` holds it."""
    rows = {
        key: {
            "cls": each.cls,
            "count": asdict(each.count),
            "work": {stage: list(counted) for stage, counted in asdict(each.work).items() if counted},
        }
        for key, each in sorted(parts.items(), key=lambda item: (item[1].cls, item[1].count.parameters))
    }
    return json.dumps(rows, indent=1) + "\n"
