"""The process of a rehearsal: runs the command's own machinery on what it is given, and notes what that took.

A run report counts from before the job's own imports. So nothing heavy is imported here before that moment, either.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_ray.config import UpscaleConfig
from dino_ray.errors import DinoRayError, Interrupted

if TYPE_CHECKING:
    from dino_ray.raster.canvas import Canvas
    from dino_ray.report.run import UpscaleReport
    from dino_ray.request import Image

MB = 1e6
STAGGER = 37
"""Rows; a prime, so that few columns of cells show the same."""
SETTLING_TILES = 2
"""Per replica: in its first tiles of an image, a replica reads the source's file anew."""


@dataclass(frozen=True)
class Sample:
    """Rows of an output, to be exported at full width."""

    width: int
    height: int
    cell: tuple[int, int]
    output: str
    options: dict[str, Any]
    """Of the export; what the size of the whole output decides is decided."""
    grows: float
    """Times that what the exporter holds grows from these rows to all of them: 1 where it streams."""


@dataclass(frozen=True)
class Request:
    """What the process of a rehearsal is asked to do."""

    config: dict[str, Any]
    images: tuple[tuple[str, str], ...]
    """Source and output of each."""
    sample: Sample | None


@dataclass(frozen=True)
class Turn:
    """What one image of a rehearsal took."""

    report: dict[str, Any]
    tile_s: float
    """Elapsed per tile, from when all replicas were ready."""
    output_bytes: int
    canvas_bytes: int


@dataclass(frozen=True)
class Answer:
    """What a rehearsal found."""

    turns: tuple[Turn, ...]
    driver_mb: float
    digest_s_per_mb: float
    export_s_per_mb: float
    output_ratio: float


class _Rehearsal:
    """Hears the events of a rehearsal, and measures what they do not say."""

    def __init__(self, sample: Sample | None) -> None:
        self.turns: list[Turn] = []
        self.driver_mb = 0.0
        self.digest_s_per_mb = self.export_s_per_mb = 0.0
        self.output_ratio = 1.0
        self._sample = sample
        self._ready = self._tile_s = 0.0
        self._replicas = 1
        self._done: list[float] = []

    def hear(self, event: Any) -> None:
        from dino_ray.engine.protocol import DriveDone, ImageStarted, ReplicaReady, TilesDone

        now = time.monotonic()
        match event:
            case ImageStarted(replicas=replicas):
                self._ready, self._replicas, self._done = now, replicas, []
            case ReplicaReady():
                self._ready = now
            case TilesDone():
                self._done.append(now)
            case DriveDone():
                self._tile_s = tile_seconds(self._ready, self._done, now, self._replicas)

    def finished(self, image: Image, canvas: Canvas, report: UpscaleReport, last: bool) -> None:
        pixels = pixel_bytes(canvas)
        size = size_of(Path(image.output)) if image.output else 0
        self.turns.append(Turn(asdict(report), self._tile_s, size, pixels))
        self.driver_mb = max(self.driver_mb, report.peak_rss_mb["driver"])
        if not last:
            return
        started = time.perf_counter()
        canvas.sha256()
        self.digest_s_per_mb = (time.perf_counter() - started) / (pixels / MB)
        self.export_s_per_mb = report.stages["export"].seconds / (pixels / MB)
        self.output_ratio = size / pixels
        if self._sample is not None:
            self._export(image, canvas, self._sample)

    def _export(self, image: Image, canvas: Canvas, sample: Sample) -> None:
        from dino_ray.raster.canvas import Canvas
        from dino_ray.raster.export import ExportOptions, export

        rows = Canvas.create(
            str(Path(sample.output).with_name("sample.zarr")),
            sample.width,
            sample.height,
            canvas.bands,
            canvas.dtype,
            (sample.cell[0], sample.cell[1]),
        )
        _fill(rows, canvas)
        from dino_ray.engine.replica import peak_rss_mb

        before = resident_mb()
        forget_peak()
        started = time.perf_counter()
        export(rows, image.info, sample.output, ExportOptions(**sample.options))
        seconds = time.perf_counter() - started
        held = max(0.0, peak_rss_mb() - before)
        self.driver_mb = max(self.driver_mb, before + held * sample.grows)
        pixels = pixel_bytes(rows)
        self.export_s_per_mb = seconds / (pixels / MB)


