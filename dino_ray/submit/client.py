"""Submitting, as the user's machine sees it: check, send, start."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dino_ray import __version__, places, uploads
from dino_ray.batch import Batch
from dino_ray.config import UpscaleConfig
from dino_ray.errors import DinoRayError, UsageError
from dino_ray.inputs import Input
from dino_ray.jobfolder import Existing
from dino_ray.submit import record, ship
from dino_ray.submit.dashboard import Dashboard
from dino_ray.submit.order import Order, Source, Target
from dino_ray.submit.parcels import mail, send
from dino_ray.submit.routes import Means, folder_name, for_cluster

STOP_WAIT_S = 30
"""Between SIGTERM and SIGKILL to a job that is cancelled. Ray's own 3 s are less than the driver may take to end its
work and clear up."""

_ENTRYPOINT = "exec python -m dino_ray.submit.driver"
_SLUG_LENGTH = 24
_NAMED_LENGTH = 200
"""Characters of a name in the job's metadata, which every client lists."""


@dataclass(frozen=True)
class Request:
    """What ``submit`` was asked for; see its options."""

    images: Sequence[Input]
    results: Sequence[str]
    config: UpscaleConfig
    means: Means
    report: str | None = None
    existing: Existing = "resume"
    strict: bool = False
    env: Sequence[str] = ()
    ship: bool = False
    before_outputs: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Prepared:
    """A request that was looked at, and what is to be sent for it."""

    order: Order
    record: record.Record
    sending: Sequence[tuple[int, str]]
    """Place in the order, and path, of images that go through the dashboard's port."""
    staging: Sequence[tuple[str, str]]
    """Path here, and address there, of images that go through the object store."""
    env: dict[str, str]
    package: tuple[str, bytes] | None
    failures: Sequence[tuple[str, DinoRayError]] = field(default_factory=list)


class DriverGone(Exception):
    """The job ended while images were sent to it; its log says why."""


def prepare(request: Request, address: str) -> Prepared:
    """Look at all that is asked for, before anything is sent; what ``upscale`` would refuse here is refused.

    Sources behind addresses are looked at by the cluster: this machine need not have the right to read them.

    Raises
    ------
    UsageError
        See ``Batch.check`` and ``routes``; if a variable to be passed on is not set.
    """
    pairs = [(image.path, result) for image, result in zip(request.images, request.results, strict=True)]
    local = [pair for pair in pairs if not places.is_url(pair[0])]
    # Where the job's folder lies, and who sees it, is another question there.
    config = request.config.model_copy(update={"address": "auto", "shared": False, "job_dir": None})
    failures = _check(request, local, config)
    failed = {name for name, _ in failures}
    pairs = [pair for pair in pairs if places.is_url(pair[0]) or places.shown(pair[0]) not in failed]
    if not pairs:
        raise UsageError("no image can be upscaled: " + "; ".join(str(error) for _, error in failures))
    job = new_name(pairs[0][0])
    storage = request.means.storage
    staged = f"{storage}/{job}" if storage is not None else None
    sources = [_source(path, n, request.means, staged) for n, (path, _) in enumerate(pairs)]
    targets = [_target(result, n, request.means, staged) for n, (_, result) in enumerate(pairs)]
    given = request.config.model_dump(mode="json", exclude_unset=True)
    options = for_cluster(given, request.means, [result for _, result in pairs])
    places_there = [*(source.place for source in sources), *(target.place for target in targets)]
    if staged is not None and "job_dir" not in options and any(_is_staged(t.place, staged) for t in targets):
        options["job_dir"] = f"{staged}/job"
    else:
        staged = staged if any(_is_staged(place, staged) for place in places_there) else None
    images = tuple(zip(sources, targets, strict=True))
    folder = folder_name(job, request.config.job_dir, [target.shown for target in targets])
    pictures = request.report is not None
    order = Order(folder, images, options, request.existing, request.strict, staged, pictures)
    homes = tuple(
        os.path.abspath(places.local_path(target.shown))
        if target.sent or _is_staged(target.place, staged)
        else None
        for target in targets
    )
    remembered = record.Record(
        job,
        address,
        homes,
        staged,
        report=record.report_place(request.report),
        several=len(request.images) > 1,
        refused=tuple((name, str(error)) for name, error in failures),
    )
    return Prepared(
        order,
        remembered,
        [(n, pairs[n][0]) for n, source in enumerate(sources) if source.size is not None],
        [(pairs[n][0], source.place) for n, source in enumerate(sources) if _is_staged(source.place, staged)],
        _environment(request.env),
        ship.package() if request.ship else None,
        failures,
    )


