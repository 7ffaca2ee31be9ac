"""How many replicas a Ray has room for, found out without placing any, and for this machine without starting one."""

from __future__ import annotations

import ray
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager
from ray._private.utils import get_num_cpus

from dino_ray.engine.ray.cluster import Resources, connect, replica_count, resources_of


def replicas_at(address: str, wanted: int | None, most: int, gpus: float | None, threads: int) -> int:
    """Replicas that a `RayEngine` with these arguments will have.

    Parameters
    ----------
    address
        ``local`` for a Ray that would be started here; any other is joined and left again.
    wanted
        None: as many as there is room for, up to ``most``.
    gpus
        Of each replica; None for one where there are GPUs, else 0.
    threads
        Of each replica.

    Raises
    ------
    UsageError
        If no cluster answers, or it has no room for them.
    """
    nodes = [_this_machine()] if address == "local" else _nodes(address)
    if gpus is None:
        gpus = 1.0 if any(node.gpus >= 1 for node in nodes) else 0.0
    return replica_count(wanted, most, nodes, gpus, threads)


def _this_machine() -> Resources:
    """What a Ray started here would count: the CPUs that a container may use, the GPUs that are visible."""
    gpus = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    visible = NvidiaGPUAcceleratorManager.get_current_process_visible_accelerator_ids()
    return Resources(float(get_num_cpus()), float(gpus if visible is None else min(gpus, len(visible))))


def _nodes(address: str) -> list[Resources]:
    joined = connect(address)
    try:
        return [resources_of(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    finally:
        if joined:
            ray.shutdown()
