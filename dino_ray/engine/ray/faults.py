"""What can go wrong with a worker, told apart from what can go wrong with the work."""

from __future__ import annotations

from dataclasses import dataclass

from ray.exceptions import (
    ActorUnavailableError,
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    TaskUnschedulableError,
)

from dino_ray.engine.protocol import Fault
from dino_ray.engine.watch import Cancelled
from dino_ray.errors import JobError, describe_error

NODE_FAULTS = (
    NodeDiedError,
    ObjectLostError,
    ActorUnavailableError,
    ActorUnschedulableError,
    TaskUnschedulableError,
)
"""The machine went, or the network to it, or what lay in its store."""

NODE_DIED = "node has died"
"""How Ray words it in an ``ActorDiedError``, which has no field for it."""


@dataclass(frozen=True)
class Failure:
    """Why a call, a merge or a replica was lost."""

    fault: Fault
    reason: str
    process_lost: bool = False
    """The process is gone, or can't be reached, with all that it had; else only this call ended."""
    inputs_lost: bool = False
    """What the call was to read is no longer in the store."""


def understand(error: Exception) -> Failure:
    """What an error of ``ray.get`` means."""
    if isinstance(error, RayTaskError):
        return _in_the_work(cause_of(error))
    if isinstance(error, TaskCancelledError):
        return Failure("cancelled", "cancelled")
    if isinstance(error, OutOfMemoryError):
        return Failure("memory", _gist(error), process_lost=True)
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return Failure("raised", describe_fault(error), process_lost=True)
    if isinstance(error, ObjectLostError):
        return Failure("node", describe_fault(error), inputs_lost=True)
    if isinstance(error, NODE_FAULTS) or _by_its_node(error):
        return Failure("node", describe_fault(error), process_lost=True)
    return Failure("died", describe_fault(error), process_lost=True)


def _in_the_work(cause: Exception) -> Failure:
    """What the worker's own code met: the work may be at fault, or what Ray was to bring it."""
    if isinstance(cause, Cancelled | TaskCancelledError):
        return Failure("cancelled", "cancelled")
    if isinstance(cause, OutOfMemoryError):  # of a task that it waited for
        return Failure("memory", _gist(cause))
    if isinstance(cause, ObjectLostError):
        return Failure("node", describe_fault(cause), inputs_lost=True)
    if isinstance(cause, RayError):
        return Failure("node", describe_fault(cause))
    return Failure("raised", describe_error(cause))


def _by_its_node(error: Exception) -> bool:
    return isinstance(error, RayActorError) and (error.preempted or NODE_DIED in str(error))


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
    died = next((line for line in lines if NODE_DIED in line), None)
    return f"{type(error).__name__}: {(died or gist).split(' Worker exit')[0]}"


def _gist(error: Exception) -> str:
    """Of Ray's page on memory, which node it was and how full."""
    first = str(error).partition("\n")[0]
    return f"the machine ran out of memory and Ray ended the process: {first}"
