"""The story of a job: ingest, plan, extract, refine and merge, export, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

from dino_ray import places
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
    Readable,
    ReplicaReady,
    ReplicaSpec,
    StageStarted,
    TilePoisoned,
    TilesDone,
    Timings,
)
from dino_ray.errors import DinoRayError, UsageError
from dino_ray.fidelity.summary import Ledger
from dino_ray.jobfolder import Existing, forget
from dino_ray.loaders import replica_spec
from dino_ray.opening import Job, ahead, is_shared, note_of, open_job
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export import export
from dino_ray.report.logs import EventLog
from dino_ray.report.roster import Roster
from dino_ray.report.run import Bookkeeper, UpscaleReport
from dino_ray.request import Image
from dino_ray.settings import Settings
from dino_ray.standing import Standing, kept_if_cut_short, told_if_interrupted

log = logging.getLogger(__name__)


Finished = Callable[[Image, Canvas | None, UpscaleReport], None]
"""Called with each finished image; its canvas can be read until this returns. None: an earlier run finished it."""

MakeEngine = Callable[[ReplicaSpec, UpscaleConfig, int], Engine]
"""See ``engine_for``."""

Draw = Callable[[Job, UpscaleReport], Mapping[str, str]]
"""Makes pictures of a finished image's fidelity, while it is open; returns what each is, and where."""


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
    draw: Draw | None = None,
    make_engine: MakeEngine | None = None,
) -> list[tuple[Image, DinoRayError]]:
    """Upscale images one after the other, on one pool of replicas that stays warm.

    While the tiles of one are refined, the next is read.

    Parameters
    ----------
    images
        From ``request.check_file`` or ``check_array``.
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
    draw
        See ``Draw``; called before ``finished``.
    make_engine
        Makes the engine, for a caller who has models of its own, or wants to hear more of it. Default: `engine_for`.

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

    def open_one(image: Image, stop: Callable[[], bool]) -> Job | UpscaleReport:
        return open_job(image, config, settings, existing, report, several, stop)

    standing = standing or Standing(images, several)
    roster, log_of_events = Roster(), EventLog()
    with (
        told_if_interrupted(standing),
        _EngineRoom(config, settings, images, make_engine or engine_for) as engine_room,
        closing(ahead(images, open_one)) as opened,
    ):
        for image, take in opened:
            standing.image = image
            books = Bookkeeper(started, roster)
            hear = _to_all(books.hear, log_of_events.listener(image), engine_room.hear, listen)
            try:
                hear(StageStarted("ingest"))
                job = take()
                if isinstance(job, UpscaleReport):
                    finished(image, None, job)
                    standing.done += 1
                    continue
                with kept_if_cut_short(job, several), job.findings as findings:
                    _upscale(job, settings, engine_room, hear)
                    made = books.report(
                        image, job.canvas, config, settings, job.folder.manifest.poisoned, findings.ledger
                    )
                    if draw is not None and made.fidelity is not None:
                        made = replace(made, fidelity={**made.fidelity, "files": draw(job, made)})
                    finished(image, job.canvas, made)
                job.folder.finish(note_of(image, settings, made), keep_note=several)
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


def _to_all(*listeners: Listener) -> Listener:
    """One listener that tells each of several, in order."""

    def hear(event: JobEvent) -> None:
        for listener in listeners:
            listener(event)

    return hear


def _upscale(job: Job, settings: Settings, engine_room: _EngineRoom, listen: Listener) -> None:
    """One image's way through the system."""
    image, done = job.image, job.cells_done
    if len(done) < image.grid.n_cells:
        shared = is_shared(job.folder, settings)
        task = image_task(image, job.source, job.canvas, settings, shared=shared)
        listen(StageStarted("workers"))
        engine = engine_room.engine()
        listen(StageStarted("features"))
        guide, cost = engine.prepare(task)
        listen(ImageStarted(image.info.name, image.grid, engine.replicas, cost, len(done)))
        listen(StageStarted("tiles"))
        listen(drive(engine, task, guide, _noting(job, engine_room, listen), cells_done=done))
        if settings.dino is not None and settings.dino_strength > 0:
            listen(_measure_dino(engine, task, guide, job.findings.ledger))
    else:
        listen(ImageStarted(image.info.name, image.grid, 0, Timings(), len(done)))
        listen(DriveDone(0, 0, {}))

    if image.output is not None:
        listen(StageStarted("export"))
        export(job.canvas, image.info, image.output, settings.export)
    listen(ImageDone(image.output_name))


