"""Promises of ``dino-ray doctor --address``: what it says of clusters, from facts and from real ones."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from launched import NO_TOKEN, environment, token_in, two_nodes

from dino_ray.doctor import Finding, judge
from dino_ray.engine.ray import gpu_probe
from dino_ray.engine.ray.checkup import ClusterFacts, NodeFacts, Software, _listens_everywhere
from dino_ray.engine.ray.placement import Resources

SOFTWARE = Software("2.60.0", "3.12.12", "0.1.0")
NODES = tuple(NodeFacts(f"10.0.0.{i}", SOFTWARE, True, False, "") for i in (1, 2, 3))
SOUND = ClusterFacts(Resources(8, 2), SOFTWARE, "127.0.0.1:8265", NODES, {})


def findings(facts: ClusterFacts) -> dict[str, Finding]:
    return {finding.what: finding for finding in judge(facts)}


def with_second(**changes: object) -> ClusterFacts:
    first, second, third = NODES
    return replace(SOUND, nodes=(first, replace(second, **changes), third))


def test_a_sound_cluster_has_nothing_bad_and_no_warning() -> None:
    assert {finding.mark for finding in judge(SOUND)} == {"ok  "}
    assert findings(SOUND)["ray"].detail == "2.60.0; 3 node(s), 2 GPUs and 8 CPUs"


def test_a_node_without_tokens_makes_a_cluster_unsound_and_is_named() -> None:
    said = findings(with_second(token=False))["token authentication"]
    assert not said.sound
    assert "10.0.0.2" in said.detail
    assert "10.0.0.1" not in said.detail
    assert "RAY_AUTH_MODE=token" in said.detail


def test_many_nodes_without_tokens_are_one_line() -> None:
    nodes = tuple(replace(NODES[0], address=f"10.0.1.{i}", token=False) for i in range(30))
    said = findings(replace(SOUND, nodes=nodes))["token authentication"].detail
    assert "and 22 more" in said
    assert "\n" not in said


def test_a_dashboard_on_every_interface_is_a_warning_that_says_what_to_do() -> None:
    said = findings(with_second(open_dashboard=True))["dashboard"]
    assert (said.sound, said.mark) == (True, "warn")
    assert "--dashboard-host 127.0.0.1" in said.detail


def test_a_cluster_without_dashboard_says_so() -> None:
    assert findings(replace(SOUND, dashboard=""))["dashboard"] == Finding("dashboard", True, "none")


@pytest.mark.parametrize(
    ("software", "named"),
    [
        (replace(SOFTWARE, ray="2.59.1"), "ray 2.59.1 on 10.0.0.2"),
        (replace(SOFTWARE, python="3.12.1"), "Python 3.12.1 on 10.0.0.2"),
        (replace(SOFTWARE, dino_ray="0.0.9"), "dino_ray 0.0.9 on 10.0.0.2"),
    ],
)
def test_software_that_differs_is_named_with_its_node(software: Software, named: str) -> None:
    said = findings(with_second(software=software))["versions"]
    assert not said.sound
    assert named in said.detail


def test_gpus_that_torch_cannot_use_are_named_with_their_node_and_the_reason() -> None:
    said = findings(with_second(gpu_trouble="torch sees 1 of 2"))["GPUs of the cluster"]
    assert not said.sound
    assert said.detail == "10.0.0.2: torch sees 1 of 2"


def test_a_node_that_does_not_answer_is_a_finding_of_its_own() -> None:
    facts = replace(SOUND, nodes=NODES[:2], silent={"10.0.0.3": "no answer within 90 s"})
    said = findings(facts)
    assert said["node 10.0.0.3"] == Finding("node 10.0.0.3", False, "no answer within 90 s")
    assert "3 node(s)" in said["ray"].detail


@pytest.mark.parametrize(("host", "everywhere"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_a_port_that_listens_on_every_interface_is_told_from_one_on_loopback(
    host: str, everywhere: bool
) -> None:
    with socket.socket() as listener:
        listener.bind((host, 0))
        listener.listen()
        assert _listens_everywhere(listener.getsockname()[1]) is everywhere


def test_the_gpu_probe_answers_in_json_for_a_torch_that_has_no_cuda() -> None:
    import torch

    if torch.version.cuda is not None:
        pytest.skip("this torch is built for CUDA")
    assert "build for CPUs" in gpu_probe.trouble_with(1)


@pytest.mark.gpu
def test_the_gpu_probe_finds_nothing_wrong_with_gpus_that_work() -> None:
    import torch

    assert gpu_probe.trouble_with(torch.cuda.device_count()) == ""
    assert "torch sees" in gpu_probe.trouble_with(torch.cuda.device_count() + 1)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For Ray's sockets, whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="dr-", dir="/tmp") as folder:
        yield Path(folder)


def doctor(address: str, auth: dict[str, str], nodes: int) -> tuple[int, str]:
    """What it says once the cluster has all its nodes."""
    code = (
        "import sys; from dino_ray.doctor import _cluster\n"
        "found = list(_cluster(sys.argv[1]))\n"
        "for f in found: print(f.mark, f'{f.what}: {f.detail}')\n"
        "sys.exit(not all(f.sound for f in found))"
    )
    for _ in range(20):
        done = subprocess.run(
            [sys.executable, "-c", code, address], env=environment(auth), capture_output=True, text=True
        )
        if f"{nodes} node(s)" in done.stdout:
            return done.returncode, done.stdout
        time.sleep(1)
    raise AssertionError(f"{done.stdout}\n{done.stderr}")


@pytest.mark.ray
@pytest.mark.slow
def test_a_real_cluster_with_tokens_is_sound_but_for_gpus_that_are_not_there(short_folder: Path) -> None:
    auth = token_in(short_folder)
    with two_nodes(short_folder, auth, "--num-gpus", "1") as address:
        code, said = doctor(address, auth, 2)
    assert "ok   token authentication: on" in said
    assert "ok   dashboard: 127.0.0.1:" in said
    assert "ok   versions: ray " in said
    assert "BAD  GPUs of the cluster: 127.0.0.3: torch " in said
    assert code == 1


@pytest.mark.ray
@pytest.mark.slow
def test_a_real_cluster_without_tokens_is_unsound(short_folder: Path) -> None:
    with two_nodes(short_folder, NO_TOKEN) as address:
        code, said = doctor(address, NO_TOKEN, 2)
    assert "BAD  token authentication: off on 127.0.0.2, 127.0.0.3" in said
    assert code == 1
