"""Promises of a tile's way past the model: what drifts is caught and mended, what is true is left alone, to the bit."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import Hungry, Shade, make_task
from painters import Blast, Painter, Wreck, bundled_dino, painting, picture

from dino_ray.dino.calibration import Calibration
from dino_ray.dino.features import FeatureLevel
from dino_ray.engine.drive import drive
from dino_ray.engine.local import LocalEngine
from dino_ray.engine.protocol import Engine, Guide, ImageTask, ReplicaSpec, TileCall, TilesDone
from dino_ray.engine.replica import Cancelled, OutOfMemory, Replica
from dino_ray.engine.verifying import MENDINGS
from dino_ray.fidelity.mend import FEATHER, REACH
from dino_ray.fidelity.record import HEAT_ALARM, TileFidelity
from dino_ray.plan.geometry import Scaling, make_grid
from dino_ray.raster.source import ingest_array
from dino_ray.raster.wrapped import Wrapped
from dino_ray.upsample import Lanczos

SIDE = 96
PLANT = 24
FOUR = (0, 1, 2, 3)


def judged_task(
    folder: Path, pixels: np.ndarray | None = None, tile: int = SIDE, **settings: Any
) -> ImageTask:
    task = make_task(folder, picture() if pixels is None else pixels, tile=tile)
    return replace(task, **{"denoise": 0.3, "steps": 1, "verify": True, **settings})


@pytest.fixture
def task(tmp_path: Path) -> ImageTask:
    return judged_task(tmp_path)


def replica_of(model: Any, dino: Any = bundled_dino) -> Replica:
    return Replica(ReplicaSpec(upsampler=Lanczos, denoiser=lambda: model, dino=dino))


def made(
    model: Any, task: ImageTask, *tiles: int, guide: Guide | None = None
) -> tuple[list[np.ndarray], tuple[TileFidelity, ...]]:
    """What one call makes of tiles, and what it says of them."""
    replica = replica_of(model)
    guide = replica.prepare(task)[0] if guide is None else guide
    pixels, timings = replica.refine(task, guide, TileCall(1, tiles))
    return pixels, timings.fidelity


def bases(task: ImageTask, *tiles: int) -> list[np.ndarray]:
    return replica_of(Shade()).refine(task, Guide(), TileCall(1, tiles, refine=False))[0]


# ---- what is done with a tile


def test_what_is_not_in_the_picture_becomes_base_again_and_all_else_stays_to_the_bit(tmp_path: Path) -> None:
    task = judged_task(tmp_path, tile=160)
    model = Painter(side=32, corner=24)
    (mended,), (record,) = made(model, task, 0)
    (planted,), _ = made(model, replace(task, verify=False), 0)
    (base,) = bases(task, 0)
    plant = slice(24, 24 + 32)
    assert (planted[plant, plant] != base[plant, plant]).mean() > 0.9
    np.testing.assert_array_equal(mended[plant, plant], base[plant, plant])
    # Patches that have a corner of the plant in them, and those that hang together with them, make it no wider.
    reach = 2 * bundled_dino().patch + REACH + FEATHER
    kept = np.ones(mended.shape[:2], bool)
    kept[: 24 + 32 + reach, : 24 + 32 + reach] = False
    assert kept.any()
    np.testing.assert_array_equal(mended[kept], planted[kept])
    assert (mended[kept] != base[kept]).any(), "the model's own work is not thrown away"
    assert (record.action, record.retries) == ("blended", 0)
    assert record.alarm is not None
    assert record.alarm >= 1
    assert max(record.heat) < HEAT_ALARM


def test_a_true_tile_is_accepted_as_it_is_without_verification(task: ImageTask) -> None:
    pixels, records = made(Painter(), task, *FOUR)
    plain, silent = made(Painter(), replace(task, verify=False), *FOUR)
    np.testing.assert_array_equal(pixels, plain)
    assert [r.action for r in records] == [r.action for r in silent] == ["accepted"] * 4
    assert all(r.alarm is not None and r.alarm < 1 and r.cosine_min is not None for r in records)
    assert all(r.alarm is r.cosine_min is None and r.heat == () for r in silent)


def test_a_stubborn_model_is_asked_twice_more_with_half_the_noise_each_time_and_then_the_base_is_kept(
    task: ImageTask,
) -> None:
    model = Painter(side=SIDE, corner=0)
    (pixels,), (record,) = made(model, task, 4)
    assert model.levels == [(1, 0.3), (1, 0.15), (1, 0.075)]
    assert (record.action, record.retries, record.cosine_min) == ("kept", 2, 1.0)
    np.testing.assert_array_equal(pixels, bases(task, 4)[0])


@pytest.mark.parametrize(("strength", "asked"), [(0.0, 1), (0.5, 3), (1.0, 1)])
def test_a_model_that_knows_one_noise_level_is_asked_again_only_where_guidance_can_be_firmer(
    task: ImageTask, strength: float, asked: int
) -> None:
    model = Painter(side=SIDE, corner=0)
    model.description = replace(model.description, denoise=1.0, noise_levels=(1.0, 1.0))
    (pixels,), (record,) = made(model, replace(task, denoise=1.0, dino_strength=strength), 4)
    assert model.levels == [(1, 1.0)] * asked
    assert (record.action, record.retries) == ("kept", asked - 1)
    np.testing.assert_array_equal(pixels, bases(task, 4)[0])


def test_a_model_that_gives_in_is_asked_no_more_than_that_takes(task: ImageTask) -> None:
    model = Painter(side=SIDE, corner=0, from_level=0.2)
    (pixels,), (record,) = made(model, task, 4)
    assert model.levels == [(1, 0.3), (1, 0.15)]
    assert (record.action, record.retries) == ("retried", 1)
    assert record.alarm is not None
    assert record.alarm >= 1, "of the first try"
    (gentle,), _ = made(Painter(), replace(task, denoise=0.15), 4)
    np.testing.assert_array_equal(pixels, gentle)


def test_a_retry_guides_more_but_not_where_guidance_is_off(task: ImageTask, monkeypatch: Any) -> None:
    from dino_ray.dino.guidance import Guidance

    strengths: list[float] = []
    towards = Guidance.towards

    def noting(dino: Any, sketch: Any, latents: Any, strength: float, *rest: Any) -> Any:
        strengths.append(strength)
        return towards(dino, sketch, latents, strength, *rest)

    monkeypatch.setattr(Guidance, "towards", noting)
    made(Painter(side=SIDE, corner=0), replace(task, dino_strength=0.5), 4)
    assert strengths == [0.5, 0.75, 0.875]
    strengths.clear()
    made(Painter(side=SIDE, corner=0), task, 4)
    assert strengths == []


def test_a_model_that_is_wrong_everywhere_leaves_the_base_brought_to_its_source(task: ImageTask) -> None:
    task = replace(task, consistency=1.0)
    pixels, records = made(Painter(side=SIDE, corner=0), task, *FOUR)
    assert [r.action for r in records] == ["kept"] * 4

    class Copyist(Shade):
        def noised(self, latents: Any, noise: Any, sigma: float) -> Any:
            return latents

        def predict(self, x: Any, sigma: float, conditioning: Any) -> Any:
            return x

    expected, _ = made(Copyist(), task, *FOUR)
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("model", [Wreck, Blast])
@pytest.mark.parametrize(
    "settings", [{}, {"verify": False}, {"dino_strength": 0.5}, {"color_lock": "wavelet"}]
)
def test_what_is_no_number_is_kept_out_of_the_result_and_of_its_neighbours(
    task: ImageTask, model: Any, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    task = replace(task, consistency=1.0, **settings)
    above = 0.5  # of a range of 1: some tiles are brighter, some darker
    with caplog.at_level(logging.WARNING):
        pixels, records = made(model(side=PLANT, above=above), task, *FOUR)
    plain, faithful = made(Painter(), task, *FOUR)
    wrecked = [base.mean() / 65535 > above for base in bases(task, *FOUR)]
    assert 0 < sum(wrecked) < 4
    kept, _ = made(Painter(side=SIDE, corner=0), replace(task, verify=True), *FOUR)
    for i, tile in enumerate(FOUR):
        assert records[i].action == ("kept" if wrecked[i] else "accepted")
        np.testing.assert_array_equal(pixels[i], kept[i] if wrecked[i] else plain[i])
        assert (f"tile {tile}: what the model made of it is no picture" in caplog.text) == wrecked[i]
        if not wrecked[i]:
            assert records[i] == faithful[i]
        json.dumps(records[i].to_dict(), allow_nan=False)


class Restless:
    """Sees the same in all pictures, but for one patch, which is another one each time, far from the last ones."""

    name, patch, dim = "restless", 8, 2

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        rows, cols = (side // 8 for side in pixels.shape[-2:])
        tokens = torch.ones(1, rows, cols, 2)
        row, col = divmod(self.looks, 5)
        tokens[:, 2 + 5 * row, 2 + 5 * col, 0] = -1
        self.looks += 1
        return tokens


def test_mending_that_does_not_come_to_rest_ends(tmp_path: Path) -> None:
    task = judged_task(tmp_path, tile=192)
    restless = Restless()
    replica = replica_of(Painter(), dino=lambda: restless)
    guide = Guide(calibration=Calibration(dead_band=0.0, alarm=1e-6, structure=(0.1, 0.2), pictures=4))
    _, timings = replica.refine(task, guide, TileCall(1, (0,)))
    assert timings.fidelity[0].action == "kept"
    lattices = 2
    assert restless.looks <= lattices * (1 + 1 + MENDINGS + 1)  # the base, the tile, each round, what is kept


# ---- batches


def test_flat_tiles_never_reach_the_model_in_batches_either(tmp_path: Path) -> None:
    half = picture(96, 192)
    half[:, :96] = 117
    task = judged_task(tmp_path, half, adaptive=0.5, consistency=1.0)
    model = Painter()
    tiles = range(task.grid.n_tiles)
    flat = [t for t in tiles if task.grid.tile_rect(t).x1 < 180]
    pixels, records = made(model, task, *tiles)
    assert [r.tile for r in records] == list(tiles)
    assert [r.tile for r in records if r.action == "skipped"] == flat
    assert [count for count, _ in model.levels] == [len(tiles) - len(flat)]
    assert all((r.alarm, r.cosine_min, r.heat) == (None, None, ()) for r in records if r.tile in flat)
    for tile in (flat[0], flat[-1]):
        (alone,), (record,) = made(model, task, tile)
        np.testing.assert_array_equal(pixels[tile], alone)
        assert record == records[tile]
    assert len(model.levels) == 1
    _, records = made(model, replace(task, adaptive=0.0), *tiles)
    assert model.levels[-1][0] == len(tiles)
    assert all(r.action == "accepted" for r in records)


@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_what_becomes_of_a_tile_does_not_depend_on_the_others_of_its_batch(
    task: ImageTask, strength: float
) -> None:
    model = Painter(side=40, above=0.5)
    task = replace(task, dino_strength=strength, consistency=1.0, color_lock="wavelet", adaptive=0.5)
    guide, _ = replica_of(model).prepare(task)
    together, records = made(model, task, *FOUR, guide=guide)
    assert {r.action for r in records} > {"accepted"}
    for tile in FOUR:
        (alone,), (record,) = made(model, task, tile, guide=guide)
        assert (record.action, record.retries) == (records[tile].action, records[tile].retries)
        # A matrix product over fewer rows may sum in another order.
        assert np.abs(np.subtract(alone, together[tile], dtype=np.int64)).max() <= 3
    swapped, _ = made(model, task, 3, 1, 0, 2, guide=guide)
    assert np.abs(np.subtract(swapped, [together[t] for t in (3, 1, 0, 2)], dtype=np.int64)).max() <= 3


def test_guidance_leaves_a_content_tile_alone_whatever_comes_with_it() -> None:
    """It is content through the lattices that are looked at first, and would not be through the others."""
    from dino_ray.dino.guidance import Guidance
    from dino_ray.dino.lattice import guiding_phases

    phases = guiding_phases(2)

    class Picky:
        """Sees a tile's mean; through the third lattice it is appalled."""

        name, patch, dim = "picky", 2, 2

        def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
            rows, cols = (side // 2 for side in pixels.shape[-2:])
            third = (rows, cols) == (4, 5)
            angle = (pixels.mean((1, 2, 3)) - 0.5) * (8.0 if third else 1.0)
            tokens = torch.stack([angle.cos(), angle.sin()], -1) * 2**0.5
            return tokens[:, None, None].expand(-1, rows, cols, -1)

    base = torch.full((2, 3, 8, 8), 0.5)
    guidance = Guidance.towards(Picky(), lambda x: x, base, 1.0, dead_band=0.01)
    assert [(each.rows, each.cols) for each in guidance.lattices].index((4, 5)) == 2, phases
    drifted = base + torch.tensor([0.1, 0.4])[:, None, None, None]
    alone, together = guidance_of_one(guidance, drifted), guidance(drifted)
    assert (together[1] != drifted[1]).any()
    assert (alone == drifted[:1]).all()
    assert (together[0] == drifted[0]).all()


def guidance_of_one(guidance: Any, x0: torch.Tensor) -> torch.Tensor:
    return replace(guidance, targets=tuple(t[:1] for t in guidance.targets))(x0[:1])


# ---- memory


def test_guidance_that_does_not_fit_halves_the_batch(task: ImageTask) -> None:
    task = replace(task, dino_strength=0.5, denoise=0.5)
    model = Hungry(fits=2, stage="sketch")
    replica = replica_of(model)
    guide, _ = replica.prepare(task)
    pixels, timings = replica.refine(task, guide, TileCall(1, FOUR))
    assert timings.measures == ("batches of 2",)
    assert len(timings.fidelity) == 4
    assert model.given[:3] == [4, 2, 2]
    roomy = replica_of(Hungry(fits=4, stage="sketch"))
    expected = [t for pair in ((0, 1), (2, 3)) for t in roomy.refine(task, guide, TileCall(1, pair))[0]]
    np.testing.assert_array_equal(pixels, expected)
    never = replica_of(Hungry(fits=0, stage="sketch"))
    with pytest.raises(OutOfMemory, match="CUDA out of memory"):
        never.refine(task, guide, TileCall(1, FOUR))
    np.testing.assert_array_equal(  # and it is as good as new for what does not ask for guidance
        never.refine(replace(task, dino_strength=0.0), guide, TileCall(2, (0,)))[0],
        replica_of(Hungry(fits=1)).refine(replace(task, dino_strength=0.0), guide, TileCall(2, (0,)))[0],
    )


def test_guidance_ends_when_asked_to(task: ImageTask) -> None:
    task = replace(task, dino_strength=0.5, denoise=0.5)
    model = Hungry(fits=9, stage="sketch")
    replica = replica_of(model)
    guide, _ = replica.prepare(task)
    expected, _ = replica.refine(task, guide, TileCall(1, (0,)))
    looks, model.given[:] = len(model.given), []
    assert looks > 20
    with pytest.raises(Cancelled):
        replica.refine(task, guide, TileCall(2, (0,)), lambda: len(model.given) == looks // 2)
    assert len(model.given) == looks // 2
    np.testing.assert_array_equal(replica.refine(task, guide, TileCall(3, (0,)))[0], expected)


def test_a_verification_that_does_not_fit_ends_as_a_model_that_does_not(task: ImageTask) -> None:
    class Full:
        name, patch, dim = "bundled", 14, 1

        def __call__(self, pixels: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    guide, _ = replica_of(Painter()).prepare(task)
    replica = replica_of(Hungry(fits=4, measures=["VAE tiling of 512 px"]), dino=Full)
    with pytest.raises(OutOfMemory):
        replica.refine(task, guide, TileCall(1, FOUR))
    assert replica.refine(replace(task, verify=False), guide, TileCall(2, FOUR))[1].measures == (
        "batches of 1",
        "VAE tiling of 512 px",
    )


# ---- inference mode


@pytest.mark.parametrize("first", ["plain", "guided", "judged"])
def test_no_order_of_calls_leaves_tensors_that_no_gradient_can_pass(task: ImageTask, first: str) -> None:
    from dino_ray.fidelity import colour, projection

    for cached in (projection._make, colour._smoother):
        cached.cache_clear()
    full = replace(task, dino_strength=1.0, consistency=1.0, color_lock="wavelet", adaptive=0.5)
    orders = {
        "plain": replace(full, dino_strength=0.0, verify=False),
        "guided": replace(full, verify=False),
        "judged": replace(full, dino_strength=0.0),
    }
    model = Painter(side=SIDE, corner=0)
    replica = replica_of(model)
    guide, _ = replica.prepare(full)
    replica.refine(orders[first], guide, TileCall(0, (4,)))
    results = [replica.refine(each, guide, TileCall(1, (4,)))[0] for each in (full, *orders.values(), full)]
    np.testing.assert_array_equal(results[0], results[-1])


# ---- structure


def test_structure_restrains_change_where_it_is_and_nowhere_else(task: ImageTask) -> None:
    tokens = np.zeros((2, 2, 1), np.float16)
    tokens[:, 1] = 1  # the right half
    width, height = task.source.info.width, task.source.info.height
    level = FeatureLevel(tokens, x0=width / 4, y0=height / 4, dx=width / 2, dy=height / 2)
    task = replace(task, adaptive=1.0, verify=False)
    (free,), _ = made(Painter(), task, 4, guide=Guide())
    (held,), _ = made(Painter(), task, 4, guide=Guide(structure=level))
    (base,) = bases(task, 4)
    rect = task.grid.tile_rect(4)
    allowed = (
        1
        - level.sample((rect.x + np.arange(rect.w) + 0.5) / 2, (rect.y + np.arange(rect.h) + 0.5) / 2)[..., 0]
    )
    assert allowed.min() < 0.2 < 0.8 < allowed.max()
    change, wanted = (np.subtract(each, base, dtype=np.float64) for each in (held, free))
    whole = (free > 0) & (free < 65535)  # of the others we don't know how much was wanted
    np.testing.assert_allclose(change[whole], (allowed[..., None] * wanted)[whole], atol=2)
    half, _ = made(Painter(), replace(task, adaptive=0.5), 4, guide=Guide(structure=level))
    expected = (0.5 + 0.5 * allowed[..., None]) * wanted
    np.testing.assert_allclose(np.subtract(half[0], base, dtype=np.float64)[whole], expected[whole], atol=2)


# ---- panoramas


def test_around_a_panorama_no_place_is_the_seam(tmp_path: Path) -> None:
    """Turned by one tile, it gives the same tiles, turned; with all that is done after the model."""
    around, turn = picture(48, 96), 24
    results = []
    for shift in (0, turn):
        (folder := tmp_path / str(shift)).mkdir()
        plain = make_task(folder, np.roll(around, -shift, axis=1))
        scaling = Scaling.from_factor(96, 48, 2)
        grid = make_grid(scaling.canvas_w, scaling.canvas_h, tile=64, overlap=16, multiple=16, wrap=True)
        assert grid.xs.n_tiles == 4
        source = Wrapped(ingest_array(np.roll(around, -shift, axis=1), folder / "again.zarr"))
        task = replace(plain, source=source, scaling=scaling, grid=grid, denoise=0.3, steps=1,
                       verify=True, consistency=1.0, color_lock="wavelet", seed=3)  # fmt: skip
        guide, _ = replica_of(Quiet()).prepare(task)
        guide = replace(guide, grain=results[0][2].grain if results else guide.grain)
        pixels, records = made(Quiet(side=PLANT, above=0.5), task, *range(grid.n_tiles), guide=guide)
        results.append((pixels, records, guide))
    (before, said, _), (after, says, _) = results
    assert {"accepted"} < {r.action for r in said}
    rows = len(before) // 4
    for row in range(rows):
        for col in range(4):
            here, there = row * 4 + col, row * 4 + (col - 1) % 4
            np.testing.assert_array_equal(before[here], after[there])
            assert replace(said[here], tile=there) == says[there]


class Quiet(Painter):
    """Without noise, which belongs to places."""

    def noised(self, latents: Any, noise: Any, sigma: float) -> Any:
        return super().noised(latents, torch.zeros_like(noise), sigma)


# ---- records


def test_a_record_says_of_the_tile_what_can_be_measured_of_it(task: ImageTask) -> None:
    from dino_ray.dino.drift import Reference
    from dino_ray.fidelity.colour import colour_drift
    from dino_ray.fidelity.consistency import SourceView, consistency_psnr, source_window

    task = replace(task, consistency=1.0)
    guide, _ = replica_of(Painter()).prepare(task)
    (pixels,), (record,) = made(Painter(side=PLANT), task, 4, guide=guide)
    (base,) = bases(task, 4)

    def planes(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1).copy())

    tile, ground = planes(pixels) / 65535, planes(base) / 65535
    rect = task.grid.tile_rect(4)
    window = source_window(rect, task.scaling)
    view = SourceView(planes(task.source.read(window)) / 255, window, rect, task.scaling)
    assert record.consistency_db == pytest.approx(consistency_psnr(tile, view), abs=0.02)
    assert record.colour_drift == pytest.approx(colour_drift(tile, ground), abs=0.02)
    assert guide.calibration is not None
    drift = Reference.of(bundled_dino(), ground).drift(tile, guide.calibration.alarm)
    assert record.cosine_mean == pytest.approx(float(drift.cosines.mean()), abs=1e-4)
    assert record.cosine_min == pytest.approx(float(drift.cosines.min()), abs=1e-4)
    assert max(record.heat) / HEAT_ALARM == pytest.approx(drift.worst, abs=0.05)
    assert TileFidelity.from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False))) == record


