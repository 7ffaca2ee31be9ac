"""Stores hold what zarr itself would, on disks and in object stores, and survive what kills their writers."""

import dataclasses
import errno
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from dino_ray import places
from dino_ray.errors import JobError, UsageError
from dino_ray.plan.geometry import Rect
from dino_ray.raster import chunks, store
from dino_ray.raster.canvas import Canvas

SHAPE, CHUNK = (60, 100, 3), (32, 48)


def noise(shape=SHAPE, dtype="uint8", seed=0):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top + 1, shape).astype(dtype)


def whole(shape=SHAPE):
    return Rect(0, 0, shape[1], shape[0])


@pytest.fixture(params=["disk", "s3", "memory"])
def folder(request, tmp_path):
    """Where a store can be made, on each kind of storage."""
    return place_for(request, tmp_path)


@pytest.fixture(params=["disk", "s3"])
def shared_folder(request, tmp_path):
    """The same where other processes see it, too."""
    return place_for(request, tmp_path)


def place_for(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "ordner ü 100%" / "canvas.zarr")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/canvas.zarr"
    return f"{request.getfixturevalue('s3_bucket')}/job/canvas.zarr"


def read(folder, shape, dtype, rect, absent="error"):
    return chunks.read(folder, store.layout_of(folder, shape, dtype), rect, absent)


def write(folder, shape, dtype, rect, pixels):
    chunks.write(folder, store.layout_of(folder, shape, dtype), rect, pixels)


