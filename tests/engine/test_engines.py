"""Promises of the engines: the same bytes from any of them, and from any that lost something on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from fakes import Hungry, Shade, Sociable, accident, encode_noting, make_task, photograph, shade

from dino_ray.engine.drive import drive
from dino_ray.engine.local import LocalEngine
from dino_ray.engine.protocol import (
    CellDone,
    Engine,
    JobEvent,
    ReplicaLoading,
    ReplicaLost,
    ReplicaPlaced,
    ReplicaReady,
    ReplicaSpec,
    TileCall,
    TilePoisoned,
    TilesDone,
    TilesLost,
    TilesStarted,
)
from dino_ray.engine.replica import peak_rss_mb
from dino_ray.errors import JobError, UsageError
from dino_ray.plan.geometry import Rect
from dino_ray.upsample import Lanczos


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Any]:
    """One Ray for the module: engines join the one that runs."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where workers find the fakes
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def run(
    engine: Engine, folder: Path, pixels: np.ndarray | None = None, batch: int = 1
) -> tuple[str, list[JobEvent]]:
    folder.mkdir(exist_ok=True)
    task = make_task(folder, pixels, batch=batch)
    events: list[JobEvent] = []
    guide, _ = engine.prepare(task)
    events.append(drive(engine, task, guide, events.append))
    return task.canvas.sha256(), events


def ray_engine(spec: ReplicaSpec, workers: int = 2) -> Engine:
    from dino_ray.engine.ray import RayEngine

    return RayEngine(spec, least=workers, most=workers)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    with LocalEngine(shade()) as engine:
        return run(engine, tmp_path_factory.mktemp("expected"))[0]


def test_every_tile_and_cell_is_done_once(tmp_path: Path) -> None:
    with LocalEngine(shade()) as engine:
        _, events = run(engine, tmp_path)
    grid = make_task(tmp_path).grid
    assert sorted(t for e in events if isinstance(e, TilesDone) for t in e.call.tiles) == list(
        range(grid.n_tiles)
    )
    assert sorted(e.cell for e in events if isinstance(e, CellDone)) == list(range(grid.n_cells))


