"""The story of a job: ingest, plan, extract, refine and merge, export, report."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dino_ray.config import UpscaleConfig
from dino_ray.engine.drive import drive
from dino_ray.engine.protocol import (
    DinoEffect,
    Engine,
    Handle,
    ImageDone,
    ImageStarted,
    ImageTask,
    Listener,
    StageStarted,
)
from dino_ray.errors import DinoRayError
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export import check_output, export, output_dtype
from dino_ray.raster.source import Source, SourceInfo, describe_array, ingest, ingest_array, probe
from dino_ray.report.run import Bookkeeper, UpscaleReport
from dino_ray.resolve import Settings, replica_spec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Image:
    """One input and where its result goes; checked, nothing read but its header."""

    source: Path | np.ndarray
    info: SourceInfo
    output: Path | None
    """None: the result is read from the canvas, no file is written."""


Finished = Callable[[Image, Canvas, UpscaleReport], None]


def upscale_images(
    images: Sequence[Image],
    config: UpscaleConfig,
    settings: Settings,
    listen: Listener,
    finished: Finished,
    started: float,
) -> list[tuple[Image, DinoRayError]]:
    """Upscale images one after the other, on one pool of replicas that stays warm.

    Parameters
    ----------
    images
        From ``check_file`` or ``check_array``.
    settings
        What ``resolve`` made of ``config``.
    listen
        Called with every event, in this thread.
    finished
        Called with each finished image; its canvas can be read until this returns.
    started
        When the command started, by ``time.monotonic``.

    Returns
    -------
    list
        The images that failed, each with the reason; the others are done.

    Raises
    ------
    UsageError
        If no engine can be had for the config; then nothing has been done.
    """
    failures = []
    with _EngineRoom(config, settings, images) as engine_room:
        for image in images:
            books = Bookkeeper(started)
            try:
                with _workspace(image) as folder:
                    canvas = _upscale(image, settings, folder, engine_room, books.listener(listen))
                    finished(image, canvas, books.report(image, canvas, config, settings))
            except DinoRayError as error:
                if len(images) == 1:
                    raise
                # Without its traceback, which would keep the image's tiles alive until the last image is done.
                failures.append((image, type(error)(str(error))))
            started = time.monotonic()
    return failures


def _upscale(
    image: Image, settings: Settings, folder: Path, engine_room: _EngineRoom, listen: Listener
) -> Canvas:
    """One image's way through the system."""
    listen(StageStarted("ingest"))
    source = _ingest(image, folder)
    task = _plan(source, image, settings, folder)
    listen(StageStarted("workers"))
    engine = engine_room.engine()

    listen(StageStarted("features"))
    guide, cost = engine.prepare(task)
    listen(ImageStarted(source.info.name, task.grid, engine.replicas, cost))
    listen(StageStarted("tiles"))
    listen(drive(engine, task, guide, listen))
    if settings.dino is not None:
        listen(_measure_dino(engine, task, guide))

    if image.output is not None:
        listen(StageStarted("export"))
        export(task.canvas, source.info, image.output)
    listen(ImageDone(str(image.output or "")))
    return task.canvas


def _measure_dino(engine: Engine, task: ImageTask, guide: Handle) -> DinoEffect:
    tile = task.grid.n_tiles // 2
    try:
        return engine.dino_effect(engine.share(task), guide, tile)
    except DinoRayError as error:  # a measurement is not worth the image
        log.warning("the effect of DINO could not be measured: %s", error)
        return DinoEffect(tile, None, 0.0)


def check_file(source: Path, output: Path, settings: Settings) -> Image:
    """Look at a file's header and at its output's place, before any work.

    Raises
    ------
    UsageError
        If the source can't be read, or the output can't be written or can't hold the result.
    """
    info = probe(source)
    scaling, _ = settings.layout(info.width, info.height)
    check_output(output, scaling.canvas_w, scaling.canvas_h, info.bands, info.dtype, source)
    return Image(source, info, output)


def check_array(pixels: np.ndarray, name: str = "array") -> Image:
    """An array as a source: uint8 or uint16, (H, W) or (H, W, 1 to 4 bands), the last of 2 or 4 alpha."""
    return Image(pixels, describe_array(pixels, name), None)


def _ingest(image: Image, folder: Path) -> Source:
    where = folder / "source.zarr"
    if isinstance(image.source, Path):
        return ingest(image.source, where)
    return ingest_array(image.source, where, image.info.name)


def _plan(source: Source, image: Image, settings: Settings, folder: Path) -> ImageTask:
    info = source.info
    scaling, grid = settings.layout(info.width, info.height)
    dtype = output_dtype(image.output, info.dtype) if image.output else info.dtype
    cell = (grid.ys.cell, grid.xs.cell)
    canvas = Canvas.create(folder / "canvas.zarr", grid.width, grid.height, info.bands, dtype, cell)
    return ImageTask(
        source=source,
        scaling=scaling,
        grid=grid,
        canvas=canvas,
        denoise=settings.denoise,
        steps=settings.steps,
        sampler=settings.sampler,
        seed=settings.seed,
        cfg=settings.cfg,
        prompt=settings.prompt,
        dino_strength=settings.dino_strength,
    )


@contextmanager
def _workspace(image: Image) -> Iterator[Path]:
    """A folder for the source's and the canvas's stores: beside the output, on the disk that must hold it anyway."""
    # Absolute: workers of a Ray that runs already have working directories of their own.
    beside = image.output.parent.resolve() if image.output else None
    with tempfile.TemporaryDirectory(prefix=".dino-ray-", dir=beside, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class _EngineRoom:
    """Starts the engine when the first image is known to be readable, and stops it after the last."""

    def __init__(self, config: UpscaleConfig, settings: Settings, images: Sequence[Image]) -> None:
        self._config, self._settings = config, settings
        layouts = [settings.layout(image.info.width, image.info.height) for image in images]
        self._most_tiles = max(grid.n_tiles for _, grid in layouts)
        self._stack = ExitStack()
        self._engine: Engine | None = None

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
