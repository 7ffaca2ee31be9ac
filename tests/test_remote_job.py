"""Promises of a job whose source and work lie in an object store: Ray's workers read and write it directly."""

from __future__ import annotations

import io
import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dino_ray import places
from dino_ray.cli import main


def upscale(*args: object) -> dict[str, object]:
    report = Path(str(args[-1])).with_suffix(".json")
    command = [
        "upscale",
        *map(str, args[:-1]),
        "-o",
        str(args[-1]),
        "--model",
        "none",
        "--report",
        str(report),
    ]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    loaded: dict[str, object] = json.loads(report.read_text())
    return loaded


@pytest.mark.ray
def test_what_lies_in_a_bucket_gives_the_bytes_of_what_lies_on_a_disk(s3_bucket: str, tmp_path: Path) -> None:
    y, x = np.mgrid[:300, :400]
    photo = Image.fromarray(np.stack([x % 251, y % 241, (x * y) % 239], axis=-1).astype(np.uint8))
    photo.save(tmp_path / "photo.png")
    packed = io.BytesIO()
    photo.save(packed, "png")
    with fsspec.open(f"{s3_bucket}/photo.png", "wb") as file:
        file.write(packed.getvalue())
    here = upscale(
        tmp_path / "photo.png", "--scale", 3, "--tile", 256, "--address", "none", tmp_path / "here.tif"
    )
    place = f"{s3_bucket}/job"
    there = upscale(
        f"{s3_bucket}/photo.png", "--scale", 3, "--tile", 256, "--job-dir", place, tmp_path / "there.tif"
    )
    assert there["canvas_sha256"] == here["canvas_sha256"]
    assert not places.list_files(place)
    with Image.open(tmp_path / "here.tif") as one, Image.open(tmp_path / "there.tif") as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))
