"""Work that is cut short: what of it is kept, and how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dino_ray import places
from dino_ray.errors import DinoRayError, Interrupted
from dino_ray.jobfolder import CANVAS, read_manifest
from dino_ray.opening import Job
from dino_ray.raster.canvas import Canvas
from dino_ray.request import Image


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
        if image.place is not None and _is_there(image.place):  # there was no time to clear up
            left = places.shown(image.place)
            return f"nothing was done yet; {left} is left, for the same command to use or to remove"
        return "nothing was done yet, and nothing is left behind"


@contextmanager
def told_if_interrupted(standing: Standing) -> Iterator[None]:
    """Ctrl-C says what it leaves, once all has been closed."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {standing.left()}") from None


@contextmanager
def kept_if_cut_short(job: Job, several: bool) -> Iterator[None]:
    """Whatever ends the work early: finished cells are kept, and an error says how to go on."""
    try:
        yield
    except BaseException as error:
        place = job.image.place
        try:
            worth_keeping, gone = bool(job.canvas.done()), ""
        except DinoRayError:  # its disk is gone; what is on it is there when the disk is
            worth_keeping = True
            gone = f"what is done of {job.image.info.name} is kept in {places.shown(place or '')}"
        job.folder.leave(worth_keeping=worth_keeping)
        kept = gone or _cells_kept(job.image, place) if place is not None else ""
        if not kept or not isinstance(error, DinoRayError):
            raise
        again = ", or with the same command" if several else ""
        raise type(error)(f"{error}; {kept}; {_how_to_go_on(job.image)}{again}") from error


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


def _is_there(place: str) -> bool:
    try:
        return places.exists(place)
    except DinoRayError:
        return False


def _how_to_go_on(image: Image) -> str:
    if image.output is None:
        return "go on with the same call"
    return f"go on with: dino-ray resume {shlex.quote(places.shown(image.place or ''))}"
