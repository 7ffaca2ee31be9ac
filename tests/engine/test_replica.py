"""Promises of one replica: a call is one batch, which shrinks where memory is short, and ends when asked to."""

from __future__ import annotations

import gc
import logging
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import Hungry, Shade, make_task, photograph
from hypothesis import given
from hypothesis import strategies as st

from dino_ray.dino.features import FeatureLevel, FeatureMap
from dino_ray.engine.bands import LastRead
from dino_ray.engine.protocol import Guide, ImageTask, ReplicaSpec, TileCall
from dino_ray.engine.replica import Cancelled, OutOfMemory, Replica, peak_rss_mb
from dino_ray.engine.thrift import LEAST_STRIP, Thrift, is_out_of_memory
from dino_ray.plan.geometry import Rect
from dino_ray.upsample import Lanczos

FOUR = (0, 1, 2, 3)


@pytest.fixture
def task(tmp_path: Path) -> ImageTask:
    return make_task(tmp_path)


def replica_of(denoiser: Any, upsampler: Callable[[], Any] = Lanczos) -> Replica:
    return Replica(ReplicaSpec(upsampler=upsampler, denoiser=lambda: denoiser))


def refined(replica: Replica, task: ImageTask, *calls: tuple[int, ...]) -> list[np.ndarray]:
    """The pixels of all tiles of some calls."""
    return [tile for call in calls for tile in replica.refine(task, Guide(), TileCall(1, call))[0]]


# ---- batches


def test_the_tiles_of_a_call_pass_the_model_together_each_with_its_own_noise(task: ImageTask) -> None:
    model = Hungry(fits=4)
    together = refined(replica_of(model), task, FOUR)
    assert model.given == [4, 4]  # steps
    plain = refined(replica_of(Shade()), task, FOUR)
    alone = refined(replica_of(Shade()), task, *((tile,) for tile in FOUR))
    np.testing.assert_array_equal(plain, alone)  # a model of single samples makes the same of them
    assert all((a != b).any() for a, b in zip(plain, together, strict=True))  # this one shows its batch
    assert not any((a == b).all() for a, b in zip(plain[1:], plain, strict=False))


def test_a_poisoned_call_gets_the_base_of_all_its_tiles(task: ImageTask) -> None:
    pixels, _ = replica_of(Shade()).refine(task, Guide(), TileCall(1, FOUR, refine=False))
    base = Replica(ReplicaSpec(upsampler=Lanczos))
    np.testing.assert_array_equal(pixels, refined(base, task, FOUR))


