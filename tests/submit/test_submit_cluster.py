"""Promises of submitted jobs, kept on a real head of a cluster that shares nothing with its user but a port."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import dino_ray
from dino_ray.cli import main
from dino_ray.submit import client, record

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.ray

START_S = 60
OPTIONS = ("--scale", "3", "--tile", "256", "--model", "none")
MANY_TILES = ("--scale", "16", "--tile", "64", "--overlap", "32", "--model", "none")


@dataclass(frozen=True)
class Head:
    """A head of a cluster."""

    address: str
    folder: Path
    temporary: Path
    """What the nodes of the cluster take for the folder for temporary files."""

    def left(self) -> list[str]:
        """What jobs have left on it."""
        jobs = [str(path) for path in self.temporary.glob("dino-ray-*/*")]
        links = [str(path) for path in self.folder.glob("session_*/logs/dino-ray/*")]
        return jobs + links


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def started_head(pythonpath: str) -> Iterator[Head]:
    """A head in processes of its own, with a token of its own, on this machine's loopback."""
    folder = Path(tempfile.mkdtemp(prefix="dr-", dir="/tmp"))  # its sockets' names must be short
    port, dashboard, *others = free_ports(6)
    (folder / "token").write_text(secrets.token_hex(16))
    (folder / "tmp").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": pythonpath,
        "TMPDIR": str(folder / "tmp"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    command += [
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        f"--temp-dir={folder}",
        "--disable-usage-stats",
    ]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    command += [
        f"--{name}={number}" for name, number in zip((*names, "ray-client-server-port"), others, strict=True)
    ]
    command += ["--object-store-memory=150000000"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + START_S
        while not answers(address):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.3)
        yield Head(address, folder, folder / "tmp")
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            with_children(process.pid)
            shutil.rmtree(folder, ignore_errors=True)


def with_children(pid: int) -> None:
    """End what a head may have left of itself."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/api/authentication_mode", timeout=1) as answer:
            return bool(json.load(answer)["authentication_mode"] == "token")
    except (OSError, ValueError):
        return False


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with started_head(str(Path(dino_ray.__file__).parents[1])) as running:
        yield running


@pytest.fixture
def home(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's machine: knows the cluster's token, and where its dashboard is."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.folder / "token"))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.address)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    y, x = np.mgrid[:300, :400]
    Image.fromarray(np.stack([x % 251, y % 241, (x * y) % 239], axis=-1).astype(np.uint8)).save("photo.png")
    return tmp_path / "home"


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def detached(*args: object) -> str:
    result = run("submit", *args, "--detach")
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def upscaled_here(*args: object) -> bytes:
    result = run("upscale", *args, "-o", "here.tif", "--address", "none")
    assert result.exit_code == 0, result.output
    return Path("here.tif").read_bytes()


def told(*args: object) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(run("status", *args, "--json").stdout)
    return found


def wait_for(job: str, state: str, stage: str = "") -> None:
    deadline = time.monotonic() + 120
    while ((now := told(job)[0])["state"], now["stage"]) != (state, stage):
        assert time.monotonic() < deadline, f"{job} is {now}, not {state} {stage}"
        time.sleep(0.5)


def files_in(folder: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


def test_a_submitted_image_comes_back_with_the_bytes_of_one_that_was_made_here(
    head: Head, home: Path
) -> None:
    expected = upscaled_here("photo.png", *OPTIONS)
    result = run("submit", "photo.png", "-o", "there.tif", *OPTIONS, "--report", "r.json", "--log", "log")
    assert result.exit_code == 0, result.output
    assert Path("there.tif").read_bytes() == expected
    report = json.loads(Path("r.json").read_text())
    assert (report["source"], report["output"]) == ("photo.png", "there.tif")
    shown = result.stderr.splitlines()
    assert [line for line in ("refining", "writing the output") if line not in shown] == []
    assert "there.tif: 1200 × 900" in shown[-1]
    assert head.left() == []
    assert list((home.parent / "state").rglob("*.json")) == []
    heard = [json.loads(line) for line in Path("log").read_text().splitlines()]
    assert {"ImageStarted", "TilesDone", "CellDone", "ImageDone"} <= {line["event"] for line in heard}
    assert sorted(os.listdir()) == ["here.tif", "log", "photo.png", "r.json", "there.tif"]


def test_a_wrong_or_missing_token_is_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wrong", "missing"):
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
        monkeypatch.setenv("HOME", str(home))
        if name == "wrong":
            monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        else:
            monkeypatch.delenv("RAY_AUTH_TOKEN")
        for command in (["status"], ["submit", "photo.png", "-o", "x.tif"], ["cancel", "job"]):
            result = run(*command)
            assert result.exit_code == 2
            assert "token" in result.stderr
            assert len(result.stderr.strip().splitlines()) == 1


def test_what_is_no_dashboard_is_one_line(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
    result = run("status", "--address", f"http://127.0.0.1:{port}")
    assert result.exit_code == 2
    assert "nothing answers" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_bad_requests_are_refused_before_anything_is_sent(home: Path) -> None:
    before = len(told())
    for args, names in (
        (["nothing.png", "-o", "x.png"], "nothing.png"),
        (["photo.png", "-o", "x.xyz"], "x.xyz"),
        (["photo.png", "-o", "x.png", "--scale", "99"], "--scale"),
        (["photo.png", "-o", "x.png", "--job-dir", "here"], "--job-dir"),
        (["photo.png", "-o", "x.png", "--env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
        (["photo.png", "-o", "x.png", "--address", "auto"], "http://HEAD:8265"),
        (["--follow", "nothing"], "no such job"),
        (["--follow", "../../etc/passwd"], "no job's name"),
    ):
        result = run("submit", *args, *(OPTIONS if "--scale" not in args and "--follow" not in args else ()))
        assert result.exit_code == 2, result.output
        assert names in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert len(told()) == before


@pytest.mark.slow
def test_a_detached_job_is_seen_and_its_result_waits_to_be_fetched(head: Head, home: Path) -> None:
    expected = upscaled_here("photo.png", *OPTIONS)
    job = detached("photo.png", "-o", "there.tif", *OPTIONS)
    wait_for(job, "to fetch")
    assert not Path("there.tif").exists()
    assert job in run("status").stdout
    (status,) = told(job)
    assert (status["image"], status["output"]) == ("photo.png", "there.tif")
    os.mkdir("elsewhere")
    result = run("submit", "--follow", job, "-o", "elsewhere")
    assert result.exit_code == 0, result.output
    assert Path("elsewhere/there.tif").read_bytes() == expected
    assert told(job)[0]["state"] == "done"
    assert head.left() == []


@pytest.mark.slow
def test_a_stranger_must_say_where_a_result_goes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the log of a job says of places here is not believed."""
    job = detached("photo.png", "-o", "there.tif", *OPTIONS)
    remembered = record.find(job)
    assert remembered is not None
    remembered.forget()
    result = run("submit", "--follow", job)
    assert result.exit_code == 2
    assert "-o" in result.stderr
    assert run("submit", "--follow", job, "-o", "mine.tif").exit_code == 0
    assert Path("mine.tif").stat().st_size > 0


@pytest.mark.slow
def test_what_is_cancelled_leaves_nothing(head: Head, home: Path) -> None:
    job = detached("photo.png", "-o", "there.tif", *MANY_TILES)
    wait_for(job, "running", "tiles")
    result = run("cancel", job)
    assert result.exit_code == 0, result.output
    assert f"{job}: stopped; nothing of the job is kept" in result.stderr
    assert told(job)[0]["state"] == "stopped"
    assert head.left() == []
    assert sorted(os.listdir()) == ["photo.png"]
    after = run("submit", "--follow", job)
    assert after.exit_code == 130
    assert "was stopped" in after.stderr


@pytest.mark.slow
def test_a_result_that_nobody_wants_can_be_given_up(head: Head, home: Path) -> None:
    job = detached("photo.png", "-o", "there.tif", *OPTIONS)
    wait_for(job, "to fetch")
    assert "nobody had fetched" in run("cancel", job).stderr
    assert head.left() == []
    after = run("submit", "--follow", job, "-o", "there.tif")
    assert after.exit_code == 2
    assert "its results are gone" in after.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running(home: Path) -> None:
    command = [sys.executable, "-m", "dino_ray", "submit", "photo.png", "-o", "there.tif", *OPTIONS]
    source = str(Path(dino_ray.__file__).parents[1])
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": source}
    ) as process:
        assert process.stderr is not None
        job = process.stderr.readline().split()[-1]
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert f"dino-ray cancel {job}" in rest
    assert run("submit", "--follow", job).exit_code == 0
    assert Path("there.tif").exists()


