"""What a job would do and need, said without doing it: ``dino-ray plan``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dino_ray.engine.scheduler import CALLS_PER_REPLICA
from dino_ray.raster.source import probe, stored_bytes
from dino_ray.resolve import Settings

UINT16_BYTES = 2  # tiles travel at 16 bits, whatever the source's depth
SAMPLE_BYTES = {"uint8": 1, "uint16": 2}


@dataclass(frozen=True)
class JobPreview:
    """One image's job. Sizes in pixels of the frame they name, MB are 10⁶ bytes."""

    source: str
    source_width: int
    source_height: int
    bands: int
    dtype: str
    width: int
    height: int
    model: str
    base: str
    denoise: float
    steps: int
    dino: str | None
    dino_strength: float
    tile_width: int
    tile_height: int
    tile_columns: int
    tile_rows: int
    tiles: int
    least_overlap: int
    """Of neighbouring tiles, as laid out; 0 where there is one tile."""
    cells: int
    cell_width: int
    cell_height: int
    model_calls: int
    """Evaluations of the diffusion model: tiles × steps, twice that with Heun but for the last step."""
    pixels_refined: float
    """Pixels that pass the model, over pixels of the result: what the overlaps cost."""
    disk_mb: float
    """The source's and the canvas's stores, beside the output, until it is written; border chunks are whole."""
    tiles_waiting_mb: float
    """The most pixels of tiles in the store: those that wait for a merge, and those in flight."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        """For a person: a few lines."""
        dino = f", DINO {self.dino} at {self.dino_strength:g}" if self.dino else ""
        steps = f"{self.steps} step{'s' if self.steps > 1 else ''}"
        how = f"{steps} from noise level {self.denoise:g}" if self.steps else "no diffusion"
        return (
            f"{self.source}: {self.source_width} × {self.source_height} → {self.width} × {self.height}, "
            f"{self.bands} bands of {self.dtype}\n"
            f"  model   {self.model} over base {self.base}, {how}{dino}\n"
            f"  tiles   {self.tiles} = {self.tile_columns} × {self.tile_rows} of {self.tile_width} × "
            f"{self.tile_height}, overlapping by at least {self.least_overlap}; {self.model_calls} model calls, "
            f"{self.pixels_refined:.2f} pixels refined per pixel\n"
            f"  merge   {self.cells} cells of {self.cell_width} × {self.cell_height}\n"
            f"  needs   {self.disk_mb:,.0f} MB of disk while it runs; "
            f"up to {self.tiles_waiting_mb:,.0f} MB of tiles in the store"
        )


def preview(source: str, settings: Settings, workers: int) -> JobPreview:
    """Lay out the job of one image, for a number of replicas.

    Raises
    ------
    UsageError
        As the job would, if the source can't be read.
    """
    info = probe(source, settings.read)
    _, grid = settings.layout(info)
    xs, ys = grid.xs, grid.ys
    overlaps = [
        axis.origin(i) + axis.tile - axis.origin(i + 1) for axis in (xs, ys) for i in range(len(axis.ramps))
    ]
    calls_per_tile = 2 * settings.steps - 1 if settings.sampler == "heun" else settings.steps
    canvas_bytes = grid.n_cells * xs.cell * ys.cell * SAMPLE_BYTES[info.dtype] * info.bands
    tile_mb = xs.tile * ys.tile * info.bands * UINT16_BYTES / 1e6
    return JobPreview(
        source=source,
        source_width=info.width,
        source_height=info.height,
        bands=info.bands,
        dtype=info.dtype,
        width=grid.width,
        height=grid.height,
        model=settings.model.name if settings.model else "none",
        base=settings.base,
        denoise=settings.denoise,
        steps=settings.steps if settings.model else 0,
        dino=settings.dino,
        dino_strength=settings.dino_strength,
        tile_width=xs.tile,
        tile_height=ys.tile,
        tile_columns=xs.n_tiles,
        tile_rows=ys.n_tiles,
        tiles=grid.n_tiles,
        least_overlap=min(overlaps, default=0),
        cells=grid.n_cells,
        cell_width=xs.cell,
        cell_height=ys.cell,
        model_calls=grid.n_tiles * calls_per_tile if settings.model else 0,
        pixels_refined=round(grid.n_tiles * xs.tile * ys.tile / (grid.width * grid.height), 3),
        disk_mb=round((stored_bytes(info) + canvas_bytes) / 1e6, 1),
        tiles_waiting_mb=round((grid.max_waiting() + CALLS_PER_REPLICA * workers) * tile_mb, 1),
    )
