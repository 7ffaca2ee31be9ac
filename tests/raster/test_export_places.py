"""An output is there whole or not at all, and what is not ours to replace is left alone."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from exported import noise, painted, source_of

from dino_ray.errors import JobError, UsageError
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export import ExportOptions, check_output, export, place
from dino_ray.raster.export.place import beside

OUTPUTS = [
    ("out.png", {}),
    ("out.jpg", {}),
    ("out.webp", {}),
    ("out.tif", {"compression": "none", "pyramid": True}),
    ("out.dzi", {}),
    ("out.ome.zarr", {}),
]
every_output = pytest.mark.parametrize(("name", "options"), OUTPUTS, ids=[name for name, _ in OUTPUTS])


def contents(folder):
    return {
        os.path.relpath(os.path.join(parent, name), folder): open(os.path.join(parent, name), "rb").read()
        for parent, _, names in os.walk(folder)
        for name in names
    }


class Breaks(Canvas):
    """A canvas whose lower part cannot be read."""

    def read(self, rect):
        if rect.y1 > self.height // 2:
            raise JobError("the mount is gone")
        return super().read(rect)


class Slow(Canvas):
    """A canvas that takes for ever, and counts how often it is read."""

    reads: list[object] = []  # noqa: RUF012

    def read(self, rect):
        self.reads.append(rect)
        time.sleep(0.3)
        return super().read(rect)


def as_kind(kind, canvas):
    return kind(canvas.folder, canvas.width, canvas.height, canvas.bands, canvas.dtype, canvas.cell)


@pytest.fixture
def old(tmp_path, request):
    """A canvas, and older outputs of every kind that must be there, unchanged, in the end."""
    small = painted(tmp_path / "small", np.zeros((90, 90, 3), np.uint8))
    for name, _ in OUTPUTS:
        export(small, source_of(small), tmp_path / name)
    # High enough for several blocks and bands, of noise, so that no limit on a file's size is met too early.
    canvas = painted(tmp_path / "canvas", noise(3, "uint8", 2500, 400), cell=(64, 400))
    before = contents(tmp_path)
    yield canvas
    assert contents(tmp_path) == before
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".dino-ray")]


@every_output
def test_an_export_that_fails_midway_leaves_the_old_output(tmp_path, old, name, options):
    with pytest.raises(JobError, match="the mount is gone"):
        export(as_kind(Breaks, old), source_of(old), tmp_path / name, ExportOptions(**options))


@every_output
def test_a_full_disk_leaves_the_old_output(tmp_path, old, name, options):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(JobError, match="cannot be written"):
            export(old, source_of(old), tmp_path / name, ExportOptions(**options))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@every_output
def test_an_interrupt_stops_an_export_at_once(tmp_path, old, name, options):
    slow = painted(tmp_path / "slow", noise(3, "uint8", 8192, 1100), cell=(64, 1100))
    timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    Slow.reads.clear()
    with pytest.raises(KeyboardInterrupt):
        export(as_kind(Slow, slow), source_of(slow), tmp_path / name, ExportOptions(**options))
    assert len(Slow.reads) < 16  # all of it would be 16 blocks, or 128 bands
    place.remove(slow.folder)


@pytest.mark.parametrize("name", ["out.dzi", "out.ome.zarr"])
def test_a_folder_that_cannot_be_put_in_place_brings_the_old_one_back(tmp_path, old, name, monkeypatch):
    def rename(source, target):
        placing = os.path.basename(target) in ("out_files", "out.ome.zarr") and "partial" in source
        if placing and not moved:
            moved.append(source)
            raise OSError(5, "Input/output error")
        return real(source, target)

    real, moved = os.rename, []
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(JobError, match="its disk reports errors"):
        export(old, source_of(old), tmp_path / name)
    assert moved


@every_output
def test_a_new_output_replaces_an_older_one(tmp_path, name, options):
    first = painted(tmp_path / "a", noise(3, "uint8", 600, 300))
    second = painted(tmp_path / "b", noise(3, "uint8", 90, 50, seed=1))
    export(first, source_of(first), tmp_path / name, ExportOptions(**options))
    export(second, source_of(second), tmp_path / name, ExportOptions(**options))
    again = tmp_path / "fresh"
    again.mkdir()
    export(second, source_of(second), again / name, ExportOptions(**options))
    made = contents(tmp_path)
    for path, data in contents(again).items():
        assert made[path] == data
    outputs = {"out_files"} if name.endswith("dzi") else set()
    assert set(os.listdir(tmp_path)) == {"a", "b", "fresh", name} | outputs


@pytest.mark.parametrize("name", ["ordner 100% ü/50% 画像.dzi", "ordner 100% ü/[1] x.ome.zarr"])
def test_folders_may_have_any_name(tmp_path, name):
    (tmp_path / name).parent.mkdir()
    canvas = painted(tmp_path / "c", noise(3, "uint8"))
    export(canvas, source_of(canvas), tmp_path / name)
    assert (tmp_path / name).exists()
    if name.endswith("dzi"):
        assert (tmp_path / f"{name[:-4]}_files" / "0" / "0_0.jpg").exists()


# --- not ours ----------------------------------------------------------------------------------------------


def refused(path):
    with pytest.raises(UsageError) as caught:
        check_output(path, 100, 100, 3, "uint8")
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def test_a_folder_of_something_else_is_not_replaced_by_an_ome_zarr(tmp_path):
    path = tmp_path / "holiday.zarr"
    path.mkdir()
    check_output(path, 100, 100, 3, "uint8")  # nothing is in it
    (path / "photo.jpg").write_bytes(b"precious")
    assert "photo.jpg" in refused(path)


def test_an_ome_zarr_with_labels_is_not_replaced(tmp_path):
    canvas = painted(tmp_path / "c", noise(3, "uint8"))
    path = tmp_path / "out.ome.zarr"
    export(canvas, source_of(canvas), path)
    check_output(path, 100, 100, 3, "uint8")
    zarr.open_group(path).create_group("labels")
    assert "labels" in refused(path)


def test_another_zarr_is_not_replaced(tmp_path):
    path = tmp_path / "out.zarr"
    zarr.create_array(path, shape=(10, 10), dtype="u1")
    assert "is no part of an OME-Zarr image" in refused(path)


def test_a_canvas_is_not_replaced(tmp_path):
    path = tmp_path / "canvas.zarr"
    painted(path, noise(3, "uint8"))
    refused(path)


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    path = tmp_path / "out.zarr"
    path.write_bytes(b"precious")
    assert "is a file" in refused(path)


def test_tiles_of_something_else_are_not_replaced(tmp_path):
    path, tiles = tmp_path / "out.dzi", tmp_path / "out_files"
    tiles.mkdir()
    (tiles / "0").mkdir()
    assert "out_files" in refused(path)  # digits alone, but no index
    canvas = painted(tmp_path / "c", noise(3, "uint8"))
    export(canvas, source_of(canvas), tmp_path / "other.dzi")
    check_output(tmp_path / "other.dzi", 100, 100, 3, "uint8")
    (tmp_path / "other_files" / "notes.txt").write_bytes(b"precious")
    assert "other_files" in refused(tmp_path / "other.dzi")


def test_an_index_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "out.dzi").write_bytes(b"precious")
    assert "no Deep Zoom index" in refused(tmp_path / "out.dzi")


@pytest.mark.parametrize("name", ["out.dzi", "out.zarr"])
def test_a_missing_folder_is_named(tmp_path, name):
    assert "does not exist" in refused(tmp_path / "nowhere" / name)


def test_what_a_killed_process_left_is_gone_with_the_next_and_what_a_live_one_writes_is_not(
    tmp_path: Path,
) -> None:
    target = str(tmp_path / "out.tif")
    code = (
        "import sys; from dino_ray.raster.export.place import beside\n"
        "with beside(sys.argv[1]) as partial:\n"
        "    open(partial, 'w').close(); print(partial, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, target]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    dead, alive = (Path(writer.stdout.readline().strip()) for writer in writers if writer.stdout)
    writers[0].kill()
    writers[0].wait()
    with beside(target) as mine:
        assert dead.name != alive.name != Path(mine).name
        assert not dead.exists()
        assert alive.exists()
    writers[1].communicate("")
    assert list(tmp_path.iterdir()) == []


def test_partial_names_of_other_outputs_are_left_alone(tmp_path: Path) -> None:
    with beside(str(tmp_path / "a.tif")) as other:
        Path(other).touch()
        with beside(str(tmp_path / "b.tif")):
            assert Path(other).exists()


def test_names_as_long_as_can_be_have_room_for_a_partial(tmp_path: Path) -> None:
    with beside(str(tmp_path / ("x" * 251 + ".tif"))) as partial:
        Path(partial).touch()
