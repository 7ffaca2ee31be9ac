"""What a job will take, from its plan and a few measured costs. Pure arithmetic.

**Time** is claimed only from a rehearsal on the same machine (`dino_ray.forecast.rehearsal`). Of a job's stages, these
grow with the image::

    ingest      decoding into the source's store, and hashing the file
    features    DINO tokens × seconds per token
    tiles       tiles × seconds per tile
    export      megabytes of the canvas × seconds per megabyte

Seconds per tile are elapsed ones, measured while all replicas, the merges and the driver were at work beside one
another: what they take from each other is in them, as it will be in the run. All else is *start*: imports, Ray, loading
models, their first and slowest call. It is what remains of a rehearsed image's time once the four above are subtracted,
so that the prediction for the very image that was rehearsed is its measured time. Of several images, only the first has
a start; the ingest of the others runs beside the tiles of the one before, and counts only where it takes longer.

**Memory** does not depend on an image's height, except for WebP, whose encoder holds the whole image, and for DINO
features. A rehearsal measures it, with tiles of the size and an output of the width that the job will have.

**Disk** needs no measurement: both stores are uncompressed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

DINO_WINDOW = 518
"""px: side of the windows that features are extracted in, as `dino_ray.dino.extract` has it, which imports torch."""
DINO_BYTES = 512 * 2**20
"""Largest features at native resolution; see there."""

FLOAT16_BYTES = 2
MB = 1e6


@dataclass(frozen=True)
class Work:
    """What of one image's job costs time and memory; bytes are uncompressed."""

    tiles: int
    canvas_bytes: int
    """Of the pixels, without the rest of border cells."""
    ingest_bytes: int = 0
    """Of the source's store; 0 where the file is read as it is."""
    file_bytes: int = 0
    """Of the source's file, which is hashed; 0 for URLs."""
    tokens: int = 0
    """DINO tokens computed."""
    feature_bytes: int = 0
    """DINO features kept."""


@dataclass(frozen=True)
class Costs:
    """What a machine takes for one config, as measured. Seconds, and MB of 10⁶ bytes."""

    workers: int
    tile_s: float
    """Elapsed from one finished tile to the next, over all replicas."""
    token_s: float = 0.0
    export_s_per_mb: float = 0.0
    ingest_first_s: float = 0.0
    """Until the first rows are decoded: where a format has to be decoded whole, all of that."""
    ingest_s_per_mb: float = 0.0
    digest_s_per_mb: float = 0.0
    """Hashing: the source's file before, and the canvas after the run."""
    start_s: float = 0.0
    """Once per command."""
    next_s: float = 0.0
    """Once per further image."""
    output_ratio: float = 1.0
    """Bytes of the output over those of its uncompressed pixels, without reduced copies."""
    memory_mb: Mapping[str, float] = field(default_factory=dict)
    """Peak by role: driver, replica, merge."""
    feature_bytes: int = 0
    """Features that replicas held when ``memory_mb`` was measured."""


@dataclass(frozen=True)
class Stages:
    """Seconds of one image's turn, by stage."""

    start: float
    ingest: float
    features: float
    tiles: float
    export: float
    hash: float
    """Of the canvas, for the report; comes after the output is whole, and is not part of ``wall``."""

    @property
    def wall(self) -> float:
        """As the run report counts: to the finished output."""
        return self.start + self.ingest + self.features + self.tiles + self.export

    @property
    def first_tile(self) -> float:
        """To the first tile on a replica."""
        return self.start + self.ingest + self.features


def stages(work: Work, costs: Costs) -> Stages:
    """What grows with the image, as if it was the only one, without the start."""
    ingest = (
        costs.ingest_first_s + work.ingest_bytes / MB * costs.ingest_s_per_mb if work.ingest_bytes else 0.0
    )
    return Stages(
        start=0.0,
        ingest=ingest + work.file_bytes / MB * costs.digest_s_per_mb,
        features=work.tokens * costs.token_s,
        tiles=work.tiles * costs.tile_s,
        export=work.canvas_bytes / MB * costs.export_s_per_mb,
        hash=work.canvas_bytes / MB * costs.digest_s_per_mb,
    )


def with_start(costs: Costs, work: Work, wall_s: float) -> Costs:
    """Costs completed by the start that a rehearsed image's turn as the first one implies."""
    return replace(costs, start_s=max(0.0, wall_s - stages(work, costs).wall))


def turns(works: Sequence[Work], costs: Costs) -> list[Stages]:
    """The turns of a command's images, one after the other."""
    made: list[Stages] = []
    for work in works:
        alone = stages(work, costs)
        if made:
            left = max(0.0, alone.ingest - made[-1].tiles)
            made.append(replace(alone, start=costs.next_s, ingest=left))
        else:
            made.append(replace(alone, start=costs.start_s))
    return made


def memory(work: Work, costs: Costs) -> dict[str, float]:
    """Peak resident MB of the largest process of each role: a replica holds the image's features, too."""
    more = max(0, work.feature_bytes - costs.feature_bytes) / MB
    return {role: mb + (more if role == "replica" else 0.0) for role, mb in costs.memory_mb.items()}


def dino_tokens(width: int, height: int, patch: int) -> int:
    """Tokens that a source (source_px) is seen as: in windows that overlap by half, and as a whole."""
    side = DINO_WINDOW // patch

    def windowed(length: int) -> int:
        tokens = math.ceil(length / patch)
        return tokens if tokens <= side else (math.ceil((tokens - side) / (side // 2)) + 1) * side

    longest = max(width, height)
    coarse = max(1, round(side * width / longest)) * max(1, round(side * height / longest))
    return coarse + windowed(width) * windowed(height)


def dino_bytes(width: int, height: int, patch: int, dim: int) -> int:
    """Size of a source's features at native resolution, which are made coarser to stay within a limit."""
    return min(DINO_BYTES, math.ceil(width / patch) * math.ceil(height / patch) * dim * FLOAT16_BYTES)
