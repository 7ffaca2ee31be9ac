"""The machines of a Ray cluster, looked at from time to time."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray._private import state

from dino_ray.engine.ray.placement import Node, Resources
from dino_ray.errors import describe_error

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Between two looks: a machine that joins or is about to go is noticed within this, and a look costs some ms."""

PATIENCE_S = 30.0
"""How long a look that is under way may keep a job from ending."""

ID_SHOWN = 6
"""Digits of a node's id that tell machines of one name apart."""


def look() -> tuple[Node, ...]:
    """The nodes that are alive, the driver's first."""
    here = ray.get_runtime_context().get_node_id()
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"] != here)
    draining = state.state.get_draining_nodes()
    free: Mapping[str, Any] = state.available_resources_per_node()
    return tuple(
        Node(
            node["NodeID"],
            name,
            resources_of(node["Resources"]),
            resources_of(free[node["NodeID"]]) if node["NodeID"] in free else None,
            node["NodeID"] in draining,
        )
        for node, name in zip(alive, _names(alive), strict=True)
    )


def resources_of(ray_resources: Mapping[str, float]) -> Resources:
    """Ray's own table of resources, reduced to what replicas use."""
    return Resources(ray_resources.get("CPU", 0.0), ray_resources.get("GPU", 0.0))


def _names(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Host names; where several nodes share one, with what tells them apart."""
    hosts = [str(node["NodeManagerHostname"] or node["NodeManagerAddress"]) for node in nodes]
    known = Counter(hosts)
    return [
        host if known[host] == 1 else f"{host} ({node['NodeID'][:ID_SHOWN]})"
        for host, node in zip(hosts, nodes, strict=True)
    ]


class Lookout:
    """Looks at the nodes every ``LOOK_S`` in a thread of its own: the head may be slow to answer, or be gone a while.

    A context of one job: ``close`` ends the thread.
    """

    def __init__(self) -> None:
        self._news: tuple[Node, ...] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)
        self._thread.start()

    def news(self) -> tuple[Node, ...] | None:
        """The latest look, if it has not been asked for yet."""
        news, self._news = self._news, None
        return news

    def close(self) -> None:
        """End the thread. A look must not outlive Ray: it would look through what is freed, or start another Ray."""
        self._ended.set()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            try:
                self._news = look()
            except Exception as error:  # whatever befalls the head: the work that runs does not need it
                log.debug("the cluster's nodes can't be looked at: %s", describe_error(error))
