"""Real disks that fill up, turn read-only and vanish: an error that says so, nothing corrupt, and then work goes on."""

import json
import shutil
import subprocess
import sys

import pytest

# In a namespace of its own, where anyone may mount and nobody else sees it.
_PRIVATELY = ["unshare", "--mount", "--map-root-user"]
_MOUNT = ["mount", "-t", "tmpfs", "-o", "size=2m", "none"]

_STORY = """
import json, os, subprocess, sys
import numpy as np
from dino_ray import places
from dino_ray.errors import JobError
from dino_ray.raster.canvas import Canvas

mount, told = sys.argv[1], {}

def tell(name, work):
    try:
        told[name] = work()
    except JobError as error:
        told[name] = str(error).replace(mount, "DISK")

def fill():
    for row, column in canvas.missing():
        canvas.write(canvas.cell_rect(row, column), np.full((256, 256, 3), row, np.uint8))

def counted():
    assert all((canvas.read(canvas.cell_rect(r, c)) == r).all() for r, c in canvas.done())
    return len(canvas.done())

def remount(options):
    subprocess.run(["mount", "-o", f"remount,{options}", mount], check=True)

subprocess.run([*sys.argv[2:], mount], check=True)
canvas = Canvas.create(f"{mount}/job/canvas.zarr", 1024, 1024, 3, "uint8", (256, 256))
tell("full", fill)
tell("full, manifest", lambda: places.write_bytes_whole(f"{mount}/job/manifest", bytes(1 << 20)))
tell("full, done", counted)
told["full, left"] = len([name for name in os.listdir(canvas.folder) if name.endswith("partial")])
remount("size=20m")
tell("resumed", fill)
tell("resumed, done", counted)
remount("ro")
tell("read-only", lambda: canvas.write(canvas.cell_rect(0, 0), np.zeros((256, 256, 3), np.uint8)))
tell("read-only, create", lambda: Canvas.create(f"{mount}/other", 64, 64, 3, "uint8", (32, 32)))
tell("read-only, done", counted)
subprocess.run(["umount", mount], check=True)
tell("gone", lambda: canvas.write(canvas.cell_rect(0, 0), np.zeros((256, 256, 3), np.uint8)))
tell("gone, done", counted)
tell("gone, sha256", canvas.sha256)
told["gone, left"] = os.listdir(mount)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    mount = tmp_path_factory.mktemp("disk")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*_PRIVATELY, *_MOUNT, mount], check=False).returncode
    ):
        pytest.skip("may not mount a disk here")
    made = subprocess.run(
        [*_PRIVATELY, sys.executable, "-c", _STORY, mount, *_MOUNT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def test_a_full_disk_is_named_and_what_was_done_stays_done(story):
    where = "DISK/job/canvas.zarr"
    assert story["full"] == f"{where}: cannot be written: the disk is full; free some room, then resume"
    assert story["full, manifest"].startswith("DISK/job/manifest: cannot be written: the disk is full")
    assert 8 <= story["full, done"] <= 10  # cells of 192 KiB on 2 MiB
    assert story["full, left"] == 0


def test_with_more_room_the_rest_is_done(story):
    assert story["resumed"] is None
    assert story["resumed, done"] == 16


def test_a_disk_that_turns_read_only_is_named_and_can_still_be_read(story):
    says = "cannot be written: its disk is read-only; make it writable or name another folder, then resume"
    assert story["read-only"] == f"DISK/job/canvas.zarr: {says}"
    assert story["read-only, create"] == f"DISK/other: {says}"
    assert story["read-only, done"] == 16


def test_a_mount_that_vanished_is_named_and_nothing_is_written_where_it_was(story):
    for work in ("gone", "gone, done", "gone, sha256"):
        assert story[work].startswith("DISK/job/canvas.zarr: ")
        assert story[work].endswith("bring it back (is its disk mounted?), then resume")
    assert story["gone, left"] == []
