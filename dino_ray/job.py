"""The story of a job: ingest, plan, extract, refine and merge, export, report."""

from __future__ import annotations

import logging
import os
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dino_ray import identity, places
from dino_ray.config import UpscaleConfig
from dino_ray.engine.drive import drive
from dino_ray.engine.protocol import (
    DinoEffect,
    DriveDone,
    Engine,
    Handle,
    ImageDone,
    ImageStarted,
    ImageTask,
    JobEvent,
    Listener,
    ReplicaReady,
    StageStarted,
    TilePoisoned,
    Timings,
)
from dino_ray.errors import DinoRayError, Interrupted, UsageError
from dino_ray.jobfolder import CANVAS, Existing, JobFolder, Manifest, default_place, forget, read_manifest
from dino_ray.plan.geometry import Grid, Scaling
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export import check_output, export, output_dtype
from dino_ray.raster.source import (
    Source,
    SourceInfo,
    describe_array,
    ingest,
    ingest_array,
    needs_bytes,
    open_source,
    probe,
    stored_bytes,
)
from dino_ray.raster.wrapped import Wrapped
from dino_ray.report.run import Bookkeeper, UpscaleReport
from dino_ray.resolve import Settings, replica_spec

if TYPE_CHECKING:
    from dino_ray.engine.protocol import Readable
    from dino_ray.raster.store import Depth

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Image:
    """One input, laid out, and where its result goes; checked, nothing read but its header."""

    source: str | np.ndarray
    """A local path, a URL, or pixels."""
    info: SourceInfo
    output: Path | None
    """None: the result is read from the canvas, no file is written."""
    scaling: Scaling
    grid: Grid
    dtype: Depth
    """Of the canvas."""
    place: str | None
    """Its job folder; None for a temporary one, which nothing resumes."""

    @property
    def name(self) -> str:
        """For messages and reports: without what a URL holds of passwords and signatures."""
        return places.shown(self.source) if isinstance(self.source, str) else self.info.name

    @property
    def canvas_bytes(self) -> int:
        """Disk that its canvas takes: border cells are stored whole."""
        cell = self.grid.xs.cell * self.grid.ys.cell
        return self.grid.n_cells * cell * self.info.bands * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class _Job:
    """An image whose folder is open, whose source can be read and whose canvas is there."""

    image: Image
    folder: JobFolder
    source: Readable
    canvas: Canvas
    cells_done: tuple[int, ...]
    """By an earlier run."""


Finished = Callable[[Image, Canvas | None, UpscaleReport], None]
"""Called with each finished image; its canvas can be read until this returns. None: an earlier run finished it."""


def upscale_images(
    images: Sequence[Image],
    config: UpscaleConfig,
    settings: Settings,
    listen: Listener,
    finished: Finished,
    started: float,
    *,
    existing: Existing = "resume",
    strict: bool = False,
    several: bool | None = None,
    report: str | None = None,
    standing: Standing | None = None,
) -> list[tuple[Image, DinoRayError]]:
    """Upscale images one after the other, on one pool of replicas that stays warm.

    While the tiles of one are refined, the next is read.

    Parameters
    ----------
    images
        From ``check_file`` or ``check_array``.
    settings
        What ``resolve`` made of ``config``.
    listen
        Called with every event, in this thread.
    finished
        See ``Finished``.
    started
        When the command started, by ``time.monotonic``.
    existing
        What becomes of a job that is in an image's job folder already.
    strict
        Whether the first image that fails ends it all, as it does where there is but one.
    several
        Whether the command names several images, of which some may not be in ``images``; None: see there.
    report
        Where the command writes its report, for whoever resumes it.
    standing
        Kept up to date, for a caller who has to say at any moment what an interruption leaves.

    Returns
    -------
    list
        The images that failed, each with the reason; the others are done.

    Raises
    ------
    UsageError
        If no engine can be had for the config.
    Interrupted
        On Ctrl-C; says what is kept and how to go on.
    """
    failures = []
    several = len(images) > 1 if several is None else several

    def open_job(image: Image, stop: Callable[[], bool]) -> _Job | UpscaleReport:
        return _open(image, config, settings, existing, report, several, stop)

    standing = standing or Standing(images, several)
    with (
        _told_if_interrupted(standing),
        _EngineRoom(config, settings, images) as engine_room,
        closing(_ahead(images, open_job)) as opened,
    ):
        for image, take in opened:
            standing.image = image
            books = Bookkeeper(started)
            hear = books.listener(listen)
            try:
                hear(StageStarted("ingest"))
                job = take()
                if isinstance(job, UpscaleReport):
                    finished(image, None, job)
                    standing.done += 1
                    continue
                with _kept_if_cut_short(job, several):
                    _upscale(job, settings, engine_room, hear)
                    made = books.report(image, job.canvas, config, settings, job.folder.manifest.poisoned)
                    finished(image, job.canvas, made)
                job.folder.finish(_note_of(image, made), keep_note=several)
                standing.done += 1
            except DinoRayError as error:
                if strict or not several:
                    raise
                # Without its traceback, which would keep the image's tiles alive until the last image is done.
                failures.append((image, type(error)(str(error))))
            started = time.monotonic()
    for image in images:
        if image.place is not None:
            forget(image.place)
    return failures