@pytest.mark.slow
def test_folders_and_several_images_come_back_too(head: Head, home: Path) -> None:
    shutil.copy("photo.png", "second.png")
    Path("broken.png").write_bytes(Path("photo.png").read_bytes()[:20_000])
    names = ["photo.png", "second.png", "broken.png"]
    result = run("submit", *names, "-o", "out/{stem}.ome.zarr", *OPTIONS, "--report", "r.json")
    assert result.exit_code in (1, 2), result.output
    assert "broken.png" in result.stderr
    assert str(head.temporary) not in result.output
    expected = run("upscale", *names, "-o", "here/{stem}.ome.zarr", *OPTIONS, "--address", "none")
    assert expected.exit_code == result.exit_code
    files = {
        str(path.relative_to("here")): path.read_bytes() for path in Path("here").rglob("*") if path.is_file()
    }
    assert {
        str(path.relative_to("out")): path.read_bytes() for path in Path("out").rglob("*") if path.is_file()
    } == files
    assert len(json.loads(Path("r.json").read_text())) == len(names)
    assert head.left() == []


@pytest.mark.slow
def test_files_travel_through_an_object_store(head: Head, home: Path, s3_bucket: str) -> None:
    import s3fs

    expected = upscaled_here("photo.png", *OPTIONS)
    passed = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    options = [*OPTIONS, "--storage", f"{s3_bucket}/jobs", *(f"--env={name}" for name in passed)]
    result = run("submit", "photo.png", "-o", "there.tif", *options, "--report", "r.json")
    assert result.exit_code == 0, result.output
    assert Path("there.tif").read_bytes() == expected
    assert json.loads(Path("r.json").read_text())["output"] == "there.tif"
    assert s3fs.S3FileSystem(use_listings_cache=False).find(s3_bucket.removeprefix("s3://")) == []
    assert head.left() == []
    job = detached("photo.png", "-o", "d.dzi", *options)
    assert run("submit", "--follow", job).exit_code == 0
    assert Path("d_files").is_dir()