def test_beside_a_gpu_this_process_merges_and_prepares_and_the_bytes_are_the_same(
    tmp_path: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dino_ray.engine.replica import Replica

    monkeypatch.setattr(Replica, "overlaps", True)
    where: set[str] = set()

    class Placed(Shade):
        def encode(self, pixels: Any) -> Any:
            where.add(threading.current_thread().name)
            return super().encode(pixels)

    with LocalEngine(replace(shade(), denoiser=Placed)) as engine:
        assert run(engine, tmp_path / "a")[0] == expected
        assert run(engine, tmp_path / "b")[0] == expected
    assert where
    assert threading.main_thread().name not in where


def test_calls_beside_this_process_can_be_cancelled_given_up_and_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dino_ray.engine.replica import Replica

    monkeypatch.setattr(Replica, "overlaps", True)
    entered, go = threading.Event(), threading.Event()

    class Slow(Shade):
        def predict(self, *args: Any) -> Any:
            entered.set()
            assert go.wait(30)
            return super().predict(*args)

    task = make_task(tmp_path)
    with LocalEngine(replace(shade(), denoiser=Slow)) as engine:
        guide, _ = engine.prepare(task)
        while not engine.ready:
            engine.wait(1)

        def begin(number: int) -> TileCall:
            entered.clear()
            go.clear()
            call = TileCall(number, (0,))
            engine.submit_tiles(task, guide, call, 0)
            engine.wait(0.01)
            assert entered.wait(30)
            return call

        cancelled = begin(1)
        engine.cancel(cancelled, 0)
        go.set()
        ended = _first(engine)
        assert isinstance(ended, TilesLost)
        assert (ended.call, ended.fault) == (cancelled, "cancelled")

        given_up = begin(2)
        engine.replace(0, "does not answer")
        events = engine.wait(1)
        assert TilesLost(given_up, 0, "does not answer", "died") in events
        go.set()
        while not engine.ready:
            engine.wait(1)

        begin(3)
        threading.Timer(0.05, go.set).start()
        engine.settle()
        assert engine.wait(0.01) == []


def _first(engine: Engine) -> Any:
    """The next event."""
    for _ in range(100):
        if events := engine.wait(1):
            return events[0]
    raise AssertionError("nothing happened")


def test_the_model_acts(tmp_path: Path, expected: str) -> None:
    with LocalEngine(ReplicaSpec(upsampler=shade().upsampler)) as engine:
        assert run(engine, tmp_path)[0] != expected


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_grey_stays_grey_and_alpha_stays_the_bases(tmp_path: Path, bands: int) -> None:
    pixels = photograph(bands=bands)
    canvases = []
    for spec in (shade(), ReplicaSpec(upsampler=shade().upsampler)):
        folder = tmp_path / str(len(canvases))
        with LocalEngine(spec) as engine:
            run(engine, folder, pixels)
        canvas = make_canvas(folder)
        canvases.append(canvas.read(Rect(0, 0, canvas.width, canvas.height)))
    refined, base = canvases
    assert refined.shape == base.shape == (180, 280, bands)
    colour = bands - (bands in (2, 4))
    assert (refined[..., colour:] == base[..., colour:]).all()
    assert (refined[..., :colour] != base[..., :colour]).any()


def make_canvas(folder: Path) -> Any:
    from dino_ray.raster.canvas import Canvas

    return Canvas.open(folder / "canvas.zarr")


def test_a_tile_that_always_fails_is_named_and_shows_the_base(tmp_path: Path) -> None:
    # 0.8 lies between the picture and its spot, with room for the noise.
    with LocalEngine(accident(tmp_path, above=0.8, times=99, kill=False)) as engine:
        _, events = run(engine, tmp_path)
    assert {e.tile for e in events if isinstance(e, TilePoisoned)} == {0}
    assert "too bright" in next(e.reason for e in events if isinstance(e, TilePoisoned))
    with LocalEngine(ReplicaSpec(upsampler=shade().upsampler)) as engine:
        run(engine, tmp_path / "base")
    spot = Rect(18, 18, 12, 12)
    assert (make_canvas(tmp_path).read(spot) == make_canvas(tmp_path / "base").read(spot)).all()


def test_a_model_that_fails_on_every_tile_ends_the_job_with_its_reason(tmp_path: Path) -> None:
    with (
        LocalEngine(accident(tmp_path, above=-9, times=999, kill=False)) as engine,
        pytest.raises(JobError, match=r"every tile.*too bright"),
    ):
        run(engine, tmp_path)


@pytest.mark.ray
@pytest.mark.parametrize(("workers", "batch"), [(1, 4), (2, 1)])
def test_ray_gives_the_bytes_of_this_process(
    ray_here: Any, tmp_path: Path, expected: str, workers: int, batch: int
) -> None:
    with ray_engine(shade(), workers) as engine:
        assert run(engine, tmp_path, batch=batch)[0] == expected


@pytest.mark.ray
def test_replicas_stay_warm_from_image_to_image(ray_here: Any, tmp_path: Path, expected: str) -> None:
    with ray_engine(shade()) as engine:
        first, _ = run(engine, tmp_path / "a")
        ready = set(engine.ready)
        second, events = run(engine, tmp_path / "b")
    assert first == second == expected
    assert ready
    assert not ready & {e.replica for e in events if isinstance(e, ReplicaReady)}, "a replica loaded again"


@pytest.mark.ray
def test_a_tile_that_kills_its_replica_twice_is_redone_and_the_bytes_are_the_same(
    ray_here: Any, tmp_path: Path, expected: str
) -> None:
    with ray_engine(accident(tmp_path, above=0.8, times=2, kill=True)) as engine:
        digest, events = run(engine, tmp_path)
    assert any(isinstance(e, ReplicaLost) for e in events)
    assert digest == expected


@pytest.mark.ray
def test_a_replica_killed_from_outside_costs_time_and_no_pixel(
    ray_here: Any, tmp_path: Path, expected: str
) -> None:
    with ray_engine(shade()) as engine:
        task = make_task(tmp_path)
        guide, _ = engine.prepare(task)
        events: list[JobEvent] = []

        def listen(event: JobEvent) -> None:
            if isinstance(event, TilesDone) and not any(isinstance(e, TilesDone) for e in events):
                pid = ray_here.get(engine.members[event.replica].actor.pid.remote())  # type: ignore[attr-defined]
                os.kill(pid, signal.SIGKILL)
            events.append(event)

        drive(engine, task, guide, listen)
    assert any(isinstance(e, ReplicaLost) for e in events)
    assert task.canvas.sha256() == expected


@pytest.mark.ray
def test_models_that_do_not_load_end_the_job_with_their_reason(ray_here: Any, tmp_path: Path) -> None:
    with (
        ray_engine(ReplicaSpec(upsampler=shade().upsampler, denoiser=_no_model)) as engine,
        pytest.raises(JobError, match=r"no replica is left: .*no such weights"),
    ):
        run(engine, tmp_path)


def test_replicas_lost_for_good_end_the_next_image_at_once_too(tmp_path: Path) -> None:
    with LocalEngine(ReplicaSpec(upsampler=shade().upsampler, denoiser=_no_model)) as engine:
        for image in ("a", "b"):
            with pytest.raises(JobError, match=r"no replica is left: .*no such weights"):
                run(engine, tmp_path / image)


class Silent(LocalEngine):
    """Takes work and never answers."""

    ready = (0,)

    def submit_tiles(self, *args: Any) -> None:
        pass


def test_a_job_in_which_nothing_happens_ends_with_a_diagnosis(tmp_path: Path) -> None:
    engine = Silent(shade())
    engine.ready = (0,)
    task = make_task(tmp_path)
    seconds = iter(range(0, 10**6, 600))
    with pytest.raises(JobError, match=r"nothing got done for .*in flight.* replica.* 0: "):
        drive(engine, task, None, lambda event: None, clock=lambda: next(seconds))


def _no_model() -> Any:
    raise FileNotFoundError("no such weights")


@pytest.mark.ray
def test_more_workers_than_the_machine_carries_are_refused_at_once(ray_here: Any) -> None:
    with pytest.raises(UsageError, match=r"--workers 9: .*room for 2"), ray_engine(shade(), workers=9):
        pass


class Counting:
    """An upsampler that says how many threads torch has where it runs."""

    linear = True

    def halo(self, scaling: object) -> int:
        return 0

    def __call__(self, window: np.ndarray, window_rect: Rect, rect: Rect, scaling: object) -> np.ndarray:
        import torch

        return np.full((rect.h, rect.w, window.shape[2]), torch.get_num_threads() / 255, np.float32)


def test_torch_has_the_threads_that_were_asked_for_and_then_what_it_had(tmp_path: Path) -> None:
    import torch

    before = torch.get_num_threads()
    with LocalEngine(ReplicaSpec(upsampler=Counting, threads=3)) as engine:
        run(engine, tmp_path)
    assert torch.get_num_threads() == before
    canvas = make_canvas(tmp_path)
    assert (canvas.read(Rect(0, 0, canvas.width, canvas.height)) == 3).all()


@pytest.mark.ray
def test_a_replica_that_dies_while_it_loads_is_given_up_at_last(ray_here: Any, tmp_path: Path) -> None:
    with (
        ray_engine(ReplicaSpec(upsampler=shade().upsampler, denoiser=_dies), workers=1) as engine,
        pytest.raises(JobError, match=r"no replica is left"),
    ):
        run(engine, tmp_path)


def _dies() -> Any:
    os._exit(1)


@pytest.mark.ray
def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    from dino_ray.engine.ray.cluster import _check_reachable

    with pytest.raises(UsageError, match=r"--address 127\.0\.0\.1:1: nothing answers there"):
        _check_reachable("127.0.0.1:1")
    for unprobed in ("local", "auto", "ray://somewhere:1"):
        _check_reachable(unprobed)


class Endless(Lanczos):
    """Never done with its tile."""

    def __call__(self, *args: Any) -> Any:
        while True:
            pass


@pytest.mark.ray
def test_an_interrupt_ends_the_replicas_in_the_middle_of_a_tile(ray_here: Any, tmp_path: Path) -> None:
    def listen(event: JobEvent) -> None:
        if isinstance(event, TilesStarted):
            raise KeyboardInterrupt

    from dino_ray.engine.ray import RayEngine

    replicas: list[psutil.Process] = []

    def work() -> None:
        with RayEngine(ReplicaSpec(upsampler=Endless, torch=False), least=2, most=2) as engine:
            pids = ray_here.get([member.actor.pid.remote() for member in engine.members.values()])
            replicas.extend(map(psutil.Process, pids))
            task = make_task(tmp_path)
            drive(engine, task, engine.prepare(task)[0], listen)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(replicas) == 2
    _, alive = psutil.wait_procs(replicas, timeout=4)
    assert not alive


def test_a_replica_says_what_its_models_run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class OnGpu(Shade):
        device = torch.device("cuda:0")

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")
    for spec, name in ((shade(), "cpu"), (replace(shade(), denoiser=OnGpu), "GPU cuda:0")):
        with LocalEngine(spec) as engine:
            engine.prepare(make_task(tmp_path))
            assert [type(event) for event in engine.wait(0)] == [ReplicaPlaced, ReplicaLoading]
            (ready,) = engine.wait(0)
        assert ready == ReplicaReady(0, ready.timings, name)


def started(engine: LocalEngine, folder: Path, *calls: TileCall) -> None:
    """Have a ready engine start some calls."""
    task = make_task(folder)
    guide, _ = engine.prepare(task)
    while not engine.ready:
        engine.wait(0)
    for call in calls:
        engine.submit_tiles(engine.share(task), guide, call, 0)


def test_a_cancelled_call_ends_as_lost_and_the_others_are_done(tmp_path: Path) -> None:
    first, second = TileCall(1, (0, 1)), TileCall(2, (2,))
    with LocalEngine(shade()) as engine:
        started(engine, tmp_path, first, second)
        engine.cancel(first, 0)
        engine.cancel(TileCall(9, (0,)), 0)  # has ended long ago
        assert engine.wait(0) == [TilesLost(first, 0, "cancelled", "cancelled")]
        (done,) = engine.wait(0)
        assert isinstance(done, TilesDone)
        assert done.call == second
        assert engine.wait(0) == []


def test_a_replaced_replica_loses_its_calls_and_loads_anew(tmp_path: Path) -> None:
    loaded: list[int] = []

    def load() -> Shade:
        loaded.append(1)
        return Shade()

    call = TileCall(1, (0,))
    with LocalEngine(replace(shade(), denoiser=load)) as engine:
        started(engine, tmp_path, call)
        engine.replace(0, "silent")
        assert not engine.ready
        lost, gone, *come = engine.wait(0)
        assert lost == TilesLost(call, 0, "silent", "died")
        assert gone == ReplicaLost(0, "silent")
        assert [type(event) for event in come] == [ReplicaPlaced, ReplicaLoading]
        (ready,) = engine.wait(0)
        assert isinstance(ready, ReplicaReady)
    assert len(loaded) == 2


def test_settling_forgets_work_and_keeps_the_replica(tmp_path: Path) -> None:
    with LocalEngine(shade()) as engine:
        started(engine, tmp_path, TileCall(1, (0,)), TileCall(2, (1,)))
        engine.cancel(TileCall(2, (1,)), 0)
        engine.settle()
        assert engine.wait(0) == []
        assert list(engine.ready) == [0]


def test_no_model_outlives_the_engine(tmp_path: Path) -> None:
    models: list[weakref.ref[Shade]] = []

    def load() -> Shade:
        model = Shade()
        models.append(weakref.ref(model))
        return model

    with LocalEngine(replace(shade(), denoiser=load)) as engine:
        run(engine, tmp_path)
        assert models[0]() is not None
    assert models[0]() is None


def test_batches_make_the_same_image_in_fewer_calls(tmp_path: Path, expected: str) -> None:
    with LocalEngine(shade()) as engine:  # whose model makes the same of a tile in any company
        digest, events = run(engine, tmp_path, batch=4)
    done = [event.call.tiles for event in events if isinstance(event, TilesDone)]
    tiles = make_task(tmp_path).grid.n_tiles
    assert digest == expected
    assert sorted(tile for call in done for tile in call) == list(range(tiles))
    assert max(map(len, done)) == 4
    assert len(done) <= tiles / 2


@pytest.mark.parametrize("batch", [1, 4])
def test_a_tile_that_never_fits_the_memory_is_named_and_the_others_are_refined(
    tmp_path: Path, batch: int
) -> None:
    hungry = replace(shade(), denoiser=partial(Hungry, fits=0, above=0.8))
    with LocalEngine(hungry) as engine:
        _, events = run(engine, tmp_path, batch=batch)
    (poisoned,) = [event for event in events if isinstance(event, TilePoisoned)]
    assert poisoned.tile == 0
    assert "CUDA out of memory" in poisoned.reason
    measures = {event.timings.measures for event in events if isinstance(event, TilesDone)}
    assert (("batches of 1",) in measures) is (batch > 1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel does not tell them apart")
def test_the_peak_of_a_process_leaves_out_what_its_parent_had() -> None:
    ballast = np.ones(400_000_000, np.uint8)
    script = "from dino_ray.engine.replica import peak_rss_mb; print(peak_rss_mb())"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert peak_rss_mb() > ballast.nbytes / 1e6
    assert 10 < float(child.stdout) < 400


@pytest.mark.ray
def test_text_encoders_are_loaded_by_one_replica_once(tmp_path: Path, ray_here: Any) -> None:
    for name in ("encoders", "replicas"):
        (tmp_path / name).mkdir()
    spec = ReplicaSpec(
        upsampler=Lanczos,
        denoiser=partial(
            Sociable, tmp_path / "replicas", company=2
        ),  # or one may do it all before the other is there
        text=partial(encode_noting, tmp_path / "encoders"),
    )
    with ray_engine(spec, workers=2) as engine:
        _, events = run(engine, tmp_path / "job")
    assert len({event.replica for event in events if isinstance(event, ReplicaReady)}) == 2
    assert len(list((tmp_path / "encoders").iterdir())) == 1
