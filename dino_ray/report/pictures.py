"""The pictures that lie beside a report: what they are called, and that they get there."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from dino_ray.errors import describe_error
from dino_ray.files import write_whole
from dino_ray.inputs import Input
from dino_ray.places import shown

if TYPE_CHECKING:
    from PIL.Image import Image

    from dino_ray.opening import Job
    from dino_ray.report.run import UpscaleReport

log = logging.getLogger(__name__)

HEAT, WORST = "heat_map", "worst_tiles"
"""What the report calls them."""
_ENDS = {HEAT: "heat.png", WORST: "worst.png"}
_STEM_LENGTH = 64
"""Of an image's name in that of a picture; file names must not grow too long."""


def picture_places(report: str, output: str = "", number: int | None = None) -> dict[str, str]:
    """Where the pictures of an image go: ``r-heat.png`` beside ``r.json``.

    Parameters
    ----------
    report
        A path or an address.
    output, number
        Of several images, the result and its place in the command: ``r-2-photo-heat.png``.
    """
    about = "" if number is None else f"{number}-{os.path.splitext(Input(output).name)[0][:_STEM_LENGTH]}-"
    return {kind: beside(report, about + end) for kind, end in _ENDS.items()}


def beside(report: str, end: str) -> str:
    """A file whose name begins as that of a report does."""
    return f"{os.path.splitext(report)[0]}-{end}"


def draw(job: Job, report: UpscaleReport, where: Mapping[str, str]) -> dict[str, str]:
    """Draw and write the pictures of a finished image.

    They are not worth the job: what can't be drawn or written is warned of.

    Parameters
    ----------
    job
        With its source and canvas open.
    where
        From ``picture_places``.

    Returns
    -------
    dict
        Those that were written, named as they are shown.
    """
    ledger, fidelity = job.findings.ledger, report.fidelity
    if fidelity is None or not len(ledger):
        return {}

    def heat() -> Image:
        from dino_ray.report.heatmap import heat_map

        return heat_map(job.canvas, job.image.grid, ledger, fidelity, report.poisoned)

    def worst() -> Image | None:
        from dino_ray.report.worst import worst_tiles

        return worst_tiles(job.source, job.image.scaling, job.canvas, job.image.grid, ledger)

    info = job.image.info
    made = _write(heat, where[HEAT], None), _write(worst, where[WORST], None if info.grey else info.icc)
    return {kind: shown(where[kind]) for kind, is_there in zip((HEAT, WORST), made, strict=True) if is_there}


def _write(picture: Callable[[], Image | None], place: str, icc: bytes | None) -> bool:
    from dino_ray.report.drawing import to_png

    try:
        image = picture()
        if image is not None:
            write_whole(place, to_png(image, icc), "--report")
    except Exception as error:
        log.warning("%s: could not be made (%s)", shown(place), describe_error(error))
        return False
    return image is not None
