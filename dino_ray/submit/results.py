"""Bringing a job's results home."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_ray import places
from dino_ray.errors import DinoRayError, JobError, UsageError, describe_error
from dino_ray.files import write_whole
from dino_ray.submit import notes
from dino_ray.submit.dashboard import Dashboard
from dino_ray.submit.parcels import BLOCK, Facts, fetch, install, mail
from dino_ray.submit.pictures import bring, place_here
from dino_ray.submit.record import Record

if TYPE_CHECKING:
    from dino_ray.submit.follow import Show, Told

TRIES, RETRY_S = 3, 2.0
"""To fetch a result."""


def fetch_all(dashboard: Dashboard, remembered: Record, told: Told, show: Show) -> None:
    """Bring results home; then what they were brought from can go.

    Raises
    ------
    UsageError
        If they are gone, or nobody says where they go.
    JobError
        If one can't be brought home; then it waits.
    """
    if remembered.staged is not None:
        for image, (_, shown) in enumerate(told.images):
            home = remembered.home(image, shown, len(told.images))
            if home is not None and image in told.reports:
                _fetch_staged(f"{remembered.staged}/out/{image}", home)
        places.remove_tree(remembered.staged)
    if told.ready is None:
        return
    results = [parcel for parcel in told.ready.parcels if not parcel.picture]
    pictures = [parcel for parcel in told.ready.parcels if parcel.picture]
    state = dashboard.job(remembered.job)
    if state.over:  # its driver waits with them, and removes them as it ends
        if not results:
            return
        raise UsageError(f"{remembered.job}: its results are gone: they were fetched before, or given up")
    for parcel in results:
        shown = told.images[parcel.image][1]
        home = remembered.home(parcel.image, shown, len(told.images))
        if home is None:
            raise UsageError(
                f"{remembered.job}: this machine does not know where its results go; name -o, a file or a folder"
            )
        _fetch_one(dashboard, state.node or "", parcel, home, show)
    for parcel in pictures if remembered.report is not None else ():
        _fetch_picture(dashboard, state.node or "", parcel, remembered.report or "", show)
    fetched = mail(remembered.job, "fetched")
    dashboard.holds(fetched)  # asked for first, so that it does not stay in the store
    dashboard.put(fetched, b"yes")


def _fetch_picture(dashboard: Dashboard, node: str, parcel: notes.Parcel, report: str, show: Show) -> None:
    """Bring a picture home; one that can't be is not worth the results."""
    try:
        bring(
            lambda path: _fetch_one(dashboard, node, parcel, path, show), place_here(report, parcel.picture)
        )
    except DinoRayError as error:
        show.said(str(error))


def _fetch_one(dashboard: Dashboard, node: str, parcel: notes.Parcel, target: Path, show: Show) -> None:
    facts = Facts(parcel.size, parcel.sha256)

    def blocks() -> Iterator[bytes]:
        for block in dashboard.file(node, parcel.name, BLOCK):
            show.fetching(target.name, len(block), parcel.size)
            yield block

    for attempt in range(TRIES):
        try:
            return fetch(blocks(), facts, target, packed=parcel.packed)
        except OSError as error:
            raise JobError(
                f"{target}: can't be written ({describe_error(error)}); the result waits on the cluster, 'dino-ray "
                "submit --follow' fetches it"
            ) from error
        except JobError:
            if attempt == TRIES - 1:
                raise
            time.sleep(RETRY_S)
    return None


def _fetch_staged(folder: str, target: Path) -> None:
    """Download what lies in a folder of an object store."""
    files, root = places.filesystem(folder)
    with places.explained(folder, "read"):
        names = [name for name in files.find(root) if not _hidden(name[len(root) :])]
    if not names:
        raise UsageError(
            f"{target}: the result is not in {folder} any more: it was fetched before, or given up"
        )

    def download(to: str) -> None:
        for name in names:
            relative = name[len(root) :].strip("/")
            path = os.path.normpath(os.path.join(to, relative))
            if not path.startswith(to + os.sep):
                raise JobError(f"{target}: the result's folder holds {relative!r:.80}, which leads out of it")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with places.explained(folder, "read"):
                files.get_file(name, path)

    try:
        install(download, target)
    except OSError as error:
        raise JobError(
            f"{target}: can't be written ({describe_error(error)}); follow the job again"
        ) from error


def _hidden(path: str) -> bool:
    return path.strip("/").partition("/")[0].startswith(".")


def write_report(remembered: Record, told: Told) -> None:
    """Write the run report, as ``upscale`` would have, of what is known of the job."""
    if remembered.report is None or not (told.reports or told.failures):
        return
    said: list[dict[str, Any]] = [told.reports[image] for image in sorted(told.reports)]
    alone = 0 if len(told.images) == 1 else None  # then what the job failed of is the image
    said += [
        {"source": told.name_of(alone if failed.image is None else failed.image) or "", "error": failed.text}
        for failed in told.failures
    ]
    said += [{"source": name, "error": why} for name, why in remembered.refused]
    body = json.dumps(said if remembered.several else said[0], indent=2, ensure_ascii=False)
    write_whole(remembered.report, (body + "\n").encode(errors="backslashreplace"), "--report")