def test_the_bundled_models_batches_make_what_its_single_tiles_make(tmp_path: Path) -> None:
    from dino_ray.diffusion import bundled

    model = bundled.load()
    task = make_task(tmp_path, photograph(96, 96), tile=64)
    task = ImageTask(
        task.source, task.scaling, task.grid, task.canvas, denoise=0.5, steps=2, dino_strength=0.5, seed=3
    )
    replica = replica_of(model)
    guide = Guide(_features(96, 96, (model.description.dino_dim or 0) // 2))
    together, _ = replica.refine(task, guide, TileCall(1, FOUR))
    alone = [replica.refine(task, guide, TileCall(1, (tile,)))[0][0] for tile in FOUR]
    apart = np.abs(np.subtract(together, alone, dtype=np.int64)).max()
    assert apart <= 3  # of 65,535: a matrix product may sum in another order
    swapped, _ = replica.refine(task, guide, TileCall(1, (1, 0, 3, 2)))
    assert np.abs(np.subtract(swapped, [together[i] for i in (1, 0, 3, 2)], dtype=np.int64)).max() <= 3
    without, _ = replica.refine(task, Guide(), TileCall(1, FOUR))
    assert np.abs(np.subtract(together, without, dtype=np.int64)).max() > 100  # the features reach it


def _features(width: int, height: int, dim: int) -> FeatureMap:
    rng = np.random.default_rng(5)

    def level(side: int) -> FeatureLevel:
        tokens = rng.standard_normal((side, side, dim)).astype(np.float16)
        dx, dy = width / side, height / side
        return FeatureLevel(tokens, x0=dx / 2, y0=dy / 2, dx=dx, dy=dy)

    return FeatureMap("test", width, height, coarse=level(4), fine=level(7))


# ---- memory


@pytest.mark.parametrize("stage", ["encode", "predict", "decode"])
def test_out_of_memory_halves_the_batch_for_good(
    task: ImageTask, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Hungry(fits=2, stage=stage)
    replica = replica_of(model)
    with caplog.at_level(logging.WARNING):
        pixels, timings = replica.refine(task, Guide(), TileCall(1, FOUR))
    assert timings.measures == ("batches of 2",)
    (line,) = caplog.messages
    assert "CUDA out of memory" in line
    assert line.endswith("from now on: batches of 2")
    np.testing.assert_array_equal(pixels, refined(replica_of(Hungry(fits=4)), task, (0, 1), (2, 3)))

    model.given.clear()
    again = refined(replica, task, FOUR)
    assert set(model.given) == {2}
    np.testing.assert_array_equal(again, pixels)


def test_where_one_tile_does_not_fit_the_model_saves_memory_until_it_has_no_measure_left(
    task: ImageTask,
) -> None:
    model = Hungry(fits=-1, measures=["VAE tiling of 512 px", "VAE tiling of 256 px"])
    pixels, timings = replica_of(model).refine(task, Guide(), TileCall(1, FOUR))
    assert timings.measures == ("batches of 1", "VAE tiling of 512 px", "VAE tiling of 256 px")
    assert model.given[:5] == [4, 2, 1, 1, 1]
    np.testing.assert_array_equal(
        pixels, refined(replica_of(Hungry(fits=4)), task, *((tile,) for tile in FOUR))
    )
    with pytest.raises(OutOfMemory, match="CUDA out of memory"):
        refined(replica_of(Hungry(fits=-1, measures=["one"])), task, FOUR)


def test_a_tile_that_never_fits_leaves_a_replica_that_refines_others(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    replica = replica_of(Hungry(fits=0, above=0.8))  # only the first tile has a bright spot
    with pytest.raises(OutOfMemory):
        refined(replica, task, (0,))
    np.testing.assert_array_equal(
        refined(replica, task, (1,)), refined(replica_of(Hungry(fits=1)), task, (1,))
    )


class Hoarder(Shade):
    """Keeps its tensors in a cycle of frames and errors, as models with hooks do; counts those that live."""

    def __init__(self) -> None:
        self.alive: list[weakref.ref[torch.Tensor]] = []
        self.alive_before: list[int] = []

    def predict(self, x: torch.Tensor, sigma: float, conditioning: Any) -> torch.Tensor:
        self.alive_before.append(sum(ref() is not None for ref in self.alive))
        if len(x) == 1:
            return super().predict(x, sigma, conditioning)
        activations = x * 2
        self.alive += [weakref.ref(activations), weakref.ref(x)]
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError as error:
            held = error
            raise RuntimeError("CUDA out of memory") from held


def test_nothing_of_a_failed_attempt_is_kept_when_the_next_one_starts(task: ImageTask) -> None:
    model = Hoarder()
    gc.disable()  # so that nothing is found by chance
    try:
        refined(replica_of(model), task, FOUR)
    finally:
        gc.enable()
    assert len(model.alive) == 4
    assert model.alive_before == [0] * len(model.alive_before)


@given(st.lists(st.integers(), max_size=40), st.integers(1, 9))
def test_every_item_is_worked_on_once_and_in_order_whatever_fits(items: list[int], fits: int) -> None:
    sizes: list[int] = []

    def work(part: Sequence[int]) -> list[int]:
        sizes.append(len(part))
        if len(part) > fits:
            raise torch.OutOfMemoryError
        return [-item for item in part]

    thrift = Thrift()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "dino_ray.engine.thrift.free", lambda: None
        )  # which collects all this process's garbage
        assert thrift.in_batches(items, work, lambda: None) == [-item for item in items]
    assert sum(size for size in sizes if size <= fits) == len(items)
    assert sizes[: sum(size > fits for size in sizes)] == [size for size in sizes if size > fits], (
        "tried again"
    )
    assert bool(thrift.measures) == (len(items) > fits)


def test_other_errors_take_no_measure(task: ImageTask) -> None:
    class Broken(Shade):
        def predict(self, *args: Any) -> torch.Tensor:
            raise RuntimeError("the size of tensor a must match the size of tensor b")

    replica = replica_of(Broken())
    with pytest.raises(RuntimeError, match="size of tensor"):
        refined(replica, task, FOUR)
    _, timings = replica.refine(task, Guide(), TileCall(2, FOUR, refine=False))
    assert timings.measures == ()


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


@dataclass
class Low(Lanczos):
    """Has memory for so many rows at once."""

    rows: int

    def __call__(self, window: Any, window_rect: Any, rect: Rect, scaling: Any) -> np.ndarray:
        if rect.h > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(window, window_rect, rect, scaling)


def test_a_base_that_does_not_fit_is_made_in_strips_of_the_same_pixels(tmp_path: Path) -> None:
    task = make_task(tmp_path, photograph(200, 100, bands=4), tile=320)
    low = Replica(ReplicaSpec(upsampler=lambda: Low(90)))
    pixels, timings = low.refine(task, Guide(), TileCall(1, (0,)))
    assert timings.measures == ("base in 4 strips",)
    np.testing.assert_array_equal(pixels, refined(Replica(ReplicaSpec(upsampler=Lanczos)), task, (0,)))
    with pytest.raises(OutOfMemory):
        refined(Replica(ReplicaSpec(upsampler=lambda: Low(LEAST_STRIP - 1))), task, (0,))


# ---- the end, when asked for


@pytest.mark.parametrize("asked", range(12))
def test_a_call_ends_within_a_step_of_being_asked_to(task: ImageTask, asked: int) -> None:
    model, times = Hungry(fits=4), iter(range(99))

    def stop() -> bool:
        return next(times) == asked

    replica = replica_of(model)
    questions = 2 + 1 + task.steps + 1 + 2  # bases, encode, steps, decode, verification of each
    if asked >= questions:
        replica.refine(task, Guide(), TileCall(1, (0, 1)), stop)
        return
    with pytest.raises(Cancelled):
        replica.refine(task, Guide(), TileCall(1, (0, 1)), stop)
    assert len(model.given) == max(0, min(asked - 3, task.steps))
    np.testing.assert_array_equal(  # and the replica is as good as new
        refined(replica, task, (0, 1)), refined(replica_of(Hungry(fits=4)), task, (0, 1))
    )


def test_preparation_ends_when_asked_to(tmp_path: Path) -> None:
    from dino_ray.dino import loading

    task = make_task(tmp_path)
    task = ImageTask(task.source, task.scaling, task.grid, task.canvas, dino_tokens=True, dino_strength=1)
    replica = Replica(ReplicaSpec(upsampler=Lanczos, dino=lambda: loading.load("bundled")))
    with pytest.raises(Cancelled):
        replica.prepare(task, stop=lambda: True)
    guide, _ = replica.prepare(task)
    assert guide.features is not None


# ---- its peak


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is nothing to compare with")
def test_the_peak_follows_what_the_process_holds() -> None:
    before = peak_rss_mb()
    ballast = np.ones(int(before * 1e6) + 200_000_000, np.uint8)
    assert peak_rss_mb() > before + 190
    del ballast
    assert peak_rss_mb() > before + 190


# ---- its reading


def test_a_window_within_the_last_one_is_cut_out_of_it() -> None:
    read: list[Rect] = []
    pixels = np.arange(40 * 50).reshape(40, 50)

    def source(rect: Rect) -> np.ndarray:
        read.append(rect)
        return pixels[rect.slices]

    windows = LastRead(source)
    for rect in (Rect(5, 5, 30, 30), Rect(10, 6, 9, 29), Rect(5, 5, 30, 30)):
        np.testing.assert_array_equal(windows(rect), pixels[rect.slices])
    assert len(read) == 1
    windows(Rect(4, 10, 5, 5))
    assert len(read) == 2
