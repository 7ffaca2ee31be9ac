"""Promises about what Ray's errors are taken for."""

from __future__ import annotations

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    NodeDiedError,
    ObjectReconstructionFailedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)

from dino_ray.engine.protocol import Fault
from dino_ray.engine.ray.faults import understand
from dino_ray.engine.watch import Cancelled
from dino_ray.errors import JobError

GONE = ObjectReconstructionFailedError("00" * 28, "", "", 0)  # type: ignore[no-untyped-call]


def raised(cause: Exception) -> RayTaskError:
    return RayTaskError("refine_here", "Traceback", cause)


def actor_died(why: str, **context: object) -> ActorDiedError:
    return ActorDiedError(ActorDiedErrorContext(error_message=why, actor_id=bytes(16), **context))


@pytest.mark.parametrize(
    ("error", "fault", "process_lost", "inputs_lost"),
    [
        (raised(JobError("too bright")), "raised", False, False),
        (raised(Cancelled("asked to stop")), "cancelled", False, False),
        (raised(GONE), "node", False, True),
        (raised(OutOfMemoryError("1 worker(s) were killed")), "memory", False, False),
        (raised(WorkerCrashedError()), "node", False, False),
        (TaskCancelledError(), "cancelled", False, False),
        (OutOfMemoryError("1 worker(s) were killed"), "memory", True, False),
        (actor_died("The actor is dead because its worker process has died."), "died", True, False),
        (actor_died("The actor died because its node has died. Node Id: 00"), "node", True, False),
        (
            actor_died(
                "gone", node_death_info=NodeDeathInfo(reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED)
            ),
            "node",
            True,
            False,
        ),
        (ActorDiedError(raised(ImportError("no module"))), "raised", True, False),
        (ActorUnavailableError("connection reset", bytes(16)), "node", True, False),
        (ActorUnschedulableError("no such node"), "node", True, False),
        (NodeDiedError("gone"), "node", True, False),
        (WorkerCrashedError(), "died", True, False),
        (GONE, "node", False, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, RayError) else None,
)
def test_the_work_is_blamed_only_for_what_it_raised_or_may_have_done(
    error: Exception, fault: Fault, process_lost: bool, inputs_lost: bool
) -> None:
    failure = understand(error)
    assert (failure.fault, failure.process_lost, failure.inputs_lost) == (fault, process_lost, inputs_lost)
    assert failure.reason
    assert "\n" not in failure.reason


def test_what_was_written_for_the_user_stays_as_it_was() -> None:
    assert understand(raised(JobError("no such weights"))).reason == "no such weights"
