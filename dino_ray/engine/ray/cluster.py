"""A Ray cluster: joined or started, looked at, and what it has room for."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import ray_constants

from dino_ray.errors import JobError, UsageError, describe_error

REACH_S = 5.0
"""A cluster that takes longer to accept a connection is of no use."""


@dataclass(frozen=True)
class Resources:
    """What a node, or a cluster, has to place replicas on."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.gpus:g} GPUs and {self.cpus:g} CPUs"


def connect(address: str) -> bool:
    """Join the Ray at ``address``, or start one here if it is ``local``.

    Returns
    -------
    bool
        Whether that was needed, so that it has to be undone: a process that is connected already stays so.

    Raises
    ------
    UsageError
        If no cluster answers.
    JobError
        If a Ray that was started here can be reached from outside.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would warn at every start that it will one day stop hiding GPUs from workers that hold none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A failed call is answered by the scheduler; Ray would print its traceback as well.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # Merged tiles leave the store one by one, not once a second: what lies there counts as every worker's memory.
    os.environ.setdefault("RAY_free_objects_batch_size", "1")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        options["include_dashboard"] = False  # nobody looks at it, and it would listen
    _check_reachable(address)
    sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with _on_loopback() if address == "local" else nullcontext():
            ray.init(address=address, **options)
    except SystemExit as stop:  # what Ray's own handler makes of SIGTERM while it starts
        raise KeyboardInterrupt from stop
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UsageError(
            f"--address {address}: no Ray cluster answers there ({describe_error(error)}); "
            "start one with 'ray start --head', or use --address local"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm)  # ray.init puts its own there
    if address == "local" and not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        ray.shutdown()
        raise JobError("the Ray that was started here listens beyond this machine; use --address none")
    return True


def _check_reachable(address: str) -> None:
    """Refuse an address of the form host:port where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--address {address}: nothing answers there ({describe_error(error)}); start a cluster with "
            "'ray start --head', or use --address local"
        ) from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have a Ray that starts within take 127.0.0.1 for its address, as it does on macOS.

    On Linux it would listen on every interface, and it turns a loopback address that it is given into another.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def look_at(address: str) -> str:
    """Connect, say what is there, and leave.

    Raises
    ------
    UsageError
        If no cluster answers.
    """
    joined = connect(address)
    try:
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        total = resources_of(ray.cluster_resources())
        return f"{ray.__version__}; {nodes} node(s), {total.cpus:g} CPUs, {total.gpus:g} GPUs"
    finally:
        if joined:
            ray.shutdown()


def resources_of(ray_resources: Mapping[str, float]) -> Resources:
    """Ray's own table of resources, reduced to what replicas use."""
    return Resources(ray_resources.get("CPU", 0.0), ray_resources.get("GPU", 0.0))


def replica_count(
    wanted: int | None, most: int, nodes: Sequence[Resources], gpus: float, threads: int
) -> int:
    """Replicas to start.

    Parameters
    ----------
    wanted
        None: as many as there is room for, up to ``most``.
    gpus, threads
        What one replica holds; it must fit on one node.

    Raises
    ------
    UsageError
        If the nodes have no room for them: Ray would wait in silence.
    """
    room = sum(int(node.gpus / gpus) if gpus else int(node.cpus / threads) for node in nodes)
    have = Resources(sum(node.cpus for node in nodes), sum(node.gpus for node in nodes))
    if room == 0:
        need = f"--gpus-per-worker {gpus:g}" if gpus else f"--threads {threads}"
        raise UsageError(f"{need}: no machine of this Ray has room for one replica; in all it has {have}")
    if wanted is None:
        return min(room, most)
    if wanted > room:
        raise UsageError(f"--workers {wanted}: this Ray has {have}, room for {room}; ask for {room} or fewer")
    return wanted
