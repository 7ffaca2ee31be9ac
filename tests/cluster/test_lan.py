"""Promises of the LAN how-to, with two loopback addresses for two boxes: tokens keep strangers out, TLS works."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch_files import CLUSTER
from launched import environment, token_in, two_nodes
from PIL import Image

DINO_RAY = str(Path(sys.executable).with_name("dino-ray"))
QUICK = ["--model", "none", "--tile", "128", "--overlap", "32", "--progress", "none"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """For Ray's sockets, whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="dr-", dir="/tmp") as made:
        yield Path(made)


def upscale(folder: Path, address: str, auth: dict[str, str]) -> subprocess.CompletedProcess[str]:
    Image.effect_noise((160, 120), 60).convert("RGB").save(folder / "photo.png")
    command = [DINO_RAY, "upscale", "photo.png", "-o", "out.png", *QUICK, "--address", address]
    return subprocess.run(
        command, cwd=folder, env=environment(auth), capture_output=True, text=True, timeout=200
    )


def shakes_hands(address: str, node: Path, *, shows_certificate: bool) -> bool:
    """Whether Ray's control service, proven by the authority, lets in a client that may show the node's certificate."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(node / "ca.crt"))
    context.set_alpn_protocols(["h2"])  # what gRPC speaks
    if shows_certificate:
        context.load_cert_chain(node / "node.crt", node / "node.key")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=host) as secured:
                return bool(secured.recv(1))  # a client that is refused is told so only now
        except ssl.SSLError:
            return False


@pytest.mark.ray
@pytest.mark.slow
def test_who_has_the_token_is_served_and_nobody_else(folder: Path) -> None:
    token = token_in(folder)
    (folder / "other").mkdir()
    with two_nodes(folder, token) as address:
        stranger = upscale(folder, address, token_in(folder / "other"))
        assert stranger.returncode == 2
        assert not (folder / "out.png").exists()
        done = upscale(folder, address, token)
    assert done.returncode == 0, done.stderr
    assert Image.open(folder / "out.png").size == (320, 240)


@pytest.mark.ray
@pytest.mark.slow
def test_with_certificates_from_the_script_nodes_talk_by_tls_and_refuse_who_has_none(folder: Path) -> None:
    subprocess.run([CLUSTER / "make-certificates.sh", folder / "tls", "127.0.0.2"], check=True, timeout=60)
    node = folder / "tls" / "127.0.0.2"
    token = token_in(folder)
    tls = {
        **token,
        "RAY_USE_TLS": "1",
        "RAY_TLS_CA_CERT": str(node / "ca.crt"),
        "RAY_TLS_SERVER_CERT": str(node / "node.crt"),
        "RAY_TLS_SERVER_KEY": str(node / "node.key"),
    }
    with two_nodes(folder, tls) as address:
        assert shakes_hands(address, node, shows_certificate=True)
        assert not shakes_hands(address, node, shows_certificate=False)
        done = upscale(folder, address, tls)
    assert done.returncode == 0, done.stderr
    assert Image.open(folder / "out.png").size == (320, 240)
