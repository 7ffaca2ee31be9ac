"""Promises of results that go to an object store: the local bytes, whole or not there, and resumed from there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result
from PIL import Image

from dino_ray import places
from dino_ray.batch import Batch
from dino_ray.cli import main
from dino_ray.config import UpscaleConfig
from dino_ray.errors import JobError

QUICK = ("--model", "none", "--address", "none", "--scale", "2", "--tile", "128")
"""Few cells: each is a request, and the server that stands in for S3 takes its time."""


def dino_ray(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def upscaled(*args: object) -> None:
    result = dino_ray("upscale", *args, *QUICK)
    assert result.exit_code == 0, result.output


def files_under(place: str) -> dict[str, bytes]:
    """Contents of all files under an address or in a local folder, by their names in it."""
    files, root = fsspec.url_to_fs(place, use_listings_cache=False)
    found = {name.removeprefix(root).lstrip("/"): files.cat_file(name) for name in files.find(root)}
    return {name: body for name, body in found.items() if not name.endswith("/")}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    y, x = np.mgrid[:70, :90]
    Image.fromarray(np.stack([x * y % 251, x % 241, y * 5 % 239], -1).astype(np.uint8)).save(
        tmp_path / "in.png"
    )
    return tmp_path / "in.png"


@pytest.mark.parametrize("name", ["o.png", "o.jpg", "o.webp", "o.tif", "o.dzi", "o.ome.zarr"])
def test_every_format_arrives_as_it_would_be_on_a_disk_and_nothing_else_stays(
    name: str, photo: Path, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    upscaled(photo, "-o", tmp_path / "here" / name)
    for _ in range(2):  # the second replaces the first
        upscaled(photo, "-o", f"{s3_bucket}/there/{name}")
        assert files_under(f"{s3_bucket}/there") == files_under(str(tmp_path / "here"))
    assert not list((tmp_path / "tmp").iterdir())


def test_templates_of_many_images_and_their_report_go_to_a_bucket(
    photo: Path, s3_bucket: str, tmp_path: Path
) -> None:
    Image.open(photo).rotate(180).save(tmp_path / "other.png")
    template = f"{s3_bucket}/out/{{stem}}@{{scale}}x.tif"
    config = UpscaleConfig(model="none", address="none", tile=128)
    from dino_ray.inputs import expand, outputs

    images = expand([str(photo), str(tmp_path / "other.png")])
    pairs = list(zip([image.path for image in images], outputs(images, template, 2, ".png"), strict=True))
    batch = Batch.check(pairs, config, report=f"{s3_bucket}/out/report.json")
    batch.run(lambda event: None, lambda *_: None, 0.0)
    there = files_under(f"{s3_bucket}/out")
    assert sorted(there) == ["in@2x.tif", "other@2x.tif", "report.json"]
    assert [report["output"] for report in json.loads(there["report.json"])] == [
        output for _, output in pairs
    ]


def test_a_source_a_job_and_a_result_may_all_lie_in_buckets(
    photo: Path, s3_bucket: str, tmp_path: Path
) -> None:
    files = fsspec.filesystem("s3")
    files.put_file(str(photo), f"{s3_bucket}/in/photo.png")
    upscaled(photo, "-o", tmp_path / "here.tif")
    upscaled(
        f"{s3_bucket}/in/photo.png", "-o", f"{s3_bucket}/out/x.tif", "--job-dir", f"{s3_bucket}/scratch/x"
    )
    assert set(files_under(s3_bucket)) == {"in/photo.png", "out/x.tif"}
    assert places.read_bytes(f"{s3_bucket}/out/x.tif") == (tmp_path / "here.tif").read_bytes()


@contextmanager
def network_that_goes(prefix: str, after: int) -> Iterator[None]:
    """Requests that write objects whose names begin so fail, once some have come through."""
    import s3fs

    call = s3fs.S3FileSystem._call_s3
    writes = 0

    async def breaks(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        nonlocal writes
        if method in ("put_object", "create_multipart_upload") and kwargs["Key"].startswith(prefix):
            writes += 1
            if writes > after:
                raise ConnectionError("the network went")
        return await call(self, method, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(s3fs.S3FileSystem, "_call_s3", breaks)
        yield


@pytest.mark.parametrize(
    ("name", "sent", "after"),
    [("o.tif", "there/o.tif", 1), ("o.dzi", "there/o_files/", 3), ("o.ome.zarr", "there/o.ome.zarr/", 3)],
)
def test_an_upload_that_fails_leaves_nothing_that_looks_whole_and_the_job_to_go_on_with(
    name: str, sent: str, after: int, photo: Path, s3_bucket: str, tmp_path: Path
) -> None:
    output = f"{s3_bucket}/there/{name}"
    with network_that_goes(sent, after):
        result = dino_ray("upscale", photo, "-o", output, *QUICK, "--job-dir", f"{s3_bucket}/job")
    assert result.exit_code == 1
    assert f"{s3_bucket}/there/o" in result.output
    assert "cannot be written: its server can't be reached" in result.output
    assert "cells of in.png are kept; go on with: dino-ray resume" in result.output
    assert not places.exists({"o.ome.zarr": f"{output}/zarr.json"}.get(name, output))
    job = ("--job-dir", f"{s3_bucket}/job")
    upscaled(photo, "-o", output, *job, "--resume", "--report", tmp_path / "r.json")
    (tmp_path / "here").mkdir()
    upscaled(photo, "-o", tmp_path / "here" / name)
    assert files_under(f"{s3_bucket}/there") == files_under(str(tmp_path / "here"))
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["cells_resumed"] == report["cells"]
    assert report["output"] == output


def test_an_older_result_stands_until_the_new_one_has_come(photo: Path, s3_bucket: str) -> None:
    output = f"{s3_bucket}/o.tif"
    places.write_bytes_whole(output, b"an older one")
    job = ("--job-dir", f"{s3_bucket}/job")
    with network_that_goes("o.tif", 1):  # the first looks whether writing is allowed
        assert dino_ray("upscale", photo, "-o", output, *QUICK, *job).exit_code == 1
    assert places.read_bytes(output) == b"an older one"


def test_a_driver_that_is_killed_is_resumed_from_the_folder_beside_its_result(
    photo: Path, s3_bucket: str, tmp_path: Path
) -> None:
    output = f"{s3_bucket}/there/o.tif"
    many_cells = ("--tile", "64")
    command = [sys.executable, "-m", "dino_ray.cli", "upscale", str(photo), "-o", output, *QUICK, *many_cells]
    process = subprocess.Popen([*command, "--progress", "json"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    cells = 0
    for line in process.stderr:
        cells += '"CellDone"' in line
        if cells == 10:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    assert not places.exists(output)
    assert places.is_folder(f"{output}.dino-ray")
    again = ("upscale", photo, "-o", output, *QUICK, *many_cells, "--report", tmp_path / "r.json")
    assert dino_ray(*again).exit_code == 0
    dino_ray("upscale", photo, "-o", tmp_path / "here.tif", *QUICK, *many_cells)
    assert places.read_bytes(output) == (tmp_path / "here.tif").read_bytes()
    assert json.loads((tmp_path / "r.json").read_text())["cells_resumed"] >= 10
    assert set(files_under(s3_bucket)) == {"there/o.tif"}


def test_a_finished_image_of_several_is_passed_over_and_one_that_is_gone_made_again(
    photo: Path, s3_bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(photo.read_bytes()[:2000])
    args = (photo, tmp_path / "broken.png", "-o", f"{s3_bucket}/out/{{stem}}.ome.zarr", "--strict")
    first = dino_ray("upscale", *args, *QUICK)
    assert first.exit_code == 2, first.output
    again = dino_ray("upscale", *args, *QUICK)
    assert f"{s3_bucket}/out/in.ome.zarr: was finished by an earlier run" in again.output
    places.remove_tree(f"{s3_bucket}/out/in.ome.zarr")
    afresh = dino_ray("upscale", *args, *QUICK)
    assert "was finished by an earlier run" not in afresh.output
    assert places.exists(f"{s3_bucket}/out/in.ome.zarr/zarr.json")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("https://host/out.png", "web servers can only be read"),
        ("simplecache::s3://bucket/out.png", "addresses in a chain can only be read"),
        ("nothing://bucket/out.png", "address of no known kind"),
    ],
)
def test_addresses_that_take_no_files_are_refused_before_any_work(
    output: str, said: str, photo: Path
) -> None:
    result = dino_ray("upscale", photo, "-o", output, *QUICK)
    assert result.exit_code == 2
    assert said in result.output


def test_a_bucket_that_is_not_there_is_named_before_any_work(photo: Path, s3_bucket: str) -> None:
    result = dino_ray("upscale", photo, "-o", f"{s3_bucket}-not/o.png", *QUICK)
    assert result.exit_code == 1
    assert f"{s3_bucket}-not/o.png" in result.output
    assert "there is no such file or bucket" in result.output


@pytest.mark.parametrize("name", ["o.png", "o.dzi", "o.ome.zarr"])
def test_what_is_not_ours_to_replace_is_left_alone(name: str, photo: Path, s3_bucket: str) -> None:
    stranger = f"{s3_bucket}/{name}/letters.txt" if name != "o.dzi" else f"{s3_bucket}/o_files/letters.txt"
    places.write_bytes_whole(stranger, b"dear")
    result = dino_ray("upscale", photo, "-o", f"{s3_bucket}/{name}", *QUICK)
    if name == "o.png":  # a folder as any other
        assert set(files_under(s3_bucket)) == {"o.png/letters.txt", "o.png/in@2x.png"}
        return
    assert result.exit_code == 2
    assert "name another output" in result.output
    assert set(files_under(s3_bucket)) == {stranger.removeprefix(f"{s3_bucket}/")}


def test_a_new_ome_zarr_needs_no_room_on_a_disk_and_one_that_replaces_another_does(
    photo: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dino_ray.places.shutil.disk_usage", lambda path: _Full)
    upscaled(photo, "-o", f"{s3_bucket}/o.ome.zarr")
    again = dino_ray("upscale", photo, "-o", f"{s3_bucket}/o.ome.zarr", *QUICK)
    assert again.exit_code == 2
    assert "before it is sent" in again.output


def test_a_scratch_disk_without_room_is_named_before_any_work(
    photo: Path, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("dino_ray.places.shutil.disk_usage", lambda path: _Full)
    result = dino_ray("upscale", photo, "-o", f"{s3_bucket}/o.tif", *QUICK)
    assert result.exit_code == 2
    assert f"is made in {tmp_path} before it is sent" in result.output
    assert "TMPDIR" in result.output
    assert not files_under(s3_bucket)


class _Full:
    free = 1000


def test_an_ome_zarr_in_a_bucket_is_read_there_by_zarr(photo: Path, s3_bucket: str) -> None:
    upscaled(photo, "-o", f"{s3_bucket}/o.ome.zarr")
    level = zarr.open_array(f"{s3_bucket}/o.ome.zarr/0", mode="r")
    assert level.shape == (3, 140, 180)


def test_a_job_whose_files_are_all_behind_addresses_goes_on_from_any_folder(
    photo: Path, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.filesystem("s3").put_file(str(photo), f"{s3_bucket}/in.png")
    output, report = f"{s3_bucket}/out/o.tif", f"{s3_bucket}/out/r.json"
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dino_ray.job.export", broken_export)
        stopped = dino_ray("upscale", f"{s3_bucket}/in.png", "-o", output, "--report", report, *QUICK)
    assert stopped.exit_code == 1
    command = stopped.output.strip().rpartition("go on with: dino-ray ")[2].split()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").rmdir()
    resumed = dino_ray(*command, "--log", "job.log")
    assert resumed.exit_code == 0, resumed.output
    assert set(files_under(s3_bucket)) == {"in.png", "out/o.tif", "out/r.json"}
    assert json.loads(places.read_bytes(report))["cells_resumed"] > 0
    assert '"event": "ImageDone"' in (tmp_path / "job.log").read_text()


def broken_export(*args: Any) -> None:
    raise JobError("the network went")
