"""Promises of files that go through the dashboard's port: whole or not there, in bounded memory, nowhere else."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dino_ray.errors import JobError, UsageError
from dino_ray.submit import parcels, ship
from dino_ray.submit.parcels import Facts, fetch, pack, receive, send


class Shelf:
    """The cluster's store, in this process."""

    def __init__(self) -> None:
        self.packages: dict[str, bytes] = {}
        self.most = 0
        self.lose: str | None = None

    def put(self, name: str, content: bytes) -> None:
        if name != self.lose:
            self.packages[name] = content
        self.most = max(self.most, len(self.packages))

    def holds(self, name: str) -> bool:
        return name in self.packages

    def take(self, name: str) -> bytes | None:
        return self.packages.pop(name, None)


def named(part: str | int) -> str:
    return f"job.{part}"


def nothing() -> bool:
    return False


def through(shelf: Shelf, source: Path, target: Path, size: int | None = None) -> None:
    """Send and receive at once."""
    size = source.stat().st_size if size is None else size
    failed: list[BaseException] = []

    def sending() -> None:
        try:
            send(str(source), size, shelf, named, check=nothing)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=sending)
    thread.start()
    try:
        receive(target, size, shelf, named)
    finally:
        thread.join()
    if failed:
        raise failed[0]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "PART", 1000)
    monkeypatch.setattr(parcels, "POLL_S", 0.001)
    monkeypatch.setattr(parcels, "LONGEST_POLL_S", 0.2)
    monkeypatch.setattr(parcels, "PATIENCE_S", 0.5)


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 12_345])
def test_a_file_arrives_as_it_was_and_the_store_is_empty(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(os.urandom(size))
    shelf = Shelf()
    through(shelf, tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert not shelf.packages
    assert shelf.most <= parcels.WINDOW
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_no_more_than_the_window_is_ever_in_the_store(tmp_path: Path) -> None:
    """Also if nobody takes anything out: then sending ends with a reason."""
    (tmp_path / "a").write_bytes(bytes(20_000))
    shelf = Shelf()
    with pytest.raises(JobError, match="takes none"):
        send(str(tmp_path / "a"), 20_000, shelf, named, check=nothing)
    assert shelf.most == parcels.WINDOW


def test_a_receiver_that_is_still_starting_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(20_000))
    asked = []

    def still_starting() -> bool:
        asked.append(True)
        if len(asked) > 3:
            raise KeyError("over")
        return True

    with pytest.raises(KeyError):
        send(str(tmp_path / "a"), 20_000, Shelf(), named, check=still_starting)


def test_what_was_changed_on_the_way_is_not_kept(tmp_path: Path) -> None:
    class Forger(Shelf):
        def take(self, name: str) -> bytes | None:
            content = super().take(name)
            return b"x" * len(content) if content and name == "job.1" else content

    (tmp_path / "a").write_bytes(os.urandom(3000))
    with pytest.raises(JobError, match="as it was sent"):
        through(Forger(), tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_changes_while_it_is_sent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(3000))
    with pytest.raises(JobError, match="changed"):
        send(str(tmp_path / "a"), 2500, Shelf(), named, check=nothing)
    with pytest.raises(JobError, match="changed"):
        send(str(tmp_path / "a"), 3500, Shelf(), named, check=nothing)


def test_a_sender_that_goes_silent_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="went silent"):
        receive(tmp_path / "b", 3000, Shelf(), named)
    assert os.listdir(tmp_path) == []


# ---- down


def facts_of(content: bytes) -> Facts:
    return Facts(len(content), hashlib.sha256(content).hexdigest())


def blocks(content: bytes) -> Iterator[bytes]:
    yield content[:5]
    yield content[5:]


def test_a_result_takes_the_place_of_an_older_one_only_if_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"older")
    for wrong in (b"a resul", b"a Result", b"a result!"):
        with pytest.raises(JobError, match="did not arrive"):
            fetch(blocks(wrong), facts_of(b"a result"), target, packed=False)
        assert target.read_bytes() == b"older"
    fetch(blocks(b"a result"), facts_of(b"a result"), target, packed=False)
    assert target.read_bytes() == b"a result"
    assert os.listdir(tmp_path) == ["out.png"]


