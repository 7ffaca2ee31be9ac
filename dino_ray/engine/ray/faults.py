"""What can go wrong with a worker, told apart from what can go wrong with the work."""

from __future__ import annotations

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from dino_ray.errors import JobError, describe_error

PROCESS_FAULTS = (
    RayActorError,
    NodeDiedError,
    WorkerCrashedError,
    OutOfMemoryError,
    ObjectLostError,
)
"""A worker, its node or its output is gone: the work itself is not to blame. They share no useful base class."""


def cause_of(error: RayTaskError) -> Exception:
    """What the worker raised, as it raised it: errors meant for the user keep their kind and words."""
    return error.cause if isinstance(error.cause, Exception) else JobError(describe_error(error))


def describe_fault(error: Exception) -> str:
    """What Ray says of a lost worker or object, as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # A failed constructor's message ends with its cause; the others begin with the gist.
    gist = lines[-1] if "creation task" in lines[0] else lines[0]
    return f"{type(error).__name__}: {gist.split(' Worker exit')[0]}"
