"""How many replicas a Ray has room for, found out without placing any, and for this machine without starting one."""

from __future__ import annotations

from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager
from ray._private.utils import get_num_cpus

from dino_ray.engine.ray.autoscaler import brings_machines
from dino_ray.engine.ray.cluster import connect, leave
from dino_ray.engine.ray.nodes import look
from dino_ray.engine.ray.placement import Resources, replica_count, share_of


def replicas_at(address: str, least: int, most: int, gpus: float | None, threads: int) -> int:
    """Replicas that a `RayEngine` with these arguments will have once the cluster as it is has been put to use.

    Parameters
    ----------
    address
        ``local`` for a Ray that would be started here; any other is joined and left again.
    least, most
        Bounds on their number.
    gpus
        Of each replica; None for one where there are GPUs, else 0.
    threads
        Of each replica.

    Raises
    ------
    UsageError
        If no cluster answers, or it has no room for them.
    """
    if address == "local":
        machines, grows = [_this_machine()], False
    else:
        machines, grows = _machines(address)
    share = share_of(gpus, threads, machines)
    return least if grows else replica_count(least, most, machines, share)


def _this_machine() -> Resources:
    """What a Ray started here would count: the CPUs that a container may use, the GPUs that are visible."""
    gpus = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    visible = NvidiaGPUAcceleratorManager.get_current_process_visible_accelerator_ids()
    return Resources(float(get_num_cpus()), float(gpus if visible is None else min(gpus, len(visible))))


def _machines(address: str) -> tuple[list[Resources], bool]:
    """What the machines have, and whether an autoscaler would bring more."""
    joined = connect(address)
    try:
        return [node.total for node in look() if not node.draining], brings_machines()
    finally:
        if joined:
            leave()
