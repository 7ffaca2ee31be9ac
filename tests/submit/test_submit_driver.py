"""Promises of a job's driver on the cluster's side: whatever ends it, it says so and leaves nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dino_ray.errors import JobError
from dino_ray.submit import driver, notes, parcels
from dino_ray.submit.order import Order, Source, Target
from dino_ray.submit.parcels import mail

JOB = "upscale-photo-0"
CONTENT = b"a photograph"


def order(**changes: Any) -> Order:
    images = (
        (Source("photo.png", "my/photo.png", len(CONTENT)), Target("out.png", "my/out.png", sent=True)),
    )
    return Order(**{"folder": "00ff00ff", "images": images, **changes})


class Box(dict[str, bytes]):
    """The cluster's store; what is fetched is acknowledged at once."""

    def put(self, name: str, content: bytes) -> None:
        self[name] = content

    def holds(self, name: str) -> bool:
        return name in self

    def take(self, name: str) -> bytes | None:
        return b"yes" if name == mail(JOB, "fetched") else self.pop(name, None)


@pytest.fixture
def box() -> Box:
    filled = Box({mail(JOB, "order"): order().to_json().encode()})
    path = Path(os.environ["TMPDIR"]).parent / "photo.png"
    path.write_bytes(CONTENT)
    parcels.send(str(path), len(CONTENT), filled, lambda part: mail(JOB, 0, part), check=lambda: False)
    return filled


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of the node."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "logs").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(driver, "POLL_S", 0.01)
    monkeypatch.setattr(driver, "ORDER_S", 0.05)
    monkeypatch.setattr(parcels, "PATIENCE_S", 0.2)
    return tmp_path


def run(
    box: Box, room: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], int]
) -> tuple[int, list[Any]]:
    said: list[Any] = []
    monkeypatch.setattr(driver, "_work", lambda order, folder, say: work(folder))
    code = driver.main(JOB, said.append, box, room / "logs")
    return code, said


def left(room: Path) -> list[str]:
    return [str(path) for path in room.rglob("*") if path.parent != room and path.name != f"dino-ray-{os.geteuid()}"
            and path != room / "logs" / "dino-ray"]  # fmt: skip


def upscale(folder: Path) -> int:
    assert (folder / "in" / "0" / "photo.png").read_bytes() == CONTENT
    (folder / "out" / "0" / "out.png").write_bytes(b"larger")
    return 0


def test_a_result_is_offered_where_the_dashboard_sees_it_and_gone_once_it_is_fetched(
    box: Box, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Watching(Box):
        def take(self, name: str) -> bytes | None:
            if name == mail(JOB, "fetched"):
                seen.append((room / "logs" / "dino-ray" / JOB / "0").read_bytes())
            return super().take(name)

    code, said = run(Watching(box), room, monkeypatch, upscale)
    assert code == 0
    assert seen == [b"larger"]
    ready = next(note for note in said if isinstance(note, notes.Ready))
    (parcel,) = ready.parcels
    assert (parcel.image, parcel.name, parcel.size, parcel.packed) == (0, f"dino-ray/{JOB}/0", 6, False)
    assert said[-1] == notes.Ended(0)
    assert left(room) == []


def test_several_files_of_a_result_are_one_archive(
    box: Box, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deep_zoom(folder: Path) -> int:
        (folder / "out" / "0" / "out_files").mkdir()
        (folder / "out" / "0" / ".unfinished").touch()
        (folder / "out" / "0" / "out.png.dino-ray").mkdir()
        return upscale(folder)

    _, said = run(box, room, monkeypatch, deep_zoom)
    assert [parcel.packed for note in said if isinstance(note, notes.Ready) for parcel in note.parcels] == [
        True
    ]
    assert left(room) == []


def interrupted(folder: Path) -> int:
    raise KeyboardInterrupt


def failing(folder: Path) -> int:
    raise JobError("the model burst")


def killed(folder: Path) -> int:
    raise RuntimeError("something else")


@pytest.mark.parametrize(("work", "code"), [(interrupted, 130), (failing, 1), (killed, 1)])
def test_whatever_ends_the_work_is_said_and_leaves_nothing(
    box: Box, room: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], int], code: int
) -> None:
    found, said = run(box, room, monkeypatch, work)
    assert found == code
    assert said[-1] == notes.Ended(code)
    assert isinstance(said[-2], notes.Interrupted if code == 130 else notes.ImageFailed)
    assert left(room) == []


def test_an_image_that_failed_has_no_result(box: Box, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = run(box, room, monkeypatch, lambda folder: 2)
    assert code == 2
    assert not any(isinstance(note, notes.Ready) for note in said)


def test_an_order_that_is_not_there_is_not_waited_for_for_ever(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = run(Box(), room, monkeypatch, upscale)
    assert code == 1
    assert "submit again" in said[0].text


def test_an_order_of_another_version_is_refused(
    box: Box, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box[mail(JOB, "order")] = order().to_json().replace('"format": 1', '"format": 0').encode()
    code, said = run(box, room, monkeypatch, upscale)
    assert code == 2
    assert "--ship" in said[0].text


def test_an_upload_that_stops_ends_the_job(box: Box, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del box[mail(JOB, 0, "end")]
    code, said = run(box, room, monkeypatch, upscale)
    assert code == 1
    assert "went silent" in said[-2].text
    assert left(room) == []


def test_images_larger_than_the_disk_are_refused_before_they_are_sent(
    box: Box, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(room)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5))
    code, said = run(box, room, monkeypatch, upscale)
    assert code == 2
    assert "--storage" in said[-2].text


def test_what_killed_drivers_have_left_is_swept_and_what_others_hold_is_not(
    box: Box, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = room / "tmp" / f"dino-ray-{os.geteuid()}"
    for name in ("dead0000", "alive000"):
        (root / name).mkdir(parents=True)
        (root / f"{name}.lock").touch()
    with driver._held(root / "alive000.lock"):
        run(box, room, monkeypatch, upscale)
    assert sorted(path.name for path in root.iterdir()) == ["alive000", "alive000.lock"]


def test_the_same_job_folder_is_not_worked_on_twice(
    box: Box, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = room / "tmp" / f"dino-ray-{os.geteuid()}"
    root.mkdir()
    with driver._held(root / "00ff00ff.lock"):
        code, said = run(box, room, monkeypatch, upscale)
    assert code == 2
    assert "another job" in said[-2].text


def test_results_that_nobody_fetches_are_removed_in_the_end(
    box: Box, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "WAIT_HOURS", 0.05 / 3600)
    monkeypatch.setattr(Box, "take", lambda self, name: self.pop(name, None))
    code, said = run(box, room, monkeypatch, upscale)
    assert code == 1
    assert "nobody fetched" in said[-2].text
    assert left(room) == []


def test_the_driver_holds_no_model_and_no_connection() -> None:
    """It waits for days."""
    code = "import sys, dino_ray.submit.driver; print([m for m in ('torch', 'ray', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_work_ends_with_its_driver(tmp_path: Path) -> None:
    """Its driver may be killed at any moment, and nobody else would end it."""
    code = (
        "import sys, threading, signal, time\n"
        "from dino_ray.stopping import interrupt; from dino_ray.submit import work\n"
        "signal.signal(signal.SIGTERM, interrupt); sys.stdin.readline()\n"
        "threading.Thread(target=work._end_with_driver, daemon=True).start(); print('on', flush=True)\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("an order\n")
        process.stdin.flush()
        assert process.stdout.readline() == "on\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(30) == 130