def fetch_archive(target: Path, archive: bytes) -> None:
    fetch(blocks(archive), facts_of(archive), target, packed=True)


def test_a_result_of_several_files_arrives_with_all_of_them(tmp_path: Path) -> None:
    made, here = tmp_path / "made", tmp_path / "here"
    (made / "a_files" / "0").mkdir(parents=True)
    (made / "a_files" / "0" / "0_0.png").write_bytes(b"tile")
    (made / "a.dzi").write_bytes(b"index")
    pack(made, ["a.dzi", "a_files"], tmp_path / "a.tar")
    here.mkdir()
    (here / "a_files").mkdir()
    (here / "a_files" / "older").touch()
    fetch_archive(here / "a.dzi", (tmp_path / "a.tar").read_bytes())
    found = sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.is_file())
    assert found == ["a.dzi", "a_files/0/0_0.png"]


def tar_of(add: Callable[[tarfile.TarFile], None]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        index = tarfile.TarInfo("a.dzi")
        tar.addfile(index, io.BytesIO(b""))
        add(tar)
    return packed.getvalue()


def member(name: str, **facts: object) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        for key, value in facts.items():
            setattr(info, key, value)
        tar.addfile(info, io.BytesIO(b""))

    return add


@pytest.mark.parametrize(
    "escape",
    [
        member("../evil"),
        member("/tmp/dino-ray-evil"),
        member("a_link", type=tarfile.SYMTYPE, linkname="/etc"),
        member("a_device", type=tarfile.CHRTYPE),
        member("evil.sh"),
    ],
)
def test_nothing_is_unpacked_but_the_result(
    tmp_path: Path, escape: Callable[[tarfile.TarFile], None]
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    with pytest.raises(JobError):
        fetch_archive(here / "a.dzi", tar_of(escape))
    assert os.listdir(tmp_path) == ["here"]
    assert os.listdir(here) == []
    assert not os.path.exists("/tmp/dino-ray-evil")


# ---- code


def make_package(folder: Path) -> Path:
    root = folder / "dino_ray"
    (root / "sub" / "__pycache__").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "sub" / "weights.safetensors").write_bytes(bytes(100))
    for stranger in (
        ".env",
        ".git/config",
        "sub/__pycache__/a.py",
        "id_rsa",
        "key.pem",
        ".venv/lib.py",
        "big.bin",
    ):
        path = root / stranger
        path.parent.mkdir(exist_ok=True)
        path.write_text("secret")
    (root / "linked.py").symlink_to("/etc/passwd")
    return root


def test_the_package_that_is_sent_holds_code_and_bundled_weights_alone(tmp_path: Path) -> None:
    _, body = ship.package(make_package(tmp_path))
    names = zipfile.ZipFile(io.BytesIO(body)).namelist()
    assert names == ["dino_ray/__init__.py", "dino_ray/sub/weights.safetensors"]


def test_the_same_code_makes_the_same_package(tmp_path: Path) -> None:
    root = make_package(tmp_path)
    name, body = ship.package(root)
    os.utime(root / "__init__.py", (1, 1))
    assert ship.package(root) == (name, body)
    (root / "__init__.py").write_text("1")
    assert ship.package(root)[0] != name


def test_a_package_that_has_grown_names_its_largest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "MOST_BYTES", 50)
    with pytest.raises(UsageError, match=r"weights\.safetensors"):
        ship.package(make_package(tmp_path))


def test_the_real_package_can_be_sent() -> None:
    _, body = ship.package()
    names = zipfile.ZipFile(io.BytesIO(body)).namelist()
    assert "dino_ray/submit/driver.py" in names
    assert any(name.endswith(".safetensors") for name in names)
    assert len(body) < ship.MOST_BYTES