def _upscale(job: _Job, settings: Settings, engine_room: _EngineRoom, listen: Listener) -> None:
    """One image's way through the system."""
    image, done = job.image, job.cells_done
    if len(done) < image.grid.n_cells:
        task = _task(job, settings)
        listen(StageStarted("workers"))
        engine = engine_room.engine()
        listen(StageStarted("features"))
        guide, cost = engine.prepare(task)
        listen(ImageStarted(image.info.name, image.grid, engine.replicas, cost, len(done)))
        listen(StageStarted("tiles"))
        listen(drive(engine, task, guide, _noting(job, engine_room, listen), cells_done=done))
        if settings.dino is not None:
            listen(_measure_dino(engine, task, guide))
    else:
        listen(ImageStarted(image.info.name, image.grid, 0, Timings(), len(done)))
        listen(DriveDone(0, 0, {}))

    if image.output is not None:
        listen(StageStarted("export"))
        export(job.canvas, image.info, image.output, settings.export)
    listen(ImageDone(str(image.output or "")))


def _task(job: _Job, settings: Settings) -> ImageTask:
    return ImageTask(
        source=job.source,
        scaling=job.image.scaling,
        grid=job.image.grid,
        canvas=job.canvas,
        denoise=settings.denoise,
        steps=settings.steps,
        sampler=settings.sampler,
        seed=settings.seed,
        cfg=settings.cfg,
        prompt=settings.prompt,
        dino_strength=settings.dino_strength,
        shared=_is_shared(job.folder, settings),
    )


def _measure_dino(engine: Engine, task: ImageTask, guide: Handle) -> DinoEffect:
    tile = task.grid.n_tiles // 2
    try:
        return engine.dino_effect(engine.share(task), guide, tile)
    except DinoRayError as error:  # a measurement is not worth the image
        log.warning("the effect of DINO could not be measured: %s", error)
        return DinoEffect(tile, None, 0.0)


# ---- before the work: what is asked for, checked


def check_file(
    source: str, output: Path | None, config: UpscaleConfig, settings: Settings, *, several: bool = False
) -> Image:
    """Look at a file's header and at its output's place, before any work.

    Parameters
    ----------
    output
        None: the result is read from the canvas.
    several
        Whether ``config.job_dir`` is to hold the folders of several jobs, rather than this one's files.

    Raises
    ------
    UsageError
        If the source can't be read, or the output can't be written or can't hold the result.
    """
    info = probe(source, settings.read)
    scaling, grid = settings.layout(info)
    dtype = _dtype(info, settings)
    if output is not None:
        size = (grid.width, grid.height, info.bands)
        check_output(output, *size, info.dtype, None if places.is_url(source) else source, settings.export)
        dtype = output_dtype(output, info.dtype, settings.export)
    place = (
        config.job_dir
        if config.job_dir is None or places.is_url(config.job_dir)
        else os.path.abspath(config.job_dir)
    )
    if output is not None and place is None:
        place = default_place(output)
    elif output is not None and several and place is not None:
        place = places.join(place, os.path.basename(default_place(output)))
    return Image(source, info, output, scaling, grid, dtype, place)


def check_array(pixels: np.ndarray, settings: Settings, name: str = "array") -> Image:
    """An array as a source: uint8 or uint16, (H, W) or (H, W, 1 to 4 bands), the last of 2 or 4 alpha."""
    info = describe_array(pixels, name)
    scaling, grid = settings.layout(info)
    return Image(pixels, info, None, scaling, grid, _dtype(info, settings), None)


def _dtype(info: SourceInfo, settings: Settings) -> Depth:
    """Depth of a canvas that no file format limits."""
    named: dict[int | None, Depth] = {8: "uint8", 16: "uint16"}
    return named.get(settings.export.depth, info.dtype)


# ---- a job's folder, source and canvas


def _ahead(
    images: Sequence[Image], open_job: Callable[[Image, Callable[[], bool]], _Job | UpscaleReport]
) -> Generator[tuple[Image, Callable[[], _Job | UpscaleReport]], None, None]:
    """Each image with a call that takes its job, which another thread opens while the one before is worked on.

    Jobs that were opened and never taken are closed at the end.
    """
    stop = threading.Event()
    opening: deque[Future[_Job | UpscaleReport]] = deque()

    def take() -> _Job | UpscaleReport:
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


