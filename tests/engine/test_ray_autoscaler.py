"""Promises of the Ray engine on a cluster that grows when it is asked to; its machines are played by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from fakes import make_task
from ray_fakes import run, slow

from dino_ray.engine.protocol import ReplicaPlaced
from dino_ray.engine.ray import RayEngine
from dino_ray.engine.ray.room import replicas_at

HEAD, HEAD_KIND = "f" * 51 + "00000", "ray.head.default"
"""As the player of machines knows them."""

MOST_MACHINES = 3
START_S = 60.0

NOTHING = {"auth", "docker", "file_mounts", "head_node", "worker_nodes"}
NONE = {
    *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
}
CONFIG = {
    "cluster_name": "played",
    "max_workers": MOST_MACHINES,
    "upscaling_speed": 10.0,
    "idle_timeout_minutes": 5,
    "available_node_types": {
        HEAD_KIND: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "machine": {
            "resources": {"CPU": 1},
            "node_config": {},
            "min_workers": 0,
            "max_workers": MOST_MACHINES,
        },
    },
    "head_node_type": HEAD_KIND,
    "file_mounts_sync_continuously": False,
    **{key: {} for key in NOTHING},
    **{key: [] for key in NONE},
}


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a head without CPUs, whose autoscaler brings machines of one CPU each."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="grows", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder, port = Path(name), 20000 + os.getpid() % 9000
        provider = {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": HEAD,
            "gcs_address": f"127.0.0.1:{port}",
            **dict.fromkeys(("disable_node_updaters", "disable_launch_config_check"), True),
        }
        (folder / "config.json").write_text(json.dumps(CONFIG | {"provider": provider}))
        played = {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
            "PYTHONPATH": str(Path(__file__).parent),
        }
        command = [
            *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=0"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", f"--ray-client-server-port={port + 9001}"),
            *("--include-dashboard=false", "--dashboard-agent-listen-port=0", f"--temp-dir={folder}"),
            f"--autoscaling-config={folder}/config.json",
        ]
        with open(folder / "said", "w") as said:
            head = subprocess.Popen(command, env=os.environ | played, stdout=said, stderr=said)
        try:
            end = time.monotonic() + START_S
            while "block forever" not in (folder / "said").read_text():
                assert head.poll() is None, (folder / "said").read_text()
                assert time.monotonic() < end
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            family = [process for process in psutil.process_iter(["cmdline"]) if _is_of(process, folder)]
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            head.wait()


def _is_of(process: psutil.Process, folder: Path) -> bool:
    return any(str(folder) in word for word in process.info["cmdline"] or ())


@pytest.mark.ray
@pytest.mark.slow
def test_machines_that_an_autoscaler_can_bring_are_asked_for_and_used(growing: str, tmp_path: Path) -> None:
    assert replicas_at(growing, 2, MOST_MACHINES, None, 1) == 2
    task = make_task(tmp_path)
    with RayEngine(slow(0.5), address=growing, least=2, most=MOST_MACHINES) as engine:
        assert engine.hopeless is None
        assert "wait for a machine" in engine.describe()
        events, _ = run(engine, task)
        assert engine.replicas == MOST_MACHINES
        assert len({member.node for member in engine.members.values()}) == MOST_MACHINES
    assert len([event for event in events if isinstance(event, ReplicaPlaced)]) == MOST_MACHINES