def image_task(
    image: Image, source: Readable, canvas: Canvas, settings: Settings, *, shared: bool = False
) -> ImageTask:
    """What replicas and merges must know of an image."""
    return ImageTask(
        source=source,
        scaling=image.scaling,
        grid=image.grid,
        canvas=canvas,
        **{name: getattr(settings, name) for name in _TASK_SETTINGS},
        shared=shared,
    )


_TASK_SETTINGS = (
    *(
        "net",
        "denoise",
        "steps",
        "sampler",
        "seed",
        "cfg",
        "prompt",
        "regions",
        "negative_prompt",
        "control_scale",
        "control_range",
        "batch",
    ),
    *("dino_tokens", "dino_strength", "adaptive", "verify", "consistency", "color_lock"),
    *("text_sees_source", "image_prompt"),
)
"""Settings that a tile's pixels depend on, by the same name in ``Settings`` and ``ImageTask``."""


def _measure_dino(engine: Engine, task: ImageTask, guide: Handle, ledger: Ledger) -> DinoEffect:
    """On a tile near the middle; where one is flat, or its model fails, DINO does nothing."""
    middle = task.grid.n_tiles // 2
    tile = ledger.drawn_near(middle)
    if tile is None:
        return DinoEffect(middle, 0.0, 0.0)
    try:
        return engine.dino_effect(engine.share(task), guide, tile)
    except DinoRayError as error:  # a measurement is not worth the image
        log.warning("the effect of DINO could not be measured: %s", error)
        return DinoEffect(tile, None, 0.0)


def _noting(job: Job, engine_room: _EngineRoom, listen: Listener) -> Listener:
    """Passes events on, and keeps in the job's manifest what a resumed run must know."""
    folder = job.folder

    def note_device(device: str) -> None:
        devices = folder.manifest.devices
        if job.cells_done and device not in devices:
            raise UsageError(
                f"the job in {places.shown(folder.place)} was made on {' and '.join(devices)}, now {device}, "
                "which may round otherwise; go on there, or start over with --fresh"
            )
        if device not in devices:
            folder.update(devices=(*devices, device))

    def hear(event: JobEvent) -> None:
        match event:
            case ReplicaReady(device=device):
                engine_room.devices.add(device)
                note_device(device)
            case TilesDone(timings=timings):
                job.findings.add(timings.fidelity)
            case TilePoisoned(tile, reason):
                folder.update(poisoned={**folder.manifest.poisoned, str(tile): reason})
            case _:
                pass
        listen(event)

    for device in sorted(engine_room.devices):  # of replicas that an earlier image has warmed up
        note_device(device)
    return hear


class _EngineRoom:
    """Starts the engine when the first image is known to be readable, and stops it after the last; so Ray's metrics."""

    def __init__(
        self, config: UpscaleConfig, settings: Settings, images: Sequence[Image], make: MakeEngine
    ) -> None:
        self._config, self._settings, self._make = config, settings, make
        self._most_tiles = max((image.grid.n_tiles for image in images), default=1)
        self._stack = ExitStack()
        self._engine: Engine | None = None
        self._metrics: Listener | None = None
        self.devices: set[str] = set()

    def __enter__(self) -> _EngineRoom:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def engine(self) -> Engine:
        if self._engine is None:
            self._engine = self._stack.enter_context(
                self._make(replica_spec(self._config, self._settings), self._config, self._most_tiles)
            )
            if self._config.address != "none":
                from dino_ray.engine.ray.metrics import Metrics

                self._metrics = metrics = Metrics()
                self._stack.callback(metrics.close)
        return self._engine

    def hear(self, event: JobEvent) -> None:
        """Take an event in, for the metrics of the Ray that the engine runs on, if it does."""
        if self._metrics is not None:
            self._metrics(event)


def engine_for(spec: ReplicaSpec, config: UpscaleConfig, most_tiles: int) -> Engine:
    """The engine that a config asks for.

    Parameters
    ----------
    most_tiles
        Of any image: more replicas than that would have nothing to do.
    """
    if config.address == "none":
        from dino_ray.engine.local import LocalEngine

        return LocalEngine(spec)
    from dino_ray.engine.ray import RayEngine

    least, most = config.workers.bounds(most_tiles)
    return RayEngine(
        spec,
        address=config.address,
        least=least,
        most=most,
        gpus_per_worker=0.0 if config.device == "cpu" or not spec.torch else config.gpus_per_worker,
    )
