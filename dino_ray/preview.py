"""What a job would do and need, said without doing it: ``dino-ray plan``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from dino_ray.config import UpscaleConfig
from dino_ray.engine.scheduler import CALLS_PER_REPLICA
from dino_ray.forecast.costs import MB, Costs, Stages, Work, memory, turns
from dino_ray.forecast.memory import typical_memory
from dino_ray.forecast.work import UINT16_BYTES, shape_of, work_of
from dino_ray.inputs import Input, outputs
from dino_ray.places import is_url
from dino_ray.raster.export import default_suffix
from dino_ray.request import Image, check_file
from dino_ray.resolve import resolve
from dino_ray.settings import Settings


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
    adaptive: float
    verify: bool
    consistency: float
    color_lock: str
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
    workers: int
    """Replicas that the run will have."""
    tile_calls: int
    """Calls that replicas will get, of a batch of tiles each, if none has to be tried again."""
    model_calls: int
    """Evaluations of the diffusion model: tiles × steps, twice that with Heun but for the last step."""
    pixels_refined: float
    """Pixels that pass the model, over pixels of the result: what the overlaps cost."""
    disk_mb: float
    """Of the source's and the canvas's stores in the job's folder, until the output is whole."""
    output_mb: float | None
    """The output file, as well as a sample of it compresses; None: not calibrated."""
    tiles_waiting_mb: float
    """The most pixels of tiles in the store: those that wait for a merge, and those in flight."""
    peak_rss_mb: Mapping[str, float]
    """The largest process of each role, driver, replica and merge; without those of which nothing is known."""
    gpu_mb: Mapping[str, float]
    """Memory of a GPU: of each replica, and of the text encoders, which one of them holds before; empty: not known."""
    fit: str | None
    """What --fit decided and why; None: nothing."""
    download_mb: float | None
    """What the first run fetches of the model's weights; None: they are here, or it is not known."""
    seconds: Mapping[str, float] | None
    """By stage: start, ingest, features, tiles, export, and the hash of the canvas after that; None: not calibrated."""
    first_tile_s: float | None
    """From the start of the command (or the end of the image before) to the first tile on a replica."""
    wall_s: float | None
    """From the same start to the finished output."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        """For a person: a few lines."""
        steps = f"{self.steps} step{'s' if self.steps > 1 else ''}"
        how = f"{steps} from noise level {self.denoise:g}" if self.steps else "no diffusion"
        return (
            f"{self.source}: {self.source_width} × {self.source_height} → {self.width} × {self.height}, "
            f"{self.bands} bands of {self.dtype}\n"
            f"  model   {self.model} over base {self.base}, {how}\n{self._held()}"
            f"  tiles   {self.tiles} = {self.tile_columns} × {self.tile_rows} of {self.tile_width} × "
            f"{self.tile_height}, overlapping by at least {self.least_overlap}; {self.model_calls} model calls, "
            f"{self.pixels_refined:.2f} pixels refined per pixel\n"
            f"{self._kept()}"
            f"  merge   {self.cells} cells of {self.cell_width} × {self.cell_height}\n"
            f"  needs   {self.disk_mb:,.0f} MB of disk while it runs; "
            f"up to {self.tiles_waiting_mb:,.0f} MB of tiles in the store{self._measured()}"
        )

    def _held(self) -> str:
        """How the result is held to its source."""
        ways = {
            f"guided by DINO {self.dino} at {self.dino_strength:g}": self.dino and self.dino_strength,
            f"adaptive {self.adaptive:g}": self.adaptive,
            f"consistency {self.consistency:g}": self.consistency,
            f"colours by {self.color_lock}": self.color_lock != "off",
            f"verified by DINO {self.dino}": self.verify and self.dino,
        }
        used = ", ".join(way for way, is_used in ways.items() if is_used)
        return f"  held    {used}\n" if used else ""

    def _kept(self) -> str:
        """How the model is kept in memory, and that it is not here."""
        lines = [] if self.fit is None else [f"  fit     {self.fit}"]
        if self.gpu_mb:
            roles = {"replica": "a replica", "text": "text encoders, on one of them before"}
            said = ", ".join(f"{roles[role]} {mb / 1000:,.1f}" for role, mb in self.gpu_mb.items())
            lines.append(f"  gpu     memory in GB: {said}")
        if self.download_mb is not None:
            lines.append(
                f"  weights are not here: the first run fetches about {self.download_mb / 1000:,.1f} GB; "
                "dino-ray models says under which licence"
            )
        return "".join(f"{line}\n" for line in lines)

    def _measured(self) -> str:
        """What a calibration adds, and what memory is claimed with or without one."""
        roles = ", ".join(f"{role} {mb:,.0f}" for role, mb in sorted(self.peak_rss_mb.items()))
        memory = f"\n  memory  of the largest process, in MB: {roles}" if roles else ""
        if self.seconds is None or self.wall_s is None:
            return f"{memory}\n  time    --calibrate foretells it, from a rehearsal of some seconds"
        crew = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        parts = ", ".join(f"{stage} {s:,.1f}" for stage, s in self.seconds.items() if stage != "hash")
        return (
            f"; about {self.output_mb:,.0f} MB of output{memory}\n"
            f"  time    about {duration(self.wall_s)} on {crew} ({parts} s)"
        )


def duration(seconds: float) -> str:
    """Seconds as people say them: ``42 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def totals(previews: Sequence[JobPreview]) -> str:
    """A line for people on all images of a command."""
    tiles = sum(p.tiles for p in previews)
    # One job's folder is removed before the next but one is made: two lie beside each other.
    disk = max((a.disk_mb + b.disk_mb for a, b in pairwise(previews)), default=0.0)
    line = f"{len(previews)} images: {tiles:,} tiles, up to {disk:,.0f} MB of disk while they run"
    walls = [p.wall_s for p in previews if p.wall_s is not None]
    if len(walls) < len(previews):
        return line
    output = sum(p.output_mb or 0.0 for p in previews)
    return f"{line}, about {output:,.0f} MB of output, about {duration(sum(walls))}"