@pytest.mark.slow
def test_what_all_see_does_not_travel(head: Head, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = upscaled_here("photo.png", *OPTIONS)
    monkeypatch.setattr(client, "send", None)
    result = run("submit", "photo.png", "-o", "there.tif", *OPTIONS, "--shared-dir", ".")
    assert result.exit_code == 0, result.output
    assert Path("there.tif").read_bytes() == expected
    assert sorted(os.listdir()) == ["here.tif", "photo.png", "there.tif"]


@pytest.mark.slow
def test_a_source_that_only_the_cluster_can_look_at_is_refused_by_it_in_one_line(home: Path) -> None:
    result = run("submit", "http://127.0.0.1:1/photo.png", "-o", "there.tif", *OPTIONS)
    assert result.exit_code in (1, 2)
    said = [line for line in result.stderr.splitlines() if line.startswith("dino-ray:")]
    (line,) = [line for line in said if "trying again" not in line]
    assert line.startswith("dino-ray: http://127.0.0.1:1/photo.png: cannot be read: ")
    assert result.stderr.rstrip().endswith(line)


@pytest.mark.slow
def test_a_cluster_without_dino_ray_is_told_of_and_can_be_sent_its_code(home: Path, tmp_path: Path) -> None:
    """Here it has an older one, that knows no submitted jobs."""
    old = tmp_path / "old" / "dino_ray"
    (old / "submit").mkdir(parents=True)
    (old / "__init__.py").touch()
    # An editable installation finds the parts of a package that another one lacks.
    (old / "submit" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'dino_ray.submit'\")"
    )
    with started_head(str(tmp_path / "old")) as other, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(other.folder / "token"))
        without = run("submit", "photo.png", "-o", "there.tif", *OPTIONS, "--address", other.address)
        assert without.exit_code == 2, without.output
        assert "--ship" in without.stderr
        shipped = run(
            "submit", "photo.png", "-o", "there.tif", *OPTIONS, "--address", other.address, "--ship"
        )
        assert shipped.exit_code == 0, shipped.output
        assert Path("there.tif").exists()
