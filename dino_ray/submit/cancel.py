"""Stopping a job on a cluster, for good."""

from __future__ import annotations

import contextlib
import time

from dino_ray import places
from dino_ray.errors import DinoRayError, UsageError
from dino_ray.submit import record
from dino_ray.submit.client import STOP_WAIT_S, forget_order
from dino_ray.submit.dashboard import Dashboard
from dino_ray.submit.status import summary

_TAIL_LINES = 50
_POLL_S = 0.5
_GRACE_S = 5.0
"""Beyond what Ray gives the job itself."""


def cancel(dashboard: Dashboard, job: str) -> str:
    """Stop a job, wait for its end, and remove what was put somewhere for it.

    Returns
    -------
    str
        What became of it, and what is kept, for the user.

    Raises
    ------
    UsageError
        If the cluster has no such job, or it is none of dino-ray's.
    """
    before = dashboard.job(job)
    if "dino_ray" not in before.metadata:
        raise UsageError(f"{job}: is no job of dino-ray's; stop it with 'ray job stop'")
    if not before.over:
        dashboard.stop(job)
        deadline = time.monotonic() + STOP_WAIT_S + _GRACE_S
        while not dashboard.job(job).over and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    after = dashboard.job(job)
    told = summary(dashboard.last_lines(after, _TAIL_LINES))
    forget_order(dashboard, job)
    if (remembered := record.find(job)) is not None:
        _unstage(remembered)
        remembered.forget()
    if before.over:
        return f"{job}: was over ({before.state.lower()}); nothing to stop"
    if not after.over:
        return f"{job}: was told to stop, and has not ended yet; see 'dino-ray status {job}'"
    if told.to_fetch:
        return f"{job}: was done; its results, which nobody had fetched, are removed"
    return f"{job}: stopped; {told.interrupted.removeprefix('interrupted; ') or 'nothing of it is kept'}"


def _unstage(remembered: record.Record) -> None:
    if remembered.staged is not None:
        with contextlib.suppress(DinoRayError):  # the job's driver may have other rights there, and has tried
            places.remove_tree(remembered.staged)
