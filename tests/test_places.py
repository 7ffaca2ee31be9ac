"""A job's files can lie on a disk or in an object store, are there whole or not at all, and failures are explained."""

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import uuid

import pytest

from dino_ray import places
from dino_ray.errors import JobError, UsageError


@pytest.fixture(params=["disk", "memory", "s3"])
def folder(request, tmp_path):
    """An empty folder, on each kind of storage."""
    if request.param == "disk":
        place = places.join(tmp_path, "ein Ordner 100%")
        places.make_folder(place)
        return place
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return places.join(request.getfixturevalue("s3_bucket"), "job")


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("s3://bucket/key", True),
        ("memory://x", True),
        ("https://host/x", True),
        ("/tmp/x", False),
        ("x", False),
        (r"C:\pictures", False),
        ("a:b", False),
        ("a::b", False),
        ("simplecache::s3://bucket/key", True),
        ("file:///tmp/x", False),
        ("", False),
    ],
)
def test_addresses_are_told_from_paths(place, url):
    assert places.is_url(place) == url


def test_file_addresses_are_paths(tmp_path):
    place = (tmp_path / "a b").as_uri()
    places.write_bytes_whole(place, b"1")
    assert (tmp_path / "a b").read_bytes() == b"1"
    assert places.join(place, "c") == str(tmp_path / "a b" / "c")


def test_files_are_written_listed_read_and_removed(folder):
    one = places.join(folder, "one")
    assert not places.exists(one)
    places.write_bytes_whole(one, b"old")
    places.write_bytes_whole(one, bytearray(b"newer"))
    places.write_bytes_whole(places.join(folder, "empty"), b"", durable=False)
    assert places.exists(one)
    assert places.exists(folder)
    assert places.read_bytes(one) == b"newer"
    assert places.list_files(folder) == {"one": 5, "empty": 0}
    places.remove(one)
    places.remove(one)
    assert places.list_files(folder) == {"empty": 0}


def test_a_listing_has_what_lies_right_in_the_folder(folder):
    places.make_folder(places.join(folder, "sub"))
    places.write_bytes_whole(places.join(folder, "sub", "deep"), b"x")
    places.write_bytes_whole(places.join(folder, "top"), b"xy")
    assert places.list_files(folder) == {"top": 2}
    assert places.list_files(places.join(folder, "none")) == {}


def test_a_tree_is_removed_with_all_in_it_and_nothing_beside_it(folder):
    for name in ("tree", "tree2"):
        places.make_folder(places.join(folder, name))
        places.write_bytes_whole(places.join(folder, name, "file"), b"x")
    places.remove_tree(places.join(folder, "tree"))
    places.remove_tree(places.join(folder, "tree"))
    assert not places.exists(places.join(folder, "tree"))
    assert places.read_bytes(places.join(folder, "tree2", "file")) == b"x"


@pytest.mark.parametrize("place", ["/", "s3://bucket", "s3://bucket/", "memory://"])
def test_whole_disks_and_buckets_are_not_removed(place, s3_server):
    with pytest.raises(ValueError, match="whole"):
        places.remove_tree(place)


def test_what_is_not_there_is_one_line_that_says_so(folder):
    missing = places.join(folder, "missing")
    with pytest.raises(
        JobError, match=r"missing: cannot be read: .*(is not there|no such file).*; .*resume$"
    ):
        places.read_bytes(missing)


def test_written_to_a_folder_that_vanished(tmp_path):
    with pytest.raises(JobError, match="cannot be written: it is not there; bring it back"):
        places.write_bytes_whole(tmp_path / "gone" / "file", b"x")
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "the disk is full; free some room, then resume"),
        (errno.EDQUOT, "the disk quota is used up; free some room, then resume"),
        (errno.EROFS, "read-only; make it writable"),
        (errno.EACCES, "permission is denied; change its permissions"),
        (errno.ESTALE, "its disk or mount is gone; bring it back, then resume"),
        (errno.EIO, "its disk reports errors; check the disk, then resume"),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "close", "replace", "open"])
