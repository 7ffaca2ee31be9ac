"""The pictures that go with a report, on their way home: made on the driver's node, named there after a report that is
not written, and here after the one that is.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dino_ray import places, uploads
from dino_ray.errors import JobError
from dino_ray.report.pictures import beside

_FOLDER, _STEM = "pictures", "r"
_END = re.compile(r"[^/\\\0]+\.png")


def report_there(folder: str) -> str:
    """Beside what they are made, in the driver's folder; where they go is made."""
    there = os.path.join(folder, _FOLDER)
    os.makedirs(there, exist_ok=True)
    return os.path.join(there, f"{_STEM}.json")


def made(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each picture in the driver's folder, and how its name ends: what it is of."""
    there = folder / _FOLDER
    for name in sorted(os.listdir(there)) if there.is_dir() else ():
        if not name.startswith("."):
            yield there / name, _end(name)


def _end(name: str) -> str:
    return name.removeprefix(f"{_STEM}-")


def place_here(report: str, end: str) -> str:
    """Where a picture belongs, beside the user's report.

    Raises
    ------
    JobError
        If the end of its name would lead elsewhere: it comes from the cluster.
    """
    if not _END.fullmatch(end):
        raise JobError(f"{end!r:.80} is no name of a picture")
    return beside(report, end)


def at_home(said: dict[str, Any], report: str | None) -> dict[str, Any]:
    """An image's report, its pictures named as they are here; without a report there are none."""
    fidelity = said.get("fidelity")
    if not fidelity or not fidelity.get("files"):
        return said
    files = {
        kind: places.shown(place_here(report, _end(os.path.basename(place))))
        for kind, place in fidelity["files"].items()
        if report is not None
    }
    return {**said, "fidelity": {**fidelity, "files": files}}


def bring(fetch: Callable[[Path], None], place: str) -> None:
    """Put a picture in its place, which may be an address.

    Parameters
    ----------
    fetch
        Given a path, writes it there.
    """
    if not places.is_url(place):
        fetch(Path(place))
        return
    with tempfile.TemporaryDirectory(prefix="dino-ray-") as folder:
        here = Path(folder, "picture.png")
        fetch(here)
        uploads.put_file(here, place)
