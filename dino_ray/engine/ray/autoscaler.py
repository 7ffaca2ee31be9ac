"""Whether a cluster grows by itself when work waits for room."""

from __future__ import annotations

import ray
from ray.autoscaler.v2.utils import is_autoscaler_v2


def brings_machines() -> bool:
    """Whether an autoscaler answers to actors that find no room.

    Ray says so of its second autoscaler only, which ``ray up`` and KubeRay start by default.
    """
    return bool(
        is_autoscaler_v2(fetch_from_server=True, gcs_client=ray._private.worker.global_worker.gcs_client)
    )