def plan_jobs(
    inputs: Sequence[Input], output: str | None, config: UpscaleConfig, *, calibrate: bool = False
) -> list[JobPreview]:
    """What ``dino-ray upscale`` would do with the same arguments.

    Parameters
    ----------
    output
        As of ``upscale``; None: files of the named format, or PNG, in a folder that has room.
    calibrate
        Whether to rehearse the largest job here, which takes a while.

    Raises
    ------
    DinoRayError
        As the command would before its work; or if the rehearsal fails.
    """
    config, download = (config, None) if calibrate else _without_weights(config)
    settings = resolve(config, planning=True)
    several = len(inputs) > 1
    folder = output or tempfile.gettempdir() + os.sep
    results = outputs(inputs, folder, config.scale, default_suffix(config.format))
    images = [
        look(image.path, result, config, settings, several=several)
        for image, result in zip(inputs, results, strict=True)
    ]
    largest = max(images, key=lambda image: image.grid.n_tiles)
    workers = count_workers(config, settings, largest.grid.n_tiles)
    costs = None
    if calibrate:
        from dino_ray.forecast.rehearsal import rehearse

        costs = rehearse(largest, config, settings, workers=workers, several=several)
    return [replace(made, download_mb=download) for made in preview(images, config, settings, workers, costs)]


def _without_weights(config: UpscaleConfig) -> tuple[UpscaleConfig, float | None]:
    """Where the weights of a published model are not here: the config with its configuration files in their place, and
    what is to be fetched, MB.
    """
    if config.model in ("bundled", "none"):
        return config, None
    from dino_ray.diffusion import presence

    absent = presence.absent(config.model)
    if absent is None:
        return config, None
    return config.model_copy(update={"model": str(absent.folder)}), round(absent.download_bytes / MB, 1)


def look(source: str, output: str, config: UpscaleConfig, settings: Settings, *, several: bool) -> Image:
    """Check a source and its output as the job would, without making the folder that an output is to lie in.

    Raises
    ------
    UsageError
        As ``check_file``.
    """
    if is_url(output):
        return check_file(source, output, config, settings, several=several)
    place, name = Path(output), Path(output).name
    while not place.parent.exists():
        place, name = place.parent, f".{Path(output).name}"  # by another name: the same may be taken up there
    image = check_file(source, str(place.parent / name), config, settings, several=several)
    return replace(image, output=output)