def test_a_record_is_silent_about_consistency_where_nothing_can_be_told(tmp_path: Path) -> None:
    clear = np.dstack([picture(), np.zeros((96, 96), np.uint8)])
    task = judged_task(tmp_path, clear, consistency=1.0)
    _, (record,) = made(Painter(), task, 4)
    assert record.consistency_db is None
    assert record.cosine_min is not None


# ---- the same bytes


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Any]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def driven(engine: Engine, folder: Path, batch: int) -> tuple[str, dict[int, TileFidelity]]:
    folder.mkdir()
    task = judged_task(folder, batch=batch, dino_strength=0.5, adaptive=0.5, consistency=1.0,
                       color_lock="wavelet")  # fmt: skip
    found: dict[int, TileFidelity] = {}

    def listen(event: object) -> None:
        if isinstance(event, TilesDone):
            found.update({record.tile: record for record in event.timings.fidelity})

    guide, _ = engine.prepare(task)
    drive(engine, task, guide, listen)
    return task.canvas.sha256(), found


@pytest.mark.ray
def test_drift_is_mended_to_the_same_bytes_by_any_number_of_workers(ray_here: Any, tmp_path: Path) -> None:
    from dino_ray.engine.ray import RayEngine

    spec = painting(side=64, above=0.5)
    with LocalEngine(spec) as engine:
        digest, found = driven(engine, tmp_path / "here", batch=2)
    assert {"accepted"} < {record.action for record in found.values()}
    assert any(record.retries for record in found.values())
    for workers in (1, 2):
        with RayEngine(spec, least=workers, most=workers) as engine:
            assert driven(engine, tmp_path / f"by {workers}", batch=2) == (digest, found)