def _close_unused(job: _Job | UpscaleReport) -> None:
    if isinstance(job, _Job):
        job.folder.leave(worth_keeping=bool(job.cells_done))


def _open(
    image: Image,
    config: UpscaleConfig,
    settings: Settings,
    existing: Existing,
    report: str | None,
    several: bool,
    stop: Callable[[], bool],
) -> _Job | UpscaleReport:
    """Open an image's job, new or resumed; if an earlier run has finished it, the report of that."""
    if image.place is None:
        return _fill(JobFolder.temporary(_manifest(image, config, {})), image, settings, stop)
    depth = 8 * np.dtype(image.dtype).itemsize
    pixels = identity.of_pixels(image.source, config, settings, depth, image.grid.wrap, stop)
    manifest = replace(_manifest(image, config, pixels), report=report, several=several)
    folder = JobFolder.open(image.place, manifest, existing)
    note = folder.manifest.finished
    if note is not None:
        if image.output is not None and note["output"] == _state_of(image.output):
            folder.leave(worth_keeping=True)
            try:
                return UpscaleReport.from_dict(note["report"])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UsageError(
                    f"{image.place}: its report can't be read; start over with --fresh"
                ) from error
        folder.leave(worth_keeping=True)
        folder = JobFolder.open(image.place, manifest, "fresh")
    return _fill(folder, image, settings, stop)


def _fill(folder: JobFolder, image: Image, settings: Settings, stop: Callable[[], bool]) -> _Job:
    """Have the source and the canvas in a job's folder."""
    try:
        if not folder.resumed:
            _check_room(folder, image, settings)
        source = _source(folder, image, settings, stop)
        canvas = _canvas(folder, image)
        columns = image.grid.xs.n_cells
        done = sorted(row * columns + column for row, column in canvas.done()) if folder.resumed else []
    except BaseException:
        folder.leave(worth_keeping=folder.resumed)
        raise
    return _Job(image, folder, source, canvas, tuple(done))


def _source(folder: JobFolder, image: Image, settings: Settings, stop: Callable[[], bool]) -> Readable:
    if isinstance(image.source, np.ndarray):
        source: Readable = ingest_array(image.source, folder.source, image.info.name, stop)
    elif folder.resumed and (found := Source.find(folder.source)):
        source = found
    elif _is_shared(folder, settings):  # the file itself is not seen by every node
        source = ingest(image.source, folder.source, settings.read, stop)
    else:
        source = open_source(image.source, folder.source, settings.read, stop)
    return Wrapped(source) if image.grid.wrap else source


def _is_shared(folder: JobFolder, settings: Settings) -> bool:
    return settings.shared or places.is_url(folder.place)


def _canvas(folder: JobFolder, image: Image) -> Canvas:
    grid = image.grid
    wanted = Canvas(
        folder.canvas, grid.width, grid.height, image.info.bands, image.dtype, (grid.ys.cell, grid.xs.cell)
    )
    if folder.resumed and (found := Canvas.find(folder.canvas)):
        if found != wanted:
            raise UsageError(
                f"the job in {folder.place} was laid out by another version of dino-ray; --fresh starts over"
            )
        found.clean()
        return found
    return Canvas.create(
        *(getattr(wanted, name) for name in ("folder", "width", "height", "bands", "dtype", "cell"))
    )


def _check_room(folder: JobFolder, image: Image, settings: Settings) -> None:
    """Refuse a job that its disk can't hold."""
    free = places.free_bytes(folder.place)
    if isinstance(image.source, str) and not _is_shared(folder, settings):
        source_bytes = needs_bytes(image.source, settings.read)
    else:
        source_bytes = stored_bytes(image.info)
    need = image.canvas_bytes + source_bytes
    if free is not None and free < need:
        raise UsageError(
            f"{folder.place}: the job needs {_size(need)} there while it runs, and {_size(free)} are "
            "free; make room, or name a folder on another disk with --job-dir"
        )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"


def _manifest(image: Image, config: UpscaleConfig, pixels: dict[str, object]) -> Manifest:
    return Manifest(
        source=image.source if isinstance(image.source, str) else image.name,
        output=str(image.output or ""),
        cwd=os.getcwd(),
        config={name: getattr(config, name) for name in sorted(config.model_fields_set)},
        pixels=pixels,
    )


def _note_of(image: Image, report: UpscaleReport) -> dict[str, object]:
    return {"output": _state_of(image.output) if image.output else None, "report": asdict(report)}


def _state_of(output: Path) -> list[int] | None:
    try:
        facts = output.stat()
    except OSError:
        return None
    return [facts.st_size, facts.st_mtime_ns]


