"""A Ray cluster: joined or started, looked at, left."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import ray
from ray._private import worker as ray_worker

from dino_ray.engine.ray.admission import admitted
from dino_ray.engine.ray.nodes import resources_of
from dino_ray.engine.ray.placement import Resources
from dino_ray.engine.ray.private import SessionFolder, Token, TokenMode, loopback, session_folder, undisturbed
from dino_ray.errors import JobError, UsageError, describe_error

__all__ = ["Resources", "connect", "leave", "look_at", "resources_of"]

log = logging.getLogger(__name__)

REACH_S = 5.0
"""A cluster that takes longer to accept a connection is of no use."""

FOREIGN_PROTOCOLS = ("ray://", "http://", "https://")
"""Of Ray's client and dashboard, through which no driver of ours works: its disk must be a node's."""

_own: tuple[TokenMode, SessionFolder | None] | None = None
"""What is to be undone when the Ray is left; a process is connected to one Ray at a time."""


def connect(address: str) -> bool:
    """Join the Ray at ``address``, or start one here if it is ``local``.

    Returns
    -------
    bool
        Whether that was needed, so that ``leave`` has to undo it: a process that is connected already stays so.

    Raises
    ------
    UsageError
        If no cluster answers, or it asks for a token that is not here.
    JobError
        If a Ray that was started here can be reached from outside.
    """
    global _own
    if ray.is_initialized():
        return False
    _refuse_foreign(address)
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
        folder = session_folder()
        if folder is not None:
            options["_temp_dir"] = str(folder.path)
        _own = Token(), folder
    ray_worker.print_to_stdstream = _note
    try:
        _check_reachable(address)
        if (switched := admitted(address)) is not None:
            _own = switched, None
        _init(address, options)
        _check_private(address)
    except BaseException:
        leave()
        raise
    return True


def _init(address: str, options: Mapping[str, Any]) -> None:
    sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with loopback() if address == "local" else nullcontext():
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


def leave() -> None:
    """Undo ``connect``: leave the cluster, or end the Ray that was started here with all that it left."""
    global _own
    with undisturbed():
        try:
            ray.shutdown()
        finally:
            if _own is not None:
                (token, folder), _own = _own, None
                token.withdraw()
                if folder is not None:
                    folder.remove()


def _check_private(address: str) -> None:
    if address == "local" and not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        raise JobError("the Ray that was started here listens beyond this machine; use --address none")


def _refuse_foreign(address: str) -> None:
    if address.startswith(FOREIGN_PROTOCOLS):
        raise UsageError(
            f"--address {address}: the command has to run on a machine of the cluster, and the address is host:6379 or "
            "auto; from elsewhere use 'dino-ray submit'"
        )


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


def _note(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    """In place of Ray's own: that prints on stdout what befalls its workers, of which our events tell."""
    for line in data["lines"]:
        log.debug("%s: %s", data["pid"], line)


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
            leave()