def preview(
    images: Sequence[Image],
    config: UpscaleConfig,
    settings: Settings,
    workers: int,
    costs: Costs | None = None,
) -> list[JobPreview]:
    """Lay out the jobs of a command's images.

    Parameters
    ----------
    images
        From ``look``.
    workers
        Replicas, as ``count_workers`` says.
    costs
        From ``rehearse``; None: time is not claimed, and memory as constants have it.
    """
    works = [work_of(image, settings) for image in images]
    times = turns(works, costs) if costs else [None] * len(works)
    return [
        _preview(image, config, settings, workers, work, costs, time)
        for image, work, time in zip(images, works, times, strict=True)
    ]


def _preview(
    image: Image,
    config: UpscaleConfig,
    settings: Settings,
    workers: int,
    work: Work,
    costs: Costs | None,
    time: Stages | None,
) -> JobPreview:
    info, grid = image.info, image.grid
    xs, ys = grid.xs, grid.ys
    overlaps = [
        axis.origin(i) + axis.tile - axis.origin(i + 1) for axis in (xs, ys) for i in range(len(axis.ramps))
    ]
    calls_per_tile = 2 * settings.steps - 1 if settings.sampler == "heun" else settings.steps
    in_flight = CALLS_PER_REPLICA * workers * settings.batch
    tile_mb = xs.tile * ys.tile * info.bands * UINT16_BYTES / MB
    peaks = (
        memory(work, costs)
        if costs
        else typical_memory(shape_of(image, config, settings), work.feature_bytes)
    )
    return JobPreview(
        source=image.name,
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
        adaptive=settings.adaptive,
        verify=settings.verify,
        consistency=settings.consistency,
        color_lock=settings.color_lock,
        tile_width=xs.tile,
        tile_height=ys.tile,
        tile_columns=xs.n_tiles,
        tile_rows=ys.n_tiles,
        tiles=grid.n_tiles,
        least_overlap=min(overlaps, default=0),
        cells=grid.n_cells,
        cell_width=xs.cell,
        cell_height=ys.cell,
        workers=workers,
        tile_calls=-(-grid.n_tiles // settings.batch),
        model_calls=grid.n_tiles * calls_per_tile if settings.model else 0,
        pixels_refined=round(grid.n_tiles * xs.tile * ys.tile / (grid.width * grid.height), 3),
        disk_mb=round((work.ingest_bytes + image.canvas_bytes) / MB, 1),
        output_mb=round(work.canvas_bytes * costs.output_ratio / MB, 1) if costs else None,
        tiles_waiting_mb=round(min(grid.n_tiles, grid.max_waiting() + in_flight) * tile_mb, 1),
        peak_rss_mb={role: round(mb, 1) for role, mb in peaks.items()},
        gpu_mb={role: round(n_bytes / MB, 1) for role, n_bytes in settings.gpu_bytes.items()},
        fit=settings.fit,
        download_mb=None,
        seconds={stage: round(s, 2) for stage, s in asdict(time).items()} if time else None,
        first_tile_s=round(time.first_tile, 2) if time else None,
        wall_s=round(time.wall, 2) if time else None,
    )


def count_workers(config: UpscaleConfig, settings: Settings, tiles: int) -> int:
    """Replicas that a run will have; a cluster is asked where the answer depends on it.

    Parameters
    ----------
    tiles
        Of the largest image: more replicas would idle.

    Raises
    ------
    UsageError
        As the run would, if the cluster can't be reached or has no room.
    """
    if config.address == "none":
        return 1
    from dino_ray.engine.ray.room import replicas_at

    least, most = config.workers.bounds(tiles)
    nets = settings.model is not None or settings.base == "net"
    gpus = 0.0 if config.device == "cpu" or not nets else config.gpus_per_worker
    return replicas_at(config.address, least, most, gpus, config.threads)