def _noting(job: _Job, engine_room: _EngineRoom, listen: Listener) -> Listener:
    """Passes events on, and keeps in the job's manifest what a resumed run must know."""
    folder = job.folder

    def note_device(device: str) -> None:
        devices = folder.manifest.devices
        if job.cells_done and device not in devices:
            raise UsageError(
                f"the job in {folder.place} was made on {' and '.join(devices)}, now {device}, which may round "
                "otherwise; go on there, or start over with --fresh"
            )
        if device not in devices:
            folder.update(devices=(*devices, device))

    def hear(event: JobEvent) -> None:
        match event:
            case ReplicaReady(device=device):
                engine_room.devices.add(device)
                note_device(device)
            case TilePoisoned(tile, reason):
                folder.update(poisoned={**folder.manifest.poisoned, str(tile): reason})
            case _:
                pass
        listen(event)

    for device in sorted(engine_room.devices):  # of replicas that an earlier image has warmed up
        note_device(device)
    return hear


# ---- work that is cut short


@dataclass
class Standing:
    """Where a command is with its images."""

    images: Sequence[Image]
    several: bool
    image: Image | None = None
    """Whose turn it is."""
    done: int = 0
    """Images that are finished, by this run or an earlier one."""

    def left(self) -> str:
        """What an end at this moment leaves, as the folders show it, and how to go on."""
        image = self.image or self.images[0]
        cells = "" if image.place is None else _cells_kept(image, image.place)
        if self.several:
            counts = [f"{self.done:,} of {len(self.images):,} images are done", *([cells] if cells else [])]
            return f"{', and '.join(counts)}; go on with the same command"
        if cells:
            return f"{cells}; {_how_to_go_on(image)}"
        if image.place is not None and os.path.exists(image.place):  # there was no time to clear up
            return f"nothing was done yet; {image.place} is left, for the same command to use or to remove"
        return "nothing was done yet, and nothing is left behind"


def _cells_kept(image: Image, place: str) -> str:
    """What is kept of an unfinished image; nothing if there is no such job."""
    try:
        manifest = read_manifest(place)
        canvas = Canvas.find(places.join(place, CANVAS))
        if manifest is None or manifest.finished is not None or canvas is None:
            return ""
        done = len(canvas.done())
    except DinoRayError:
        return ""
    return f"{done:,} of {image.grid.n_cells:,} cells of {image.info.name} are kept" if done else ""


def _how_to_go_on(image: Image) -> str:
    if image.output is None:
        return "go on with the same call"
    return f"go on with: dino-ray resume {shlex.quote(image.place or '')}"


@contextmanager
def _told_if_interrupted(standing: Standing) -> Iterator[None]:
    """Ctrl-C says what it leaves, once all has been closed."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # what Ray makes of SIGTERM while it starts
        raise Interrupted(f"interrupted; {standing.left()}") from None


@contextmanager
def _kept_if_cut_short(job: _Job, several: bool) -> Iterator[None]:
    """Whatever ends the work early: finished cells are kept, and an error says how to go on."""
    try:
        yield
    except BaseException as error:
        place = job.image.place
        try:
            worth_keeping, gone = bool(job.canvas.done()), ""
        except DinoRayError:  # its disk is gone; what is on it is there when the disk is
            worth_keeping, gone = True, f"what is done of {job.image.info.name} is kept in {place}"
        job.folder.leave(worth_keeping=worth_keeping)
        kept = gone or _cells_kept(job.image, place) if place is not None else ""
        if not kept or not isinstance(error, DinoRayError):
            raise
        again = ", or with the same command" if several else ""
        raise type(error)(f"{error}; {kept}; {_how_to_go_on(job.image)}{again}") from error


class _EngineRoom:
    """Starts the engine when the first image is known to be readable, and stops it after the last."""

    def __init__(self, config: UpscaleConfig, settings: Settings, images: Sequence[Image]) -> None:
        self._config, self._settings = config, settings
        self._most_tiles = max((image.grid.n_tiles for image in images), default=1)
        self._stack = ExitStack()
        self._engine: Engine | None = None
        self.devices: set[str] = set()

    def __enter__(self) -> _EngineRoom:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def engine(self) -> Engine:
        if self._engine is None:
            self._engine = self._stack.enter_context(self._make())
        return self._engine

    def _make(self) -> Engine:
        config = self._config
        spec = replica_spec(config, self._settings)
        if config.address == "none":
            from dino_ray.engine.local import LocalEngine

            return LocalEngine(spec)
        from dino_ray.engine.ray import RayEngine

        return RayEngine(
            spec,
            address=config.address,
            workers=None if config.workers == "auto" else config.workers,
            most=self._most_tiles,
            gpus_per_worker=0.0 if config.device == "cpu" or not spec.torch else config.gpus_per_worker,
        )