def tile_seconds(ready: float, done: Sequence[float], ended: float, replicas: int) -> float:
    """Elapsed seconds per tile once an image's work is in its stride, the merges that follow its last tile included.

    Parameters
    ----------
    ready
        When the image was begun or, if later, when the last replica was ready.
    done
        When its tiles were, in order; at least one.
    ended
        When all was merged.
    """
    after = [time for time in done if time > ready] or list(done)
    settling = SETTLING_TILES * replicas
    if len(after) > 2 * settling:
        ready, after = after[settling - 1], after[settling:]
    return (ended - min(ready, after[0])) / len(after)


def pixel_bytes(canvas: Canvas) -> int:
    """Size of a canvas's pixels, uncompressed."""
    return canvas.width * canvas.height * canvas.bands * {"uint8": 1, "uint16": 2}[canvas.dtype]


def _fill(rows: Canvas, canvas: Canvas) -> None:
    """Have every cell of ``rows`` show some part of a finished canvas."""
    import numpy as np

    from dino_ray.plan.geometry import Rect

    for row in range(rows.cells[0]):
        for column in range(rows.cells[1]):
            rect = rows.cell_rect(row, column)
            w, h = min(rect.w, canvas.width), min(rect.h, canvas.height)
            # Other rows in each column of cells: a codec that looks back would find what it had a moment ago.
            x, y = rect.x % (canvas.width - w + 1), (rect.y + STAGGER * column) % (canvas.height - h + 1)
            pixels = canvas.read(Rect(x, y, w, h))
            rows.write(rect, np.pad(pixels, [(0, rect.h - h), (0, rect.w - w), (0, 0)], mode="wrap"))


def size_of(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    beside = path.with_name(f"{path.stem}_files")  # a Deep Zoom's tiles
    return path.stat().st_size + (size_of(beside) if beside.is_dir() else 0)


def resident_mb() -> float:
    """What this process holds now; elsewhere than on Linux, the most that it has held."""
    try:
        with open("/proc/self/statm", "rb") as numbers:
            return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB
    except OSError:
        from dino_ray.engine.replica import peak_rss_mb

        return peak_rss_mb()


def forget_peak() -> None:
    """Have Linux count the peak from here (proc(5), clear_refs); where it doesn't, the older one counts on."""
    try:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")
    except OSError:
        pass


def main(asked: str, answered: str) -> None:
    """Do what a request in a file says, and write the answer into another; runs in a process of its own."""
    started = time.monotonic()
    from dino_ray.batch import Batch

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    request = json.loads(Path(asked).read_text())
    sample = Sample(**request["sample"]) if request["sample"] else None
    try:
        pairs = [(source, output) for source, output in request["images"]]
        batch = Batch.check(pairs, UpscaleConfig.parse(request["config"]), strict=True)
        rehearsal = _Rehearsal(sample)
        last = pairs[-1][1]

        def finished(image: Image, canvas: Any, report: Any) -> None:
            rehearsal.finished(image, canvas, report, last=image.output == last)

        batch.run(rehearsal.hear, finished, started)
    except (DinoRayError, Interrupted) as error:
        sys.exit(str(error))
    answer = Answer(
        tuple(rehearsal.turns),
        rehearsal.driver_mb,
        rehearsal.digest_s_per_mb,
        rehearsal.export_s_per_mb,
        rehearsal.output_ratio,
    )
    Path(answered).write_text(json.dumps(asdict(answer)))


if __name__ == "__main__":
    main(*sys.argv[1:])