def finished(folder, shape, dtype):
    return chunks.finished(folder, store.layout_of(folder, shape, dtype))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    bands=st.integers(1, 4),
    dtype=st.sampled_from(["uint8", "uint16"]),
    chunk=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 9),
)
def test_zarr_and_we_store_the_same_bytes_and_read_each_others(
    tmp_path_factory, height, width, bands, dtype, chunk, seed
):
    chunk = (min(chunk[0], height), min(chunk[1], width))
    while (height // chunk[0]) * (width // chunk[1]) > 40:  # a file each: keep it quick
        chunk = (min(2 * chunk[0], height), min(2 * chunk[1], width))
    pixels, folder = noise((height, width, bands), dtype, seed), tmp_path_factory.mktemp("stores")
    ours, zarrs = folder / "ours", folder / "zarrs"
    store.create(ours, pixels.shape, chunk, dtype)
    write(str(ours), pixels.shape, dtype, whole(pixels.shape), pixels)
    store.create(zarrs, pixels.shape, chunk, dtype)
    # Else zarr leaves out chunks of zeros.
    zarr.open_array(zarrs, mode="r+").with_config({"write_empty_chunks": True})[:] = pixels
    assert {f.name: f.read_bytes() for f in ours.iterdir()} == {
        f.name: f.read_bytes() for f in zarrs.iterdir()
    }
    np.testing.assert_array_equal(zarr.open_array(ours, mode="r")[:], pixels)
    np.testing.assert_array_equal(read(str(zarrs), pixels.shape, dtype, whole(pixels.shape)), pixels)


def test_pixels_come_back_from_any_storage(folder):
    pixels = noise(dtype="uint16")
    store.create(folder, SHAPE, CHUNK, "uint16")
    assert finished(folder, SHAPE, "uint16") == set()
    write(folder, SHAPE, "uint16", Rect(0, 0, 100, 32), pixels[:32])
    write(folder, SHAPE, "uint16", Rect(48, 32, 48, 28), pixels[32:, 48:96])
    assert finished(folder, SHAPE, "uint16") == {(0, 0), (0, 1), (0, 2), (1, 1)}
    for rect in (Rect(0, 0, 100, 32), Rect(47, 31, 2, 1), Rect(50, 30, 3, 20), Rect(99, 0, 1, 1)):
        np.testing.assert_array_equal(read(folder, SHAPE, "uint16", rect), pixels[rect.slices])


def test_a_chunk_that_is_missing_is_an_error_unless_zeros_will_do(folder):
    store.create(folder, SHAPE, CHUNK, "uint8")
    with pytest.raises(JobError, match=r"c\.1\.2\.0: is missing; start the job anew"):
        read(folder, SHAPE, "uint8", Rect(97, 40, 1, 1))
    assert not read(folder, SHAPE, "uint8", Rect(97, 40, 1, 1), absent="zeros").any()


def test_zarr_reads_what_lies_in_an_object_store(s3_bucket):
    folder, pixels = f"{s3_bucket}/canvas.zarr", noise()
    store.create(folder, SHAPE, CHUNK, "uint8")
    write(folder, SHAPE, "uint8", whole(), pixels)
    # Copied, because zarr leaves its connections to the store open when the process ends.
    objects = {name: places.read_bytes(places.join(folder, name)) for name in places.list_files(folder)}
    buffers = {name: default_buffer_prototype().buffer.from_bytes(each) for name, each in objects.items()}
    np.testing.assert_array_equal(zarr.open_array(MemoryStore(buffers), mode="r")[:], pixels)


def test_attributes_and_shape_are_found_again(folder):
    made = store.create(folder, SHAPE, CHUNK, "uint16")
    write(folder, SHAPE, "uint16", whole(), noise(dtype="uint16"))
    store.set_attributes(made, {"made": "by us", "so": 1})
    store.set_attributes(made, {"so": [2]})
    again = store.open_fresh(folder)
    assert again == dataclasses.replace(made, attrs={"made": "by us", "so": [2]})
    assert Canvas.open(folder) == Canvas(folder, 100, 60, 3, "uint16", CHUNK)
    assert Canvas.open(folder).missing() == []


def test_attributes_are_zarrs(tmp_path):
    store.set_attributes(store.create(tmp_path / "c", SHAPE, CHUNK, "uint16"), {"ä": None})
    assert dict(zarr.open_array(tmp_path / "c", mode="r").attrs) == {"ä": None}


def test_a_store_is_replaced_or_removed_with_all_that_is_in_it(folder):
    store.create(folder, SHAPE, CHUNK, "uint8")
    write(folder, SHAPE, "uint8", whole(), noise())
    store.create(folder, SHAPE, CHUNK, "uint8")
    assert finished(folder, SHAPE, "uint8") == set()
    store.remove(folder)
    store.remove(folder)
    assert not places.exists(folder)
    with pytest.raises(JobError, match="not a pixel store"):
        store.open_fresh(folder)
    assert not places.exists(folder)


def test_what_is_no_store_is_left_alone(folder):
    places.make_folder(folder)
    places.write_bytes_whole(places.join(folder, "thesis.txt"), b"years of work")
    for work in (lambda: store.remove(folder), lambda: store.create(folder, SHAPE, CHUNK, "uint8")):
        with pytest.raises(JobError, match="not a pixel store"):
            work()
    assert places.list_files(folder) == {"thesis.txt": 13}


def test_what_a_removal_that_was_cut_short_left_is_removed(folder):
    store.create(folder, SHAPE, CHUNK, "uint8")
    write(folder, SHAPE, "uint8", whole(), noise())
    places.remove(places.join(folder, "zarr.json"))
    places.write_bytes_whole(places.join(folder, ".zarr.json.0123456789abcdef.partial"), b"{")
    store.create(folder, SHAPE, CHUNK, "uint8")
    assert places.list_files(folder).keys() == {"zarr.json"}


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"zarr_format": 3, "node_type": "group"}'])
def test_metadata_that_a_power_cut_left_is_one_line(tmp_path, content):
    store.create(tmp_path / "c", SHAPE, CHUNK, "uint8")
    (tmp_path / "c" / "zarr.json").write_bytes(content)
    with pytest.raises(JobError, match="not a pixel store that can be opened") as told:
        store.open_fresh(tmp_path / "c")
    assert "\n" not in str(told.value)
    store.create(tmp_path / "c", SHAPE, CHUNK, "uint8")


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": "auto"},
        {"compressors": None, "chunk_key_encoding": {"name": "default", "separator": "/"}},
        {"compressors": None, "serializer": zarr.codecs.BytesCodec(endian="big")},
    ],
    ids=["compressed", "folders", "big-endian"],
)
def test_a_store_laid_out_otherwise_is_refused_not_misread(tmp_path, options):
    if "chunk_key_encoding" not in options:
        options = {**options, "chunk_key_encoding": chunks.KEY_ENCODING}
    zarr.create_array(tmp_path / "c", shape=SHAPE, chunks=(*CHUNK, 3), dtype="uint16", **options)[:] = 1
    with pytest.raises(JobError, match="not this version's; start the job anew"):
        read(str(tmp_path / "c"), SHAPE, "uint16", whole())


