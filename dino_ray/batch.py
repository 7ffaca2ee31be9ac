"""What one command works on: images checked together before any work, run together, and reported together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dino_ray.config import UpscaleConfig
from dino_ray.engine.protocol import Listener
from dino_ray.errors import DinoRayError, UsageError
from dino_ray.files import check_place, write_whole
from dino_ray.job import Finished, upscale_images
from dino_ray.jobfolder import Existing
from dino_ray.opening import Job
from dino_ray.places import is_file, is_url, local_path, read_bytes, shown
from dino_ray.raster.source import probe
from dino_ray.report.pictures import draw, picture_places
from dino_ray.report.run import UpscaleReport
from dino_ray.request import Image, check_file
from dino_ray.resolve import resolve
from dino_ray.settings import Settings
from dino_ray.standing import Standing


@dataclass
class Batch:
    """Images to upscale with one config, and what became of them.

    Attributes
    ----------
    pictures
        Of each output, where pictures of its fidelity go; empty if nobody wants them.
    failures
        Sources that could not be upscaled, with the reason; the others are done once ``run`` returns.
    """

    config: UpscaleConfig
    settings: Settings
    images: list[Image]
    report: str | None
    existing: Existing
    strict: bool
    several: bool
    pictures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    failures: list[tuple[str, DinoRayError]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.standing = Standing(self.images, self.several)

    @classmethod
    def check(
        cls,
        pairs: Sequence[tuple[str, str | Path]],
        config: UpscaleConfig,
        *,
        report: str | Path | None = None,
        pictures: str | Path | None = None,
        existing: Existing = "resume",
        strict: bool = False,
        before_outputs: Callable[[], None] = lambda: None,
    ) -> Batch:
        """Look at all that is asked for, before any work.

        Parameters
        ----------
        pairs
            Source and output of each image.
        report
            Where the report goes, if anywhere: a path or an address.
        pictures
            The name beside which pictures of each image's fidelity go. None: the report's.
        strict
            Whether one image that can't be upscaled stops the others.
        before_outputs
            Makes the folders of the outputs; called once the options are known to be right, before the files are.

        Raises
        ------
        UsageError
            If an option can't be honoured, or the only image, or with ``strict`` any, can't be read or written.
        """
        files = {_real(str(file)) for pair in pairs for file in pair}
        if report is not None:
            report = str(report)
            check_place(report, "--report")
            if _real(report) in files:
                raise UsageError(f"--report {shown(report)}: is an input or an output; name another file")
        settings = resolve(config)
        several = len(pairs) > 1
        before_outputs()
        drawn = str(pictures or report or "") if settings.model is not None else ""
        where = _pictures(drawn, [str(output) for _, output in pairs], files)
        batch = cls(config, settings, [], report, existing, strict, several, where)
        for source, output in pairs:
            try:
                batch.images.append(check_file(source, str(output), config, settings, several=several))
            except UsageError as error:
                if strict or not several:
                    raise
                batch.failures.append((shown(source), error))
        return batch

    def run(self, listen: Listener, finished: Finished, started: float) -> None:
        """Upscale the images; adds to ``failures``, and writes the report whatever happens.

        Parameters
        ----------
        listen, finished, started
            As of ``upscale_images``.
        """
        reports: list[UpscaleReport] = []

        def note(image: Image, canvas: Any, report: UpscaleReport) -> None:
            reports.append(report)
            finished(image, canvas, report)

        try:
            failed = upscale_images(
                self.images,
                self.config,
                self.settings,
                listen,
                note,
                started,
                existing=self.existing,
                strict=self.strict,
                several=self.several,
                # Of several images, one that is resumed alone must not take the place of all in the report.
                report=_absolute(self.report) if self.report and not self.several else None,
                standing=self.standing,
                draw=self._draw if self.pictures else None,
            )
            self.failures += [(image.name, error) for image, error in failed]
        finally:  # what was done before an interruption is reported too
            self._write_report(reports)

    def _draw(self, job: Job, report: UpscaleReport) -> Mapping[str, str]:
        return draw(job, report, self.pictures[job.image.output or ""])

    def _write_report(self, reports: Sequence[UpscaleReport]) -> None:
        if self.report is None or not (reports or self.failures):
            return
        said: list[dict[str, Any]] = [asdict(report) for report in reports]
        said += [{"source": name, "error": str(error)} for name, error in self.failures]
        body = json.dumps(said if self.several else said[0], indent=2, ensure_ascii=False)
        write_whole(self.report, (body + "\n").encode(errors="backslashreplace"), "--report")


def _pictures(report: str, outputs: Sequence[str], files: set[str]) -> dict[str, dict[str, str]]:
    """Of each output, where its pictures go; refused if that is one of ``files``, or can't be written."""
    if not report:
        return {}
    numbers = range(1, len(outputs) + 1) if len(outputs) > 1 else [None]
    where = {output: picture_places(report, output, n) for output, n in zip(outputs, numbers, strict=True)}
    for place in (place for named in where.values() for place in named.values()):
        if _real(place) in files:
            raise UsageError(
                f"--report {shown(report)}: {shown(place)}, which goes with it, is an input or an output; "
                "name another file"
            )
        if not is_url(place):  # of addresses, the report's own was looked at
            check_place(place, "--report")
    return where


def _real(place: str) -> str:
    """The same for all names of a file."""
    return place if is_url(place) else os.path.realpath(local_path(place))


def _absolute(place: str) -> str:
    return place if is_url(place) else os.path.abspath(local_path(place))


def check_replaced(output: str | Path, report: str | Path | None) -> None:
    """Refuse to write over what is no older result: the names come from a job's file, not from the user.

    Raises
    ------
    UsageError
        If the output, or a picture beside the report, is there and is no image, or the report and is no JSON.
    """
    pictures = [] if report is None else picture_places(str(report)).values()
    checked = [(output, "image", _is_image), (report, "report", _is_json)]
    for place, kind, is_older in [*checked, *((picture, "image", _is_image) for picture in pictures)]:
        if place is not None and is_file(place) and not is_older(str(place)):
            raise UsageError(
                f"{shown(place)}: the job would write over it, and it is no {kind}; "
                "move it, or give the whole command again"
            )


def _is_image(place: str) -> bool:
    if place.endswith(".dzi"):  # of which only the tiles are images
        return _DEEP_ZOOM in read_bytes(place, _DEEP_ZOOM_START)
    try:
        probe(place)
    except UsageError:
        return False
    return True


_DEEP_ZOOM, _DEEP_ZOOM_START = b"schemas.microsoft.com/deepzoom", 1000
"""What a Deep Zoom file has in its first bytes."""


def _is_json(place: str) -> bool:
    try:
        return isinstance(json.loads(read_bytes(place)), dict | list)
    except ValueError:
        return False