def test_a_write_that_fails_at_any_step_changes_nothing_and_says_why(tmp_path, monkeypatch, call, code, says):
    place = tmp_path / "file"
    places.write_bytes_whole(place, b"old")
    real_close = os.close

    def fails(*args, **kwargs):
        if call == "close":
            real_close(*args)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(
            JobError, match=re.escape(f"{place}: cannot be written: ") + ".*" + re.escape(says)
        ):
            places.write_bytes_whole(place, b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert place.read_bytes() == b"old"


def test_a_disk_that_takes_a_part_at_a_time_gets_all_of_it(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: real(handle, content[:7]))
    places.write_bytes_whole(tmp_path / "file", b"0123456789" * 3)
    assert (tmp_path / "file").read_bytes() == b"0123456789" * 3


_LIMITED = """
import resource, signal, sys
from dino_ray import places
from dino_ray.errors import JobError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    places.write_bytes_whole(sys.argv[1], bytes(5000))
except JobError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limits on the size of files")
def test_no_room_for_the_rest_of_a_file_leaves_nothing(tmp_path):
    made = subprocess.run(
        [sys.executable, "-c", _LIMITED, tmp_path / "file"], capture_output=True, text=True, check=True
    )
    assert "cannot be written: files may not grow this large" in made.stdout
    assert os.listdir(tmp_path) == []


def _write_for_ever(place, content, started):
    while True:
        for byte in (b"a", b"b"):
            places.write_bytes_whole(place, byte * len(content), durable=False)
            started.set()


@pytest.mark.parametrize("storage", ["disk", "s3"])
def test_a_writer_that_is_killed_leaves_a_whole_file(request, tmp_path, storage):
    folder = str(tmp_path) if storage == "disk" else f"{request.getfixturevalue('s3_bucket')}/job"
    place = places.join(folder, "file")
    spawn = multiprocessing.get_context("spawn")
    for _ in range(2):
        started = spawn.Event()
        writer = spawn.Process(target=_write_for_ever, args=(place, bytes(1 << 20), started))
        writer.start()
        assert started.wait(60)
        time.sleep(0.02)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert places.read_bytes(place) in (b"a" * (1 << 20), b"b" * (1 << 20))
    places.remove_leftovers(folder)
    assert places.list_files(folder) == {"file": 1 << 20}


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    for name in (".file.0123456789abcdef.partial", "c.0.1.0123.partial", "file", "partial"):
        (tmp_path / name).write_bytes(b"x")
    assert places.remove_leftovers(tmp_path) == 2
    assert sorted(os.listdir(tmp_path)) == ["file", "partial"]


def test_new_files_have_the_permissions_that_new_files_have(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    places.write_bytes_whole(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_free_room_is_known_for_folders_that_are_still_to_be_made(tmp_path):
    assert places.free_bytes(tmp_path / "not" / "yet") > 0
    assert places.free_bytes("s3://bucket/x") is None


def test_a_bucket_that_is_gone(s3_bucket):
    with pytest.raises(
        JobError, match="cannot be written: there is no such file or bucket; check the address"
    ):
        places.write_bytes_whole(f"{s3_bucket}-gone/job/file", b"x")


class AccessDeniedError(Exception):
    """As libraries of object stores define them: no OSError."""


class EndpointConnectionError(Exception):
    pass


class NoCredentialsError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError("Access Denied"), "access is denied; check the credentials"),
        (
            NoCredentialsError("Unable to locate credentials"),
            "no credentials were found that open it; set them",
        ),
        (
            EndpointConnectionError("http://x"),
            "its server can't be reached; check the address and the network",
        ),
        (TimeoutError(), "its server can't be reached"),
        (NotImplementedError(), ".* for reading only; name a folder or a bucket"),
        (
            OSError(errno.EREMOTEIO, "Internal Error\nsecond line"),
            r"OSError \(.*\); see to that, then resume",
        ),
    ],
)
def test_what_object_stores_raise_is_one_line_too(monkeypatch, error, says):
    class Breaks:
        def pipe_file(self, path, content):
            raise error

    monkeypatch.setattr(places, "filesystem", lambda place: (Breaks(), "x"))
    with pytest.raises(JobError, match="^gs://b/x: cannot be written: " + says) as told:
        places.write_bytes_whole("gs://b/x", b"")
    assert "\n" not in str(told.value)


def test_an_unreachable_store_says_so(monkeypatch, s3_server):
    import s3fs

    # Port 9 answers nobody; botocore's own retries would only make the test wait.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(JobError, match="s3://bucket/x: cannot be read: its server can't be reached"):
            places.read_bytes("s3://bucket/x")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_whose_package_is_missing_names_the_extra():
    import fsspec

    fsspec.register_implementation(
        "nowhere", "no_such_package.Files", errtxt="Install no_such_package", clobber=True
    )
    with pytest.raises(UsageError, match=re.escape("pip install 'dino-ray[remote]'")):
        places.exists("nowhere://bucket/x")


def test_an_address_of_no_known_kind_is_refused():
    with pytest.raises(UsageError, match="foo://bar: is an address of no known kind"):
        places.exists("foo://bar")