@pytest.mark.parametrize(
    "rect", [Rect(0, 0, 50, 32), Rect(0, 1, 48, 31), Rect(0, 32, 48, 32), Rect(-48, 0, 48, 32)]
)
def test_only_whole_chunks_are_written(tmp_path, rect):
    folder = str(tmp_path / "c")
    store.create(folder, SHAPE, CHUNK, "uint8")
    with pytest.raises(ValueError, match="not made of chunks"):
        write(folder, SHAPE, "uint8", rect, noise((rect.h, rect.w, 3)))


# --- other processes, and their deaths ----------------------------------------------------------------------


def python(code, *args, **options):
    return subprocess.Popen([sys.executable, "-c", code, *args], text=True, stdout=subprocess.PIPE, **options)


_READER = """
import pickle, sys
canvas, source, rect = pickle.loads(bytes.fromhex(sys.argv[1]))
print(canvas.sha256(), len(canvas.done()), int(source.read(rect).sum()))
"""


def test_canvas_and_source_in_an_object_store_are_read_by_another_process(s3_bucket):
    from dino_ray.raster.source import Source, ingest_array

    pixels = noise((90, 130, 3))
    source = ingest_array(pixels, f"{s3_bucket}/job/source.zarr")
    canvas = Canvas.create(f"{s3_bucket}/job/canvas.zarr", 130, 90, 3, "uint8", CHUNK)
    for row, column in canvas.missing():
        canvas.write(canvas.cell_rect(row, column), source.read(canvas.cell_rect(row, column)))
    sent = pickle.dumps((canvas, source, Rect(-3, 50, 40, 30))).hex()
    told, _ = python(_READER, sent).communicate()
    assert told.split() == [canvas.sha256(), "9", str(int(source.read(Rect(-3, 50, 40, 30)).sum()))]
    assert Source.open(f"{s3_bucket}/job/source.zarr") == source


_WRITER = """
import sys, numpy as np
from dino_ray.raster.canvas import Canvas
canvas = Canvas.open(sys.argv[1])
print("ready", flush=True)
for row, column in canvas.missing()[: int(sys.argv[2])]:
    rect = canvas.cell_rect(row, column)
    canvas.write(rect, np.full((rect.h, rect.w, 3), row + column, np.uint8))
    print(row, column, flush=True)
sys.stdin.read()
"""


def test_writers_that_are_killed_leave_whole_cells_and_no_others(shared_folder):
    canvas = Canvas.create(shared_folder, 2048, 768, 3, "uint8", (256, 512))
    kills = 0
    while canvas.missing():
        # The first one waits before the end, so that it does not get there, however late it is killed.
        cells, waits_on = ("4", subprocess.PIPE) if kills == 0 else ("12", subprocess.DEVNULL)
        writer = python(_WRITER, shared_folder, cells, stdin=waits_on)
        for _ in range(1 + 2 * (kills + 1)):  # "ready" and a few cells
            writer.stdout.readline()
        time.sleep(0.001 * kills)
        os.kill(writer.pid, signal.SIGKILL)
        said = writer.communicate()[0].splitlines(
            keepends=True
        )  # the last line may have been cut by the kill
        committed = {tuple(map(int, line.split())) for line in said if line.endswith("\n")}
        assert committed <= canvas.done()
        kills += 1
    assert kills > 1
    canvas.clean()
    assert places.list_files(shared_folder).keys() == {"zarr.json"} | {
        f"c.{r}.{c}.0" for r in range(3) for c in range(4)
    }
    for row, column in canvas.done():
        assert (canvas.read(canvas.cell_rect(row, column)) == row + column).all()


