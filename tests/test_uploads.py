"""Promises of what is sent to an address: whole under its name, or not there, whatever kind of store it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from dino_ray import places, uploads
from dino_ray.errors import JobError


class Slow(LocalFileSystem):
    """A store as SFTP servers are: a file shows under its name while it comes."""

    protocol = "slow"
    names: list[str] = []  # noqa: RUF012
    breaks = False
    loses = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(super()._strip_protocol(str(path).removeprefix("slow://")))

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.names.append(os.path.basename(rpath))
        body = Path(lpath).read_bytes()
        Path(rpath).write_bytes(body[: len(body) // 2])
        if self.breaks:
            raise ConnectionError("the network went")
        if not self.loses:
            Path(rpath).write_bytes(body)


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    fsspec.register_implementation("slow", Slow, clobber=True)
    monkeypatch.setattr(Slow, "names", [])
    (tmp_path / "there").mkdir()
    yield f"slow://{tmp_path}/there"
    Slow.clear_instance_cache()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "out.tif").write_bytes(bytes(range(256)) * 100)
    return tmp_path / "out.tif"


def test_where_files_show_while_they_come_they_come_under_another_name(
    slow: str, file: Path, tmp_path: Path
) -> None:
    uploads.put_file(file, f"{slow}/new/out.tif")
    assert (tmp_path / "there/new/out.tif").read_bytes() == file.read_bytes()
    assert len(Slow.names) == 1
    assert Slow.names != ["out.tif"]
    assert os.listdir(tmp_path / "there/new") == ["out.tif"]


def test_an_upload_that_breaks_leaves_the_older_file_and_no_part_of_the_new(
    slow: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there/out.tif").write_bytes(b"older")
    monkeypatch.setattr(Slow, "breaks", True)
    with pytest.raises(JobError, match="cannot be written"):
        uploads.put_file(file, f"{slow}/out.tif")
    assert (tmp_path / "there/out.tif").read_bytes() == b"older"
    assert os.listdir(tmp_path / "there") == ["out.tif"]


def test_a_folders_index_goes_first_and_comes_last(slow: str, tmp_path: Path) -> None:
    for name in ("0/a", "0/b", "1/a", "index"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_text(name)
        (tmp_path / "there/folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there/folder" / name).with_suffix(".old").write_text("an older one's")
    index = (str(tmp_path / "folder/index"), f"{slow}/folder/index")
    uploads.put_folder(tmp_path / "folder", f"{slow}/folder", index)
    there = tmp_path / "there/folder"
    assert sorted(str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()) == [
        "0/a",
        "0/b",
        "1/a",
        "index",
    ]
    assert "index" in Slow.names[-1]
    assert sum("index" in name for name in Slow.names) == 1


def test_large_files_go_to_s3_in_parts_and_arrive_whole(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_PART_BYTES", 5 * 2**20)
    body = os.urandom(2**20) * 17
    (tmp_path / "out.tif").write_bytes(body)
    uploads.put_file(tmp_path / "out.tif", f"{s3_bucket}/out.tif")
    assert places.read_bytes(f"{s3_bucket}/out.tif") == body
    assert fsspec.filesystem("s3").info(f"{s3_bucket}/out.tif")["ETag"].endswith('-4"')  # of as many parts


def test_a_store_that_loses_bytes_is_found_out(
    slow: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slow, "loses", True)
    with pytest.raises(JobError, match="has 12,800 bytes there and 25,600 here"):
        uploads.put_file(file, f"{slow}/out.tif")
    assert not os.listdir(tmp_path / "there")


def test_looking_whether_one_may_write_leaves_nothing(s3_bucket: str) -> None:
    uploads.check_writable(f"{s3_bucket}/deep/out.tif")
    assert places.list_names(s3_bucket) == set()
    with pytest.raises(JobError, match="there is no such file or bucket"):
        uploads.check_writable("s3://no-such-bucket-here/out.tif")


def test_messages_hold_no_passwords(file: Path) -> None:
    with pytest.raises(Exception, match=r"host/out\.tif") as refused:
        uploads.put_file(file, "nothing://me:secret@host/out.tif")
    assert "secret" not in str(refused.value)
