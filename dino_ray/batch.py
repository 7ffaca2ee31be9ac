"""What one command works on: images checked together before any work, run together, and reported together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dino_ray.config import UpscaleConfig
from dino_ray.engine.protocol import Listener
from dino_ray.errors import DinoRayError, UsageError
from dino_ray.files import check_place, write_whole
from dino_ray.job import Finished, upscale_images
from dino_ray.jobfolder import Existing
from dino_ray.places import is_file, is_url, local_path, read_bytes, shown
from dino_ray.raster.source import probe
from dino_ray.report.run import UpscaleReport
from dino_ray.request import Image, check_file
from dino_ray.resolve import Settings, resolve
from dino_ray.standing import Standing


@dataclass
class Batch:
    """Images to upscale with one config, and what became of them.

    Attributes
    ----------
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
        strict
            Whether one image that can't be upscaled stops the others.
        before_outputs
            Makes the folders of the outputs; called once the options are known to be right, before the files are.

        Raises
        ------
        UsageError
            If an option can't be honoured, or the only image, or with ``strict`` any, can't be read or written.
        """
        if report is not None:
            report = str(report)
            check_place(report, "--report")
            if any(_same(report, str(file)) for pair in pairs for file in pair):
                raise UsageError(f"--report {shown(report)}: is an input or an output; name another file")
        settings = resolve(config)
        several = len(pairs) > 1
        before_outputs()
        batch = cls(config, settings, [], report, existing, strict, several)
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
            )
            self.failures += [(image.name, error) for image, error in failed]
        finally:  # what was done before an interruption is reported too
            self._write_report(reports)

    def _write_report(self, reports: Sequence[UpscaleReport]) -> None:
        if self.report is None or not (reports or self.failures):
            return
        said: list[dict[str, Any]] = [asdict(report) for report in reports]
        said += [{"source": name, "error": str(error)} for name, error in self.failures]
        body = json.dumps(said if self.several else said[0], indent=2, ensure_ascii=False)
        write_whole(self.report, (body + "\n").encode(errors="backslashreplace"), "--report")


def _same(place: str, other: str) -> bool:
    if is_url(place) or is_url(other):
        return place == other
    return os.path.realpath(local_path(place)) == os.path.realpath(local_path(other))


def _absolute(place: str) -> str:
    return place if is_url(place) else os.path.abspath(local_path(place))


def check_replaced(output: str | Path, report: str | Path | None) -> None:
    """Refuse to write over what is no older result: the names come from a job's file, not from the user.

    Raises
    ------
    UsageError
        If the output is there and is no image, or the report and is no JSON.
    """
    for place, kind, is_older in ((output, "image", _is_image), (report, "report", _is_json)):
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