_NO_ROOM = """
import resource, signal, sys, numpy as np
from dino_ray.errors import JobError
from dino_ray.raster.canvas import Canvas
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
canvas = Canvas.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    canvas.write(canvas.cell_rect(0, 1), np.full((32, 48, 3), 7, np.uint8))
except JobError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limits on the size of files")
def test_a_cell_for_which_there_is_no_room_is_not_there_and_the_others_are(tmp_path):
    canvas = Canvas.create(tmp_path / "c", 100, 60, 3, "uint8", CHUNK)
    canvas.write(canvas.cell_rect(0, 0), noise((32, 48, 3)))
    before = canvas.sha256()
    told, _ = python(_NO_ROOM, canvas.folder).communicate()
    assert told.startswith(f"{canvas.folder}: cannot be written: files may not grow this large")
    assert canvas.done() == {(0, 0)}
    assert canvas.sha256() == before
    assert sorted(os.listdir(canvas.folder)) == ["c.0.0.0", "zarr.json"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "the disk is full; free some room, then resume"),
        (errno.EDQUOT, "the disk quota is used up; free some room, then resume"),
        (errno.ESTALE, "its disk or mount is gone; bring it back, then resume"),
        (errno.EIO, "its disk reports errors; check the disk, then resume"),
        (errno.EROFS, "its disk is read-only; make it writable or name another folder, then resume"),
    ],
)
def test_disks_that_fail_are_named_with_the_remedy_and_nothing_has_changed(tmp_path, monkeypatch, code, says):
    canvas = Canvas.create(tmp_path / "c", 100, 60, 3, "uint8", CHUNK)
    canvas.write(canvas.cell_rect(0, 0), noise((32, 48, 3)))
    before = canvas.sha256()

    def fails(*args):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fails)
        for cell in ((0, 0), (1, 1)):
            rect = canvas.cell_rect(*cell)
            with pytest.raises(JobError, match=re.escape(f"{canvas.folder}: cannot be written: {says}")):
                canvas.write(rect, noise((rect.h, rect.w, 3), seed=1))
    assert canvas.done() == {(0, 0)}
    assert canvas.sha256() == before


def test_a_full_disk_is_named_while_a_store_is_made(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(JobError, match=r"cannot be written: the disk is full; free some room, then resume"):
        store.create(tmp_path / "c", SHAPE, CHUNK, "uint8")
    assert os.listdir(tmp_path / "c") == []


def test_a_bucket_that_is_gone_says_so_and_its_canvas_is_not_black(s3_bucket):
    import s3fs

    canvas = Canvas.create(f"{s3_bucket}/canvas.zarr", 100, 60, 3, "uint8", CHUNK)
    s3fs.S3FileSystem().rm(s3_bucket, recursive=True)
    rect = canvas.cell_rect(0, 0)
    for work in (canvas.done, canvas.sha256, lambda: canvas.write(rect, noise((32, 48, 3)))):
        with pytest.raises(JobError, match=r"canvas\.zarr: is gone"):
            work()


def test_a_bucket_that_goes_while_it_is_written_to(s3_bucket):
    import s3fs

    canvas = Canvas.create(f"{s3_bucket}/canvas.zarr", 100, 60, 3, "uint8", CHUNK)
    canvas.write(canvas.cell_rect(0, 0), noise((32, 48, 3)))
    s3fs.S3FileSystem().rm(s3_bucket, recursive=True)
    with pytest.raises(JobError, match=r"canvas\.zarr: cannot be written: there is no such file or bucket"):
        canvas.write(canvas.cell_rect(0, 0), noise((32, 48, 3)))


def test_a_store_in_a_bucket_that_never_was(s3_server):
    with pytest.raises(
        JobError, match=r"canvas\.zarr/zarr\.json: cannot be written: there is no such file or bucket"
    ):
        store.create("s3://no-such-bucket/canvas.zarr", SHAPE, CHUNK, "uint8")


@pytest.mark.parametrize("size", [0, 100, 32 * 48 * 3 + 1])
def test_an_object_of_the_wrong_size_is_not_done_and_not_read(folder, size):
    canvas = Canvas.create(folder, 100, 60, 3, "uint8", CHUNK)
    places.write_bytes_whole(places.join(folder, "c.0.0.0"), bytes(size))
    assert canvas.done() == set()
    with pytest.raises(JobError, match=rf"c\.0\.0\.0: cannot be read: it has {size:,} bytes, not 4,608"):
        canvas.sha256()


def test_an_object_too_short_for_the_rows_that_are_wanted(folder):
    canvas = Canvas.create(folder, 100, 60, 3, "uint8", CHUNK)
    places.write_bytes_whole(places.join(folder, "c.0.0.0"), bytes(100))
    for rect in (Rect(0, 0, 5, 2), Rect(0, 20, 5, 2)):
        with pytest.raises(JobError, match=r"c\.0\.0\.0: cannot be read"):
            canvas.read(rect)


def test_addresses_that_nothing_here_knows_are_a_wrong_request(tmp_path):
    with pytest.raises(UsageError, match="foo://bar"):
        Canvas.create("foo://bar/canvas.zarr", 10, 10, 3, "uint8", (5, 5))


def test_layouts_are_values():
    layout = chunks.Layout(SHAPE, CHUNK, "uint16")
    assert pickle.loads(pickle.dumps(layout)) == layout
    assert layout.grid == (2, 3)
    assert layout.chunk_bytes == 32 * 48 * 3 * 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.dtype = "uint8"
