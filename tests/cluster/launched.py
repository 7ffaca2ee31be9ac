"""Clusters of several nodes on this machine's loopback addresses, started by the command that people use."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))
START_S = 90.0
STOP_S = 40.0
NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}


def token_in(folder: Path) -> dict[str, str]:
    """A new token in a file of its owner's, and the environment that leads Ray to it."""
    path = folder / "auth_token"
    path.write_text(secrets.token_hex(32))
    path.chmod(0o600)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def environment(auth: Mapping[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**clean, **auth, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


@contextmanager
def ray_node(folder: Path, auth: Mapping[str, str], *options: str) -> Iterator[None]:
    """``ray start --block`` with these options; it ends, with all that it started, when the block does."""
    command = [RAY, "start", "--block", "--num-cpus", "1", "--object-store-memory", "100000000", *options]
    with (folder / "ray-start.log").open("ab") as log:
        node = subprocess.Popen(command, env=environment(auth), stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        node.terminate()
        try:
            node.wait(STOP_S)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()


@contextmanager
def two_nodes(folder: Path, auth: Mapping[str, str], *second: str) -> Iterator[str]:
    """A head on 127.0.0.2 and a node on 127.0.0.3, the latter with more options; the head's address."""
    address = f"127.0.0.2:{free_port()}"
    head = ("--head", "--node-ip-address", "127.0.0.2", "--port", address.rpartition(":")[2])
    ports = ("--dashboard-port", str(free_port()), "--ray-client-server-port", str(free_port()))
    joins = ("--address", address, "--node-ip-address", "127.0.0.3", *second)
    with ExitStack() as stack:
        stack.enter_context(ray_node(folder, auth, *head, *ports, "--temp-dir", f"{folder}/a"))
        _wait_for(address, folder)
        stack.enter_context(ray_node(folder, auth, *joins, "--temp-dir", f"{folder}/b"))
        yield address


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(address: str, folder: Path) -> None:
    host, _, port = address.rpartition(":")
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError((folder / "ray-start.log").read_text())
