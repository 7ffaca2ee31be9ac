"""A rehearsal: part of a job, done in earnest in a process of its own, to learn what all of it takes on this machine.

What is rehearsed is the command itself: the same options, engine, replicas, merges and format. A job of few tiles is
done as it is. Of a larger one, two images cut out of its source are upscaled one after the other on the same pool: the
first, of one tile, shows what starting costs, and the second, of some tiles a side, what a tile costs once all is warm.
The source's ingest is begun and stopped after a moment. And of the output as many rows as a moment allows are exported
at the width that it will have, for that is what the driver's memory depends on. The pixels are the source's own, since
how well they compress decides the size of the output, and how fast it is written.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from dino_ray import places
from dino_ray.config import UpscaleConfig
from dino_ray.engine.replica import peak_rss_mb
from dino_ray.errors import JobError
from dino_ray.forecast.costs import MB, Costs, Work, stages, with_start
from dino_ray.forecast.memory import PROCESS_MB
from dino_ray.forecast.rehearsed import Answer, Request, Sample, Turn, forget_peak, resident_mb
from dino_ray.forecast.work import work_of
from dino_ray.plan.geometry import Axis, Grid, Rect
from dino_ray.raster import chunks, store
from dino_ray.raster.export import tiff, webp
from dino_ray.raster.export.formats import PYRAMID_FROM_PIXELS
from dino_ray.raster.source import IngestStopped, Source, SourceInfo, ingest, open_source, stored_bytes
from dino_ray.request import Image, check_file
from dino_ray.resolve import resolve
from dino_ray.settings import Settings

TILES_ASIDE = {"lanczos": 6, "net": 4}
"""Tiles in a row and a column of the warm image, by what the base is made with: a second or two for resampling."""
TILES_ASIDE_OF_MODEL = 4
TILES_PER_WORKER = 3
"""At least so many, for a rate at which all work."""
WHOLE = 1.5
"""A job of up to so many times the tiles of the warm image is rehearsed as a whole."""

INGEST_S = 2.0
"""How long the source is decoded for, after the first rows."""
CANDIDATES_ASIDE = 3
"""Places in x, and in y, that a part of the source may be taken from."""
PYRAMID_GROWTH = 4 / 3
"""What halvings add to an image: 1/4 + 1/16 + …"""
EXPORT_BYTES = 64 * 2**20
"""Pixels exported, at least a row of cells of them."""
STOPPING_S = 15.0
"""How long an interrupted rehearsal may take to stop its Ray."""

FAILED = "the rehearsal for --calibrate failed: "


def rehearse(
    image: Image, config: UpscaleConfig, settings: Settings, *, workers: int, several: bool
) -> Costs:
    """Measure what a job costs here.

    Parameters
    ----------
    image
        From ``check_file``, with an output; the largest of the command's.
    workers
        Replicas that the command will have.
    several
        Whether other images follow, whose turns start warm.

    Raises
    ------
    DinoRayError
        If the source can't be read, or the job does not work here.
    """
    assert isinstance(image.source, str)
    assert image.output is not None
    aside = tiles_aside(settings, workers)
    whole = image.grid.n_tiles <= WHOLE * aside**2
    with tempfile.TemporaryDirectory(prefix=".dino-ray-rehearsal-", dir=_room(image, config)) as folder:
        options = config.model_dump(exclude_unset=True)
        options["job_dir"] = _job_dir(config, folder)
        os.mkdir(os.path.join(folder, "out"))
        outputs = [
            os.path.join(folder, "out", f"{name}{Path(image.output).suffix}") for name in ("cold", "warm")
        ]
        begun = _Begun()
        if whole:
            sources = [image.source] * (2 if several else 1)
        else:
            begun, *sources = _cut(image, settings, aside, folder)
            options["wrap"] = "off"  # for a part of a panorama does not close
            options.pop("page", None)  # these have been answered when the part was read
            options.pop("to_srgb", None)
        images = tuple(zip(sources, outputs, strict=False))
        sample = None if whole else _sample(image, settings, outputs[0])
        try:
            answer = _perform(Request(options, images, sample), folder)
        finally:
            if places.is_url(options["job_dir"]):
                places.remove_tree(options["job_dir"])
        config = UpscaleConfig.parse(options)
        parts = resolve(config)
        works = [work_of(check_file(source, None, config, parts), parts) for source in sources]
    costs = _costs(answer, works, begun)
    if sample is not None and sample.options["pyramid"] and not settings.export.pyramid:
        return replace(
            costs, output_ratio=costs.output_ratio * PYRAMID_GROWTH
        )  # which the parts were too small for
    return costs


def tiles_aside(settings: Settings, workers: int) -> int:
    """Tiles in a row, and in a column, of the warm image of a rehearsal."""
    aside = TILES_ASIDE_OF_MODEL if settings.model is not None else TILES_ASIDE[settings.base]
    return max(aside, math.ceil(math.sqrt(TILES_PER_WORKER * workers * settings.batch)))


# ---- what is rehearsed


@dataclass(frozen=True)
class _Begun:
    """What decoding the source took as far as it got."""

    first_s: float = 0.0
    s_per_mb: float = 0.0
    peak_mb: float = 0.0
    """By how much this process grew."""


def _room(image: Image, config: UpscaleConfig) -> str | None:
    """A folder on the disk that the job will work on."""
    folders = [config.job_dir, image.output and (os.path.dirname(image.output) or ".")]
    here = [place for place in folders if place and not places.is_url(place) and os.path.isdir(place)]
    return here[0] if here else None


def _job_dir(config: UpscaleConfig, folder: str) -> str:
    if config.job_dir is not None and places.is_url(config.job_dir):
        return places.join(config.job_dir, os.path.basename(folder))
    return os.path.join(folder, "jobs")


def _cut(image: Image, settings: Settings, aside: int, folder: str) -> tuple[Any, ...]:
    """Begin to read the source, and cut a cold and a warm image out of what was read."""
    before = resident_mb()
    forget_peak()
    begun, source, seen = _begin(str(image.source), image.info, settings, os.path.join(folder, "source.zarr"))
    begun = replace(begun, peak_mb=max(0.0, peak_rss_mb() - before))
    paths = [os.path.join(folder, f"{name}.png") for name in ("cold", "warm")]
    for path, count in zip(paths, (1, aside), strict=True):
        width, height = part_size(image.grid, settings.scale, *part_tiles(image.grid, count**2))
        pixels = _typical(source, seen, min(width, seen.w), min(height, seen.h))
        missing = [(0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)]
        _write_png(np.pad(pixels, missing, mode="wrap"), path)
    return begun, *paths


def _begin(path: str, info: SourceInfo, settings: Settings, folder: str) -> tuple[_Begun, Any, Rect]:
    """Read a source for a moment: what that took, the source, and the window of it that was read."""
    all_of_it = Rect(0, 0, info.width, info.height)
    started = time.perf_counter()
    marks: list[float] = []

    def stop() -> bool:
        # Before there is a store, samples are being measured, which can't be done by halves.
        if store.exists(folder):
            marks.append(time.perf_counter())
        return bool(marks) and marks[-1] - marks[0] > INGEST_S

    try:
        if settings.shared:
            source: Any = ingest(path, folder, settings.read, stop)
        else:
            source = open_source(path, folder, settings.read, stop)
        seen = all_of_it
    except IngestStopped:
        source = Source(folder, info)
        seen = _stored(folder, info)
    ended = time.perf_counter()
    if not marks:
        return _Begun(), source, seen
    share = seen.w * seen.h / (info.width * info.height)
    seconds = (ended - marks[0]) / share
    return _Begun(marks[0] - started, seconds / (stored_bytes(info) / MB)), source, seen


def _stored(folder: str, info: SourceInfo) -> Rect:
    """The window of a source (source_px) that an ingest which was stopped had stored."""
    shape = (info.height, info.width, info.bands)
    layout = store.layout_of(folder, shape, info.dtype)
    rects = [layout.rect(position) for position in chunks.finished(folder, layout)]
    x, y = min(r.x for r in rects), min(r.y for r in rects)
    return Rect(x, y, max(r.x1 for r in rects) - x, max(r.y1 for r in rects) - y)


def part_tiles(grid: Grid, tiles: int) -> tuple[int, int]:
    """Columns and rows of a part of at least so many tiles, or all there are: as square as the grid allows."""
    rows = min(grid.ys.n_tiles, math.isqrt(tiles))
    columns = min(grid.xs.n_tiles, math.ceil(tiles / rows))
    return columns, min(grid.ys.n_tiles, math.ceil(tiles / columns))


def part_size(grid: Grid, scale: float, columns: int, rows: int) -> tuple[int, int]:
    """Width and height (source_px) of an image that becomes so many tiles."""

    def length(axis: Axis, tiles: int) -> int:
        reach = min(axis.origins[tiles - 1] + axis.tile, axis.length)
        return max(1, math.floor(reach / scale))

    return length(grid.xs, columns), length(grid.ys, rows)


def _typical(source: Any, seen: Rect, width: int, height: int) -> np.ndarray:
    """Pixels of a window of that size, as rich in detail as such windows are on average: a sky or a lawn compresses
    unlike the rest.
    """
    steps = range(CANDIDATES_ASIDE)
    xs, ys = (
        [i * room // max(1, CANDIDATES_ASIDE - 1) for i in steps]
        for room in (seen.w - width, seen.h - height)
    )
    places = dict.fromkeys((seen.x + x, seen.y + y) for y in ys for x in xs)
    detail = {place: _detail(source.read(Rect(*place, width, height))) for place in places}
    mean = sum(detail.values()) / len(detail)
    place = min(detail, key=lambda place: abs(detail[place] - mean))
    pixels: np.ndarray = source.read(Rect(*place, width, height))
    return pixels


def _detail(pixels: np.ndarray) -> float:
    """Entropy of the differences of neighbours in a row, bits: what lossless compression makes of a sample, about."""
    steps = np.diff(pixels.astype(np.int32), axis=1)
    counts = np.unique(steps, return_counts=True)[1] if steps.size else np.ones(1)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _write_png(pixels: np.ndarray, path: str) -> None:
    grey, wide = pixels.shape[2] < 3, pixels.dtype == np.uint16
    space = ("grey16" if wide else "b-w") if grey else ("rgb16" if wide else "srgb")
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels)).copy(interpretation=space)
    image.write_to_file(path, compression=1)


def _sample(image: Image, settings: Settings, output: str) -> Sample:
    grid, options = image.grid, settings.export
    row_bytes = grid.width * image.info.bands * np.dtype(image.dtype).itemsize
    cell = (grid.ys.cell, grid.xs.cell)
    rows = min(grid.height, max(1, EXPORT_BYTES // (row_bytes * cell[0])) * cell[0])

    def is_a(form: Any) -> bool:
        return options.format == form.key or Path(output).suffix.lower() in form.suffixes

    if is_a(tiff.FORMAT) and options.pyramid is None and grid.width * grid.height > PYRAMID_FROM_PIXELS:
        options = replace(options, pyramid=True)
    grows = grid.height / rows if is_a(webp.FORMAT) else 1.0
    return Sample(grid.width, rows, cell, str(Path(output).with_stem("sample")), asdict(options), grows)


def _costs(answer: Answer, works: list[Work], begun: _Begun) -> Costs:
    cold, warm = answer.turns[0], answer.turns[-1]
    peaks = [turn.report["peak_rss_mb"] for turn in answer.turns]
    roles = {role for peak in peaks for role in peak} - {"driver"}
    memory = {role: max(peak.get(role, 0.0) for peak in peaks) for role in sorted(roles)}
    dino_s = warm.report["stages"].get("dino", {"seconds": 0.0})["seconds"]
    costs = Costs(
        workers=cold.report["workers"],
        tile_s=warm.tile_s,
        token_s=dino_s / works[-1].tokens if works[-1].tokens else 0.0,
        export_s_per_mb=answer.export_s_per_mb,
        ingest_first_s=begun.first_s,
        ingest_s_per_mb=begun.s_per_mb,
        digest_s_per_mb=answer.digest_s_per_mb,
        output_ratio=answer.output_ratio,
        memory_mb={"driver": max(answer.driver_mb, PROCESS_MB + begun.peak_mb), **memory},
        feature_bytes=max(work.feature_bytes for work in works),
    )
    next_s = max(0.0, warm.report["wall_s"] - stages(works[-1], costs).wall) if works[1:] else 0.0
    return replace(with_start(costs, works[0], cold.report["wall_s"]), next_s=next_s)


# ---- the process of its own


def _perform(request: Request, folder: str) -> Answer:
    """Have a fresh process rehearse."""
    asked, answered = (os.path.join(folder, name) for name in ("request.json", "answer.json"))
    Path(asked).write_text(json.dumps(asdict(request)))
    process = subprocess.Popen(
        [sys.executable, "-m", "dino_ray.forecast.rehearsed", asked, answered],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = process.communicate()[1]
    except BaseException:
        process.terminate()  # which ends its Ray, too
        try:
            process.wait(STOPPING_S)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if process.returncode:
        last = said.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise JobError(f"{FAILED}{last[0]}")
    answer = json.loads(Path(answered).read_text())
    return Answer(**{**answer, "turns": tuple(Turn(**turn) for turn in answer["turns"])})
