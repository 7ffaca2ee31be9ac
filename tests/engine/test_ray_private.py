"""Promises of a Ray that a job starts: nobody else can use it, and nothing of it outlives the job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import psutil
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from dino_ray.engine.ray.cluster import connect
from dino_ray.engine.ray.private import LOCK, PREFIX, SessionFolder, undisturbed
from dino_ray.errors import UsageError

ENDING_S = 90.0
"""Ray's agents, which hold no memory to speak of, look for their dead head for a minute before they end."""

HOLD_A_RAY = """
import os, sys, time
from dino_ray.engine.ray.cluster import connect, leave
import ray
connect("local")
ray.get(ray.remote(lambda: 1).remote())
print(ray._private.worker.global_worker.gcs_client.address, flush=True)
try:
    sys.stdin.read()
finally:
    leave()
    print(sorted(name for name in os.environ if name.startswith("RAY_AUTH")), flush=True)
"""


class Holder:
    """A process with a Ray of its own, in a folder for temporary files of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD_A_RAY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean | {"TMPDIR": str(folder), "HOME": str(folder)} | environment,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def alive(self) -> list[psutil.Process]:
        return psutil.wait_procs(self.family, timeout=ENDING_S)[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Short enough for sockets."""
    short = Path("/tmp") / f"t{os.getpid()}"
    short.mkdir()
    yield short  # type: ignore[misc]
    subprocess.run(["rm", "-rf", str(short)], check=True)


def ask(address: str, *metadata: tuple[str, str]) -> grpc.StatusCode:
    """The answer of a Ray's head to a question of a client."""
    with grpc.insecure_channel(address) as channel:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            stub.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), metadata=metadata, timeout=ENDING_S)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.ray
def test_who_has_no_token_is_refused_and_the_end_leaves_nothing(folder: Path) -> None:
    holder = Holder(folder)
    assert ask(holder.address) == grpc.StatusCode.UNAUTHENTICATED
    assert ask(holder.address, ("authorization", f"Bearer {'0' * 64}")) == grpc.StatusCode.UNAUTHENTICATED
    assert [path.name for path in folder.iterdir() if not path.name.startswith(PREFIX)] == []
    said, complaints = holder.process.communicate("", timeout=60)
    assert holder.process.returncode == 0
    assert said.strip() == "[]"
    assert complaints == ""
    assert not holder.alive()
    assert list(folder.iterdir()) == []


@pytest.mark.ray
@pytest.mark.slow
def test_nothing_outlives_a_killed_driver_but_a_folder_that_the_next_one_removes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Holder(folder)
    in_memory = set(Path("/dev/shm").glob("*"))
    holder.process.send_signal(signal.SIGKILL)
    holder.process.wait()
    assert not holder.alive()
    assert not [path for path in in_memory & set(Path("/dev/shm").glob("*")) if "plasma" in path.name]
    (left,) = folder.iterdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    SessionFolder().remove()
    assert not left.exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_folder_that_the_user_named_for_ray_is_used_and_stays(folder: Path) -> None:
    named = folder / "named"
    named.mkdir()
    holder = Holder(folder, RAY_TMPDIR=str(named))
    holder.process.communicate("", timeout=60)
    assert [path.name for path in folder.iterdir()] == ["named"]
    assert list((named / "ray").glob("session_2*"))


def test_a_folder_in_use_and_what_is_not_ours_are_not_swept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    used = SessionFolder()
    (folder / f"{PREFIX}letters").mkdir()
    (folder / f"{PREFIX}left").mkdir()
    (folder / f"{PREFIX}left" / LOCK).touch()
    SessionFolder().remove()
    assert sorted(path.name for path in folder.iterdir()) == sorted([used.path.name, f"{PREFIX}letters"])
    used.remove()
    assert [path.name for path in folder.iterdir()] == [f"{PREFIX}letters"]


TOKEN = """
import os
from dino_ray.engine.ray.private import Token
token = Token()
assert os.environ["RAY_AUTH_MODE"] == "token"
assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
token.withdraw()
assert os.environ["RAY_AUTH_MODE"] == "disabled"
assert "RAY_AUTH_TOKEN" not in os.environ
"""


def test_a_token_is_in_the_environment_only_while_it_is_needed() -> None:
    # In a process of its own: Ray remembers what it reads there, and other tests' Rays would be told otherwise.
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    subprocess.run([sys.executable, "-c", TOKEN], env=here | {"RAY_AUTH_MODE": "disabled"}, check=True)


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_addresses_that_no_driver_can_join_are_refused_with_the_way_that_goes(address: str) -> None:
    with pytest.raises(UsageError, match="dino-ray submit"):
        connect(address)


def test_clearing_up_is_through_before_a_signal_ends_the_process() -> None:
    through = False

    def clear_up() -> None:
        nonlocal through
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            through = True

    with pytest.raises(KeyboardInterrupt):
        clear_up()
    assert through
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
