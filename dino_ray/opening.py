"""Opening a job: its folder, its source to read windows of, its canvas with whatever is done.

Another thread opens the next image's job while this one's tiles are refined.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from dino_ray import identity, places, uploads
from dino_ray.config import UpscaleConfig
from dino_ray.errors import UsageError
from dino_ray.findings import Findings
from dino_ray.jobfolder import Existing, JobFolder, Manifest
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export import root_file, scratch_bytes, scratch_folder
from dino_ray.raster.source import Source, ingest, ingest_array, needs_bytes, open_source, stored_bytes
from dino_ray.raster.wrapped import Wrapped
from dino_ray.report.run import UpscaleReport
from dino_ray.request import Image
from dino_ray.settings import Settings

if TYPE_CHECKING:
    from dino_ray.engine.protocol import Readable


@dataclass(frozen=True)
class Job:
    """An image whose folder is open, whose source can be read and whose canvas is there."""

    image: Image
    folder: JobFolder
    source: Readable
    canvas: Canvas
    cells_done: tuple[int, ...]
    """By an earlier run."""
    findings: Findings


def ahead(
    images: Sequence[Image], open_job: Callable[[Image, Callable[[], bool]], Job | UpscaleReport]
) -> Generator[tuple[Image, Callable[[], Job | UpscaleReport]], None, None]:
    """Each image with a call that takes its job, which another thread opens while the one before is worked on.

    Jobs that were opened and never taken are closed at the end.
    """
    stop = threading.Event()
    opening: deque[Future[Job | UpscaleReport]] = deque()

    def take() -> Job | UpscaleReport:
        try:
            job = opening[0].result()
        except Exception:
            opening.popleft()
            raise
        opening.popleft()
        return job

    with ThreadPoolExecutor(1, thread_name_prefix="ingest") as thread:
        try:
            for image, following in zip_longest(images, images[1:]):
                if not opening:
                    opening.append(thread.submit(open_job, image, stop.is_set))
                if following is not None:
                    opening.append(thread.submit(open_job, following, stop.is_set))
                yield image, take
        finally:
            stop.set()
            for job in opening:
                job.cancel()
                with suppress(BaseException):
                    _close_unused(job.result())


def _close_unused(job: Job | UpscaleReport) -> None:
    if isinstance(job, Job):
        job.folder.leave(worth_keeping=bool(job.cells_done))


def open_job(
    image: Image,
    config: UpscaleConfig,
    settings: Settings,
    existing: Existing,
    report: str | None,
    several: bool,
    stop: Callable[[], bool],
) -> Job | UpscaleReport:
    """Open an image's job, new or resumed; if an earlier run has finished it, the report of that."""
    if image.output is not None and places.is_url(image.output):
        uploads.check_writable(image.output)
    if image.place is None:
        return _fill(JobFolder.temporary(_manifest(image, config, settings, {})), image, settings, stop)
    depth = 8 * np.dtype(image.dtype).itemsize
    pixels = identity.of_pixels(image.source, config, settings, depth, image.grid.wrap, stop)
    manifest = replace(_manifest(image, config, settings, pixels), report=report, several=several)
    folder = JobFolder.open(image.place, manifest, existing)
    note = folder.manifest.finished
    if note is not None:
        if image.output is not None and note["output"] == _state_of(image, settings):
            folder.leave(worth_keeping=True)
            try:
                return UpscaleReport.from_dict(note["report"])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UsageError(
                    f"{places.shown(image.place)}: its report can't be read; start over with --fresh"
                ) from error
        folder.leave(worth_keeping=True)
        folder = JobFolder.open(image.place, manifest, "fresh")
    return _fill(folder, image, settings, stop)


def _fill(folder: JobFolder, image: Image, settings: Settings, stop: Callable[[], bool]) -> Job:
    """Have the source and the canvas in a job's folder."""
    try:
        _check_room(folder, image, settings)
        source = _source(folder, image, settings, stop)
        canvas = _canvas(folder, image)
        columns = image.grid.xs.n_cells
        done = sorted(row * columns + column for row, column in canvas.done()) if folder.resumed else []
        findings = Findings(folder, image.grid.n_tiles)
    except BaseException:
        folder.leave(worth_keeping=folder.resumed)
        raise
    return Job(image, folder, source, canvas, tuple(done), findings)


