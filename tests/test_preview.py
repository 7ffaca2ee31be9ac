"""Promises of ``dino-ray plan``: what it foretells is what the run then does and takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino_ray.cli import main
from dino_ray.config import UpscaleConfig
from dino_ray.errors import JobError, UsageError
from dino_ray.forecast.costs import Costs, Work, dino_tokens, memory, stages, turns, with_start
from dino_ray.forecast.memory import Shape, typical_memory
from dino_ray.forecast.rehearsal import part_size, part_tiles
from dino_ray.forecast.rehearsed import tile_seconds
from dino_ray.inputs import expand
from dino_ray.plan.geometry import Grid, Scaling, make_grid
from dino_ray.preview import JobPreview, duration, plan_jobs, totals

TOLERANCE = 0.25
QUICK = {"model": "none", "address": "none"}

seconds = st.floats(0, 1000)
rates = st.floats(0, 10)
works = st.builds(
    Work,
    tiles=st.integers(1, 10**6),
    canvas_bytes=st.integers(1, 10**12),
    ingest_bytes=st.integers(0, 10**12),
    file_bytes=st.integers(0, 10**12),
    tokens=st.integers(0, 10**9),
)
costs = st.builds(
    Costs,
    workers=st.just(1),
    tile_s=rates,
    token_s=rates,
    export_s_per_mb=rates,
    ingest_first_s=seconds,
    ingest_s_per_mb=rates,
    digest_s_per_mb=rates,
    start_s=seconds,
    next_s=seconds,
)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return make_photo(tmp_path / "photo.png", 300, 200)


def make_photo(path: Path, width: int, height: int) -> Path:
    y, x = np.mgrid[:height, :width]
    grain = np.random.default_rng(0).integers(0, 8, (height, width, 3))
    pixels = np.stack([x + y, x * 3 // 2, y * 2], axis=-1) % 240 + grain
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def planned(
    *sources: object, output: object = None, calibrate: bool = False, **options: Any
) -> list[JobPreview]:
    config = UpscaleConfig.parse({**QUICK, **options})
    return plan_jobs(
        expand([str(s) for s in sources]),
        None if output is None else str(output),
        config,
        calibrate=calibrate,
    )


def dino_ray(*args: object) -> Any:
    return CliRunner().invoke(main, [str(arg) for arg in args])


# ---- the arithmetic


@given(works, costs, st.floats(0, 10**9))
def test_the_image_that_was_rehearsed_is_foretold_as_it_was(
    work: Work, measured: Costs, wall_s: float
) -> None:
    least = stages(work, measured).wall
    complete = with_start(measured, work, least + wall_s)
    assert turns([work], complete)[0].wall == pytest.approx(least + wall_s)


@given(works, costs, st.sampled_from(["tiles", "canvas_bytes", "ingest_bytes", "file_bytes", "tokens"]))
def test_more_work_is_never_foretold_to_take_less(work: Work, measured: Costs, what: str) -> None:
    more = replace(work, **{what: getattr(work, what) * 2 + 1})
    assert turns([more], measured)[0].wall >= turns([work], measured)[0].wall


@given(st.lists(works, min_size=2, max_size=5), costs)
def test_of_many_images_the_first_pays_the_start_and_ingests_hide_behind_tiles(
    several: list[Work], measured: Costs
) -> None:
    made = turns(several, measured)
    assert made[0].start == measured.start_s
    for before, turn, work in zip(made, made[1:], several[1:], strict=False):
        assert turn.start == measured.next_s
        assert turn.ingest == max(0.0, stages(work, measured).ingest - before.tiles)


def test_features_that_the_rehearsal_had_not_come_on_top_of_a_replica_alone() -> None:
    measured = Costs(workers=1, tile_s=1.0, memory_mb={"driver": 1.0, "replica": 2.0}, feature_bytes=10**6)
    assert memory(Work(1, 1, feature_bytes=4 * 10**6), measured) == {"driver": 1.0, "replica": 5.0}


def test_tiles_are_timed_from_when_all_replicas_are_in_their_stride() -> None:
    slow, steady = [5.0, 6.0], [7.0 + 0.5 * i for i in range(1, 9)]
    assert tile_seconds(1.0, [*slow, 7.0, 7.0, *steady], 11.0, replicas=2) == pytest.approx(0.5)
    assert tile_seconds(5.5, [5.0, 6.0], 6.5, replicas=1) == pytest.approx(1.0)
    assert tile_seconds(9.0, [5.0, 6.0], 6.5, replicas=2) > 0  # the last replica came when all was done


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_dino_tokens_cover_the_source_at_least_once(width: int, height: int) -> None:
    patch = 14
    assert dino_tokens(width, height, patch) > (width // patch) * (height // patch)
    assert dino_tokens(2 * width, height, patch) > 0


def test_dino_tokens_are_those_that_extraction_asks_its_model_for() -> None:
    from dino_ray.dino import extract, loading

    dino = loading.load("bundled", "cpu")
    seen = []

    class Counted:
        name, patch, dim = dino.name, dino.patch, dino.dim

        def __call__(self, pixels: Any) -> Any:
            seen.append(len(pixels) * (pixels.shape[2] // dino.patch) * (pixels.shape[3] // dino.patch))
            return dino(pixels)

    extract.extract(Counted(), lambda rect: np.zeros((rect.h, rect.w, 3), np.float32), 700, 300)
    assert sum(seen) == dino_tokens(700, 300, dino.patch)


sides = st.integers(1, 4000)


@given(sides, sides, st.sampled_from([1.0, 1.5, 2.0, 4.0]), st.integers(1, 40))
def test_a_part_is_of_the_source_and_has_the_tiles_asked_for_if_it_has_them(
    width: int, height: int, scale: float, tiles: int
) -> None:
    def laid_out(width: int, height: int) -> Grid:
        scaling = Scaling.from_factor(width, height, scale)
        return make_grid(scaling.canvas_w, scaling.canvas_h, tile=128, overlap=32, multiple=16)

    grid = laid_out(width, height)
    columns, rows = part_tiles(grid, tiles)
    assert min(tiles, grid.n_tiles) <= columns * rows <= grid.n_tiles
    w, h = part_size(grid, scale, columns, rows)
    assert 1 <= w <= width
    assert 1 <= h <= height
    part = laid_out(w, h)
    assert (part.xs.tile, part.ys.tile) == (grid.xs.tile, grid.ys.tile)
    assert part.xs.n_tiles >= columns
    assert part.ys.n_tiles >= rows


SHAPE = Shape("ray", "lanczos", 1024**2, 1024**2 * 6, 8192**2, 8192 * 3, 512, "rows")


@given(st.integers(1, 10**5), st.integers(1, 10**5), st.sampled_from(["rows", "blocks", "whole"]))
def test_memory_does_not_grow_with_the_height_of_what_is_streamed(width: int, height: int, how: Any) -> None:
    def driver(height: int) -> float:
        shape = replace(SHAPE, canvas_pixels=width * height, row_bytes=width * 3, export=how)
        return typical_memory(shape)["driver"]

    assert (driver(2 * height) == driver(height)) == (how != "whole")


def test_memory_of_unknown_models_is_not_claimed() -> None:
    assert set(typical_memory(replace(SHAPE, refines=None))) == {"driver", "merge"}
    assert typical_memory(replace(SHAPE, engine="local", refines=None)) == {}


# ---- against runs


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_disk_is_what_lies_on_it_at_the_end_of_the_run(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PNG is ingested when it is not small; chunks are whole at borders."""
    monkeypatch.setattr("dino_ray.raster.direct._SMALL_BYTES", 1000)
    photo, job, held = make_photo(tmp_path / "p.png", 613, 331), tmp_path / "job", tmp_path / "held"
    output = tmp_path / f"o.{suffix}"

    def export(*args: object) -> None:
        shutil.copytree(job, held)
        raise JobError("stopped here")

    monkeypatch.setattr("dino_ray.job.export", export)
    options = ("--model", "none", "--address", "none", "--tile", 256, "--job-dir", job)
    assert dino_ray("upscale", photo, "-o", output, *options).exit_code == 1
    pixels = [file for file in held.rglob("c.*") if file.is_file()]
    foretold = planned(photo, output=output, tile=256)[0].disk_mb
    assert foretold == pytest.approx(sum(file.stat().st_size for file in pixels) / 1e6, abs=0.06)
    assert {file.parent.name for file in pixels} == {"source.zarr", "canvas.zarr"}