def start(
    dashboard: Dashboard,
    prepared: Prepared,
    sent: Callable[[str, int, int], None] = lambda name, n_bytes, of: None,
) -> None:
    """Submit what was prepared, and send what has to be sent; a job whose images can't be sent is stopped.

    Parameters
    ----------
    sent
        Told of each part that is on its way: the image's name, the part's bytes, the image's bytes.

    Raises
    ------
    DriverGone
        If the job ended meanwhile.
    DinoRayError
        If something can't be sent.
    """
    job, order = prepared.record.job, prepared.order
    runtime_env: dict[str, object] = {
        "env_vars": {**prepared.env, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
    }
    prepared.record.save()
    submitted = False
    try:
        for path, place in prepared.staging:
            uploads.put_file(path, place)
            size = os.path.getsize(path)
            sent(path, size, size)
        if prepared.package is not None:
            name, body = prepared.package
            if not dashboard.holds(name):
                dashboard.put(name, body)
            runtime_env["py_modules"] = [f"gcs://{name}"]
        dashboard.put(mail(job, "order"), order.to_json().encode())
        submitted = True
        dashboard.start(job, f"{_ENTRYPOINT} {job}", runtime_env, _metadata(order))
        for number, path in prepared.sending:
            _send(dashboard, prepared, number, path, sent)
    except DriverGone:
        raise
    except BaseException:
        abandon(dashboard, prepared.record, submitted=submitted)
        raise


def abandon(dashboard: Dashboard, remembered: record.Record, *, submitted: bool = True) -> None:
    """Stop a job, and remove what was put somewhere for it; whatever goes wrong with that is not said."""
    job = remembered.job
    if submitted:
        for undo in (lambda: dashboard.stop(job), lambda: forget_order(dashboard, job)):
            _quietly(undo)
    if remembered.staged is not None:
        _quietly(lambda: places.remove_tree(remembered.staged or ""))
    remembered.forget()


def forget_order(dashboard: Dashboard, job: str) -> None:
    """Take an order that nobody has read out of the store."""
    if dashboard.holds(mail(job, "order")):  # asked for, so that Ray removes what is put there now
        dashboard.put(mail(job, "order"), b"")


def new_name(source: str) -> str:
    """A job's name: what it is of, and what tells it from others of that."""
    stem = Path(Input(source).name).stem
    slug = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:_SLUG_LENGTH]
    return "-".join(filter(None, ["upscale", slug, secrets.token_hex(4)]))


def _quietly(undo: Callable[[], object]) -> None:
    with contextlib.suppress(DinoRayError):
        undo()


def _check(
    request: Request, pairs: Sequence[tuple[str, str]], config: UpscaleConfig
) -> list[tuple[str, DinoRayError]]:
    """The failures of single images; what concerns all of them is raised."""
    if not pairs:
        from dino_ray.resolve import resolve

        resolve(config)
        request.before_outputs()
        return []
    batch = Batch.check(
        pairs,
        config,
        report=request.report,
        existing=request.existing,
        strict=request.strict,
        before_outputs=request.before_outputs,
    )
    return batch.failures


def _is_staged(place: str, staged: str | None) -> bool:
    return staged is not None and place.startswith(f"{staged}/")


def _source(path: str, number: int, means: Means, staged: str | None) -> Source:
    way = means.way(path)
    name = Input(path).name
    if way == "as_is":
        return Source(
            path if places.is_url(path) else os.path.abspath(places.local_path(path)), places.shown(path)
        )
    if way == "storage":
        return Source(f"{staged}/in/{number}/{name}", places.shown(path))
    return Source(name, places.shown(path), os.path.getsize(path))


def _target(place: str, number: int, means: Means, staged: str | None) -> Target:
    way = means.way(place)
    if way == "as_is":
        return Target(
            place if places.is_url(place) else os.path.abspath(places.local_path(place)), places.shown(place)
        )
    name = places.local_path(place).name
    if way == "storage":
        return Target(f"{staged}/out/{number}/{name}", str(place))
    return Target(name, str(place), sent=True)


def _environment(names: Sequence[str]) -> dict[str, str]:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UsageError(f"--env {missing[0]}: is not set here; set it, or leave it out")
    return {name: os.environ[name] for name in names}


def _metadata(order: Order) -> dict[str, str]:
    """What every client of the cluster sees of a job."""
    source, target = order.images[0]
    more = f" and {len(order.images) - 1} more" if len(order.images) > 1 else ""
    return {
        "dino_ray": __version__,
        "image": os.path.basename(source.shown.rstrip("/"))[:_NAMED_LENGTH] + more,
        "output": os.path.basename(target.shown.rstrip("/"))[:_NAMED_LENGTH] + more,
        "images": str(len(order.images)),
    }


def _send(
    dashboard: Dashboard, prepared: Prepared, number: int, path: str, sent: Callable[[str, int, int], None]
) -> None:
    job, size = prepared.record.job, prepared.order.images[number][0].size or 0

    def check() -> bool:
        state = dashboard.job(job)
        if state.over:
            raise DriverGone
        return state.state == "PENDING"

    send(
        path,
        size,
        dashboard,
        lambda part: mail(job, number, part),
        check=check,
        sent=lambda n_bytes: sent(path, n_bytes, size),
    )
