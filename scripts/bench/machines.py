"""A cluster for tests, all of its machines played by this one."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import psutil
import ray
from ray._private import state as ray_state
from ray.cluster_utils import Cluster

SEE_DEATHS = {
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 500,
    "health_check_initial_delay_ms": 0,
}
"""Ray sees within 2 s that a node is gone. By its own defaults it takes 15: a bench of minutes would do little else."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's own 15 would let all else on this machine go first
}

REPLICA_TITLES = ("ray::RayReplica", "ray::tile")
"""What Ray's workers call themselves while they are one."""


class Machines:
    """The test cluster: a head, and nodes of one CPU that come and go."""

    def __init__(self) -> None:
        os.environ.update(ENVIRONMENT)
        head = {"num_cpus": 0, "_system_config": SEE_DEATHS, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address

    def close(self) -> None:
        self._cluster.shutdown()

    @property
    def nodes(self) -> list[Any]:
        return sorted(self._cluster.worker_nodes, key=lambda node: node.node_id)

    def fill(self, count: int) -> None:
        """Add nodes until there are so many."""
        while len(self.nodes) < count:
            self.add()

    def add(self) -> str:
        return short(self._cluster.add_node(num_cpus=1).node_id)

    def kill(self, node: Any) -> str:
        """As a power cut would: the raylet and its workers get no chance to say anything."""
        name = short(node.node_id)
        self._cluster.remove_node(node, allow_graceful=False)
        return name

    def replicas(self) -> list[psutil.Process]:
        """Processes of live replicas, by age."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "".join(process.cmdline()[:1]).startswith(REPLICA_TITLES):
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Be a driver of the cluster, to ask it questions; not before: Ray tells drivers of every death, at length."""
        ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()

    def actors(self) -> int:
        """Actors that live, or wait for a place."""
        return sum(actor["State"] != "DEAD" for actor in ray_state.actors().values())

    def stored_bytes(self) -> float:
        """What lies in the nodes' stores."""
        everything, free = ray.cluster_resources(), ray.available_resources()
        name = "object_store_memory"
        return everything.get(name, 0.0) - free.get(name, 0.0)


def short(node_id: str) -> str:
    return node_id[:6]