@pytest.mark.parametrize("tile", [None, 128])
def test_counts_are_those_of_the_report(tile: int | None, photo: Path, tmp_path: Path) -> None:
    output, report = tmp_path / "o.png", tmp_path / "r.json"
    more = [] if tile is None else ["--tile", tile, "--overlap", 32]
    dino_ray(
        "upscale", photo, "-o", output, "--report", report, "--model", "none", "--address", "none", *more
    )
    done = json.loads(report.read_text())
    made = planned(photo, output=output, **({} if tile is None else {"tile": tile, "overlap": 32}))[0]
    for name in ("width", "height", "tiles", "cells", "workers", "tile_calls"):
        assert getattr(made, name) == done[name]


def test_batches_make_fewer_calls_of_as_many_tiles_and_need_more_memory(photo: Path) -> None:
    one, four = (planned(photo, model="bundled", batch=batch)[0] for batch in (1, 4))
    assert one.tiles == four.tiles == one.tile_calls
    assert four.tile_calls == -(-four.tiles // 4)
    assert four.model_calls == one.model_calls
    assert four.tiles_waiting_mb >= one.tiles_waiting_mb
    assert four.peak_rss_mb["replica"] > one.peak_rss_mb["replica"]


def test_a_rehearsal_foretells_memory_and_the_size_of_the_output(tmp_path: Path) -> None:
    photo, output, report = make_photo(tmp_path / "p.png", 1400, 900), tmp_path / "o.png", tmp_path / "r.json"
    options = ("--model", "none", "--address", "none", "--tile", 256)
    made = planned(photo, output=output, calibrate=True, tile=256)[0]
    assert os.listdir(tmp_path) == ["p.png"]
    command = [
        sys.executable,
        "-m",
        "dino_ray.cli",
        "upscale",
        photo,
        "-o",
        output,
        "--report",
        report,
        *options,
    ]
    subprocess.run([str(part) for part in command], check=True)
    done = json.loads(report.read_text())
    assert set(made.peak_rss_mb) == set(done["peak_rss_mb"])
    for role, mb in done["peak_rss_mb"].items():
        assert made.peak_rss_mb[role] == pytest.approx(mb, rel=TOLERANCE)
    assert made.output_mb == pytest.approx(output.stat().st_size / 1e6, rel=TOLERANCE)
    assert 0 < (made.first_tile_s or 0.0) < (made.wall_s or 0.0)


def test_without_a_rehearsal_memory_is_claimed_and_time_is_not(tmp_path: Path) -> None:
    photo, report = make_photo(tmp_path / "p.png", 900, 900), tmp_path / "r.json"
    output = tmp_path / "o.webp"
    made = planned(photo, output=output)[0]
    assert made.wall_s is made.seconds is made.first_tile_s is made.output_mb is None
    options = ("--model", "none", "--address", "none")
    command = [
        sys.executable,
        "-m",
        "dino_ray.cli",
        "upscale",
        photo,
        "-o",
        output,
        "--report",
        report,
        *options,
    ]
    subprocess.run([str(part) for part in command], check=True)
    for role, mb in json.loads(report.read_text())["peak_rss_mb"].items():
        assert made.peak_rss_mb[role] == pytest.approx(mb, rel=TOLERANCE)


@pytest.mark.slow
def test_a_rehearsal_with_replicas_of_a_model_foretells_their_memory(tmp_path: Path) -> None:
    photo, output, report = make_photo(tmp_path / "p.png", 256, 192), tmp_path / "o.png", tmp_path / "r.json"
    made = planned(photo, output=output, calibrate=True, model="bundled", address="local", workers=1)[0]
    command = [sys.executable, "-m", "dino_ray.cli", "upscale", photo, "-o", output, "--report", report]
    subprocess.run([*map(str, command), "--workers", "1"], check=True)
    done = json.loads(report.read_text())
    assert made.workers == done["workers"] == 1
    for role, mb in done["peak_rss_mb"].items():
        assert made.peak_rss_mb[role] == pytest.approx(mb, rel=TOLERANCE)


# ---- what may be asked


def test_plan_refuses_what_upscale_refuses(photo: Path, tmp_path: Path) -> None:
    for output in (photo, tmp_path / "o.xyz"):
        with pytest.raises(UsageError):
            planned(photo, output=output)
    with pytest.raises(UsageError, match=r"WebP.*16,383"):
        planned(make_photo(tmp_path / "wide.png", 1100, 10), output=tmp_path / "o.webp", scale=16)


def test_plan_makes_no_folder(photo: Path, tmp_path: Path) -> None:
    made = planned(photo, output=tmp_path / "new" / "er" / "{stem}.png")
    assert made[0].tiles == 1
    assert os.listdir(tmp_path) == ["photo.png"]


def test_many_images_are_summed_up(photo: Path, tmp_path: Path) -> None:
    other = make_photo(tmp_path / "other.png", 120, 90)
    text = dino_ray("plan", photo, other, "--model", "none", "--address", "none").stdout
    assert text.splitlines()[-1].startswith("2 images: 2 tiles")
    listed = json.loads(
        dino_ray("plan", photo, other, "--model", "none", "--address", "none", "--json").stdout
    )
    assert [entry["source"] for entry in listed] == [str(photo), str(other)]


def test_calibrated_totals_say_the_time_of_all(photo: Path, tmp_path: Path) -> None:
    other = make_photo(tmp_path / "other.png", 120, 90)
    made = planned(photo, other, calibrate=True)
    assert (made[1].seconds or {})["start"] <= (made[0].seconds or {})["start"]  # it finds all warm
    assert totals(made).endswith(duration(sum(p.wall_s or 0.0 for p in made)))


def test_a_rehearsal_that_fails_says_why(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(JobError, match="--calibrate"):
        planned(photo, output=tmp_path / "o.png", calibrate=True)
    assert os.listdir(tmp_path) == ["photo.png"]
