"""What every node of a cluster says of itself, asked by a light task on each: for ``dino-ray doctor``."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import psutil  # type: ignore[import-untyped]  # comes with ray
import ray
from ray._raylet import AuthenticationMode, get_authentication_mode

from dino_ray.engine.ray.cluster import connect, leave
from dino_ray.engine.ray.nodes import resources_of
from dino_ray.engine.ray.placement import Resources
from dino_ray.engine.ray.workers import light
from dino_ray.errors import describe_error

ANSWER_S = 90.0
"""A node answers once a worker has imported this package there, and torch where there are GPUs: seconds to a minute."""

PROBE_S = 60.0
"""For the process that tries the GPUs; less than ``ANSWER_S``, so that a driver that hangs is named."""

ALL_INTERFACES = frozenset({"0.0.0.0", "::"})


@dataclass(frozen=True)
class Software:
    """What has to be the same on every node."""

    ray: str
    python: str
    dino_ray: str


@dataclass(frozen=True)
class NodeFacts:
    """What one node says of itself."""

    address: str
    software: Software
    token: bool
    """Whether it asks its callers for the token."""
    open_dashboard: bool
    """Whether Ray's dashboard listens there, on every network interface."""
    gpu_trouble: str
    """Why torch can't use the GPUs that Ray counts there; empty if it can, or if there are none."""


@dataclass(frozen=True)
class ClusterFacts:
    """A cluster, as its nodes describe it."""

    total: Resources
    here: Software
    """Of the process that asks."""
    dashboard: str
    """``host:port``; empty if there is none."""
    nodes: tuple[NodeFacts, ...]
    silent: Mapping[str, str]
    """Nodes that could not say, by address, and why."""


def examine_cluster(address: str) -> ClusterFacts:
    """Join the cluster at ``address``, ask every node, and leave.

    Raises
    ------
    UsageError
        If no cluster answers, or it asks for a token that is not here.
    """
    joined = connect(address)
    try:
        return _ask_all()
    finally:
        if joined:
            leave()


def _ask_all() -> ClusterFacts:
    dashboard = str(ray._private.worker.global_worker.node.address_info.get("webui_url") or "")
    _, _, port = dashboard.rpartition(":")
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    answers = {
        light(facts_of_this_node, "check up", node_id).remote(
            node["NodeManagerAddress"],
            resources_of(node["Resources"]).gpus,
            int(port) if port.isdigit() and _is_head(node) else None,
        ): node["NodeManagerAddress"]
        for node_id, node in alive.items()
    }
    ready, _ = ray.wait(list(answers), num_returns=len(answers), timeout=ANSWER_S)
    facts: list[NodeFacts] = []
    silent: dict[str, str] = {}
    for ref, name in answers.items():
        if ref not in ready:
            silent[name] = f"no answer within {ANSWER_S:.0f} s"
            ray.cancel(ref, force=True)
            continue
        try:
            facts.append(cast(NodeFacts, ray.get(ref)))
        except Exception as error:  # a node without this package fails in many ways; each is its answer
            silent[name] = describe_error(getattr(error, "cause", None) or error)
    total = resources_of(ray.cluster_resources())
    facts.sort(key=lambda node: node.address)
    return ClusterFacts(total, software(), dashboard, tuple(facts), silent)


def _is_head(node: Mapping[str, Any]) -> bool:
    return "node:__internal_head__" in node["Resources"]


def software() -> Software:
    """Of this process."""
    return Software(ray.__version__, platform.python_version(), metadata.version("dino-ray"))


def facts_of_this_node(address: str, gpus: float, dashboard_port: int | None) -> NodeFacts:
    """Runs on each node.

    Parameters
    ----------
    gpus
        How many Ray counts there.
    dashboard_port
        On the head, where there is a dashboard.
    """
    return NodeFacts(
        address=address,
        software=software(),
        # A worker has its mode from the node's own processes, which check the callers' tokens.
        token=get_authentication_mode() == AuthenticationMode.TOKEN,
        open_dashboard=dashboard_port is not None and _listens_everywhere(dashboard_port),
        gpu_trouble=_gpu_trouble(int(gpus)) if gpus >= 1 else "",
    )


def _listens_everywhere(port: int) -> bool:
    listening = (c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr)
    return any(where.port == port and where.ip in ALL_INTERFACES for where in listening)


def _gpu_trouble(gpus: int) -> str:
    probe = str(Path(__file__).with_name("gpu_probe.py"))
    try:
        done = subprocess.run(
            [sys.executable, probe, str(gpus)],
            env=_node_environment(),
            capture_output=True,
            text=True,
            timeout=PROBE_S,
        )
    except subprocess.TimeoutExpired:
        return f"the GPUs do not answer within {PROBE_S:.0f} s"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return f"the GPUs can't be tried: {last[0]}"
    return str(json.loads(done.stdout))


def _node_environment() -> dict[str, str]:
    """The environment of this worker, but with the GPUs that its node was given, which Ray hides from it."""
    environment = dict(os.environ)
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        given = psutil.Process(os.getppid()).environ().get("CUDA_VISIBLE_DEVICES")
    except psutil.Error:
        given = None  # not readable: all that the machine has
    return environment if given is None else {**environment, "CUDA_VISIBLE_DEVICES": given}