def _source(folder: JobFolder, image: Image, settings: Settings, stop: Callable[[], bool]) -> Readable:
    if isinstance(image.source, np.ndarray):
        source: Readable = ingest_array(image.source, folder.source, image.info.name, stop)
    elif folder.resumed and (found := Source.find(folder.source)):
        source = found
    elif is_shared(folder, settings):  # the file itself is not seen by every node
        source = ingest(image.source, folder.source, settings.read, stop)
    else:
        source = open_source(image.source, folder.source, settings.read, stop)
    return Wrapped(source) if image.grid.wrap else source


def is_shared(folder: JobFolder, settings: Settings) -> bool:
    return settings.shared or places.is_url(folder.place)


def _canvas(folder: JobFolder, image: Image) -> Canvas:
    grid = image.grid
    wanted = Canvas(
        folder.canvas, grid.width, grid.height, image.info.bands, image.dtype, (grid.ys.cell, grid.xs.cell)
    )
    if folder.resumed and (found := Canvas.find(folder.canvas)):
        if found != wanted:
            raise UsageError(
                f"the job in {places.shown(folder.place)} was laid out by another version of dino-ray; "
                "--fresh starts over"
            )
        found.clean()
        return found
    return Canvas.create(
        *(getattr(wanted, name) for name in ("folder", "width", "height", "bands", "dtype", "cell"))
    )


def _check_room(folder: JobFolder, image: Image, settings: Settings) -> None:
    """Refuse a job that its disks can't hold."""
    job = 0 if folder.resumed else _job_bytes(folder, image, settings)
    scratch = _scratch_bytes(image, settings)
    aside = scratch_folder()
    together = bool(job and scratch) and places.same_disk(folder.place, aside)
    free = places.free_bytes(folder.place) if job else None
    if free is not None and free < (need := job + (scratch if together else 0)):
        raise UsageError(
            f"{folder.place}: the job needs {_size(need)} there while it runs, and {_size(free)} are "
            "free; make room, or name a folder on another disk with --job-dir"
        )
    free = places.free_bytes(aside) if scratch else None
    if free is not None and free < scratch:
        raise UsageError(
            f"{image.output_name}: is made in {aside} before it is sent, which takes up to {_size(scratch)}, and "
            f"{_size(free)} are free; make room, or name a folder on another disk with TMPDIR"
        )


def _job_bytes(folder: JobFolder, image: Image, settings: Settings) -> int:
    if isinstance(image.source, str) and not is_shared(folder, settings):
        return image.canvas_bytes + needs_bytes(image.source, settings.read)
    return image.canvas_bytes + stored_bytes(image.info)


def _scratch_bytes(image: Image, settings: Settings) -> int:
    if image.output is None:
        return 0
    size = (image.grid.width, image.grid.height, image.info.bands)
    return scratch_bytes(image.output, *size, image.dtype, settings.export)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"


def _manifest(image: Image, config: UpscaleConfig, settings: Settings, pixels: dict[str, object]) -> Manifest:
    return Manifest(
        source=image.source if isinstance(image.source, str) else image.name,
        output=image.output or "",
        cwd=os.getcwd(),
        # What the memory of the day decided is to be the same when the job goes on.
        config={**config.model_dump(mode="json", include=config.model_fields_set), **settings.fitted},
        pixels=pixels,
    )


def note_of(image: Image, settings: Settings, report: UpscaleReport) -> dict[str, object]:
    """What a finished image's job folder keeps, so that the same command passes it over."""
    return {"output": _state_of(image, settings), "report": asdict(report)}


def _state_of(image: Image, settings: Settings) -> list[int | str] | None:
    return None if image.output is None else places.state_of(root_file(image.output, settings.export))
