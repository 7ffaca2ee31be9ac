"""Peak memory of a job's processes where nobody has measured it.

Put together from the constants below, which were measured on Linux, and, of models other than the bundled one, from
what is counted of their components. Not of a replica on a GPU, whose libraries' host memory is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dino_ray.forecast.costs import MB

# Resident MB that were measured, all with the same lock file.
PROCESS_MB = 105.0
"""A process of ours with its libraries."""
RAY_DRIVER_MB = 45.0
RAY_WORKER_MB = 25.0
"""What Ray adds to it."""
TILE_BYTES = {"lanczos": 55, "net": 230, "bundled": 1800}
"""Of a replica, per pixel of a tile."""
TORCH_MB = {"lanczos": 0.0, "net": 230.0, "bundled": 480.0}
"""Of a replica: torch, and the weights."""
MERGE_TILES = 4
"""A merge holds, of tiles at 16 bits."""
EXPORT_MB = 30.0
"""Of an export: its codec, and what is on its way."""
EXPORT_ROWS = 640
"""Rows of the canvas that libvips holds for its writers, over what is handed to it."""
BAND_MB = 2 * 16.8
"""What is handed to it, at most: two bands of rows."""
WEBP_PIXEL_BYTES = 16
"""Of WebP's encoder, per pixel of the canvas."""


@dataclass(frozen=True)
class Shape:
    """What of a job decides how much memory its processes hold, where that is not measured."""

    engine: Literal["local", "ray"]
    refines: Literal["lanczos", "net", "bundled"] | None
    """With what a replica makes tiles; None: with something whose memory is not known here."""
    tile_pixels: int
    """Of a tile."""
    tile_bytes: int
    """Of a tile at 16 bits."""
    canvas_pixels: int
    row_bytes: int
    """Of the canvas."""
    band_rows: int
    """Height of a cell."""
    export: Literal["rows", "blocks", "whole"]
    """How the format is written: from top to bottom by libvips, block by block, or with all of it in memory."""
    batch: int = 1
    """Tiles that a replica refines at once."""
    model_bytes: float | None = None
    """Of a replica that runs another model on the CPU: its weights, and the work on its tiles. None: not known."""


def typical_memory(shape: Shape, feature_bytes: int = 0) -> dict[str, float]:
    """Peak resident MB by role, without a rehearsal; roles of which nothing is known are left out."""
    export = EXPORT_MB
    if shape.export == "rows":
        band_mb = min(BAND_MB, 2 * shape.band_rows * shape.row_bytes / MB)
        export += band_mb + EXPORT_ROWS * shape.row_bytes / MB
    elif shape.export == "whole":
        export = WEBP_PIXEL_BYTES * shape.canvas_pixels / MB
    merge = MERGE_TILES * shape.tile_bytes / MB
    replica = None
    if shape.refines is not None:
        replica = (
            TORCH_MB[shape.refines]
            + (TILE_BYTES[shape.refines] * shape.tile_pixels * shape.batch + feature_bytes) / MB
        )
    elif shape.model_bytes is not None:
        # The rest that it holds is hidden by what a large model takes, but for the libraries.
        replica = TORCH_MB["bundled"] + (shape.model_bytes + feature_bytes) / MB
    if shape.engine == "ray":
        worker = PROCESS_MB + RAY_WORKER_MB
        made = {"driver": PROCESS_MB + RAY_DRIVER_MB + export, "merge": worker + merge}
        return made if replica is None else {**made, "replica": worker + replica}
    if replica is None:
        return {}
    # One process is all three. What torch and the weights take stays; what tiles take makes room for the export.
    tiles = PROCESS_MB + max(replica, merge)
    driver = max(tiles, PROCESS_MB + TORCH_MB[shape.refines or "bundled"] + export)
    return {"driver": driver, "merge": tiles, "replica": tiles}
