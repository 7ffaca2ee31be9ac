"""Promises of a job whose source, work and result lie in an object store: Ray's workers read and write it directly."""

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


def upscale(folder: Path, *args: object) -> dict[str, object]:
    command = ["upscale", *map(str, args), "--model", "none", "--scale", "3", "--tile", "256"]
    result = CliRunner().invoke(main, [*command, "--report", str(folder / "report.json")])
    assert result.exit_code == 0, result.output
    loaded: dict[str, object] = json.loads((folder / "report.json").read_text())
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
    here = upscale(tmp_path, tmp_path / "photo.png", "-o", tmp_path / "here.tif", "--address", "none")
    there = upscale(
        tmp_path, f"{s3_bucket}/photo.png", "-o", f"{s3_bucket}/there.tif", "--job-dir", f"{s3_bucket}/job"
    )
    assert there["canvas_sha256"] == here["canvas_sha256"]
    assert places.read_bytes(f"{s3_bucket}/there.tif") == (tmp_path / "here.tif").read_bytes()
    assert places.list_names(s3_bucket) == {"photo.png", "there.tif"}
