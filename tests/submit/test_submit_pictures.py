"""Promises of the pictures that go with a submitted job's report: they come home with it, whatever way results take."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import judging
import numpy as np
import pytest
from PIL import Image

from dino_ray import places
from dino_ray.config import UpscaleConfig
from dino_ray.errors import JobError
from dino_ray.submit import driver, notes, parcels, pictures, results, work
from dino_ray.submit.dashboard import Dashboard
from dino_ray.submit.follow import Told
from dino_ray.submit.order import Order, Source, Target
from dino_ray.submit.parcels import mail
from dino_ray.submit.record import Record

JOB = "upscale-photo-0"


class Links:
    """A dashboard that serves a folder of logs; acknowledges everything."""

    def __init__(self, logs: Path, *, over: bool = False) -> None:
        self.logs, self.over, self.node = logs, over, "head"
        self.fetched = False

    def job(self, job: str) -> Links:
        return self

    def file(self, node: str, name: str, block: int) -> Iterator[bytes]:
        yield (self.logs / name).read_bytes()

    def holds(self, name: str) -> bool:
        return False

    def put(self, name: str, content: bytes) -> None:
        self.fetched = name == mail(JOB, "fetched")


class Quiet:
    """Nobody looks; what is said is kept."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def fetching(self, name: str, n_bytes: int, of: int) -> None:
        pass

    def said(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Order:
    """An image that all see, to be upscaled by replicas that judge their tiles, in this process."""
    judging.install(monkeypatch.setattr)
    parse = UpscaleConfig.parse
    monkeypatch.setattr(work.UpscaleConfig, "parse", lambda options: parse({**options, "address": "none"}))
    y, x = np.mgrid[:80, :80]
    Image.fromarray(np.stack([x, y, x + y], axis=-1).astype(np.uint8)).save(tmp_path / "in.png")
    (tmp_path / "there").mkdir()
    (tmp_path / "home").mkdir()
    source, target = str(tmp_path / "in.png"), str(tmp_path / "out.png")
    options = {"tile": 64, "overlap": 16, "dino_strength": 0.0, "batch": 1}
    return Order("00ff00ff", ((Source(source, source), Target(target, target)),), options, pictures=True)


def worked(order: Order, folder: Path) -> list[Any]:
    stream = io.StringIO()
    assert work.main(order, str(folder), stream) == 0, stream.getvalue()
    return [notes.parse(line) for line in stream.getvalue().splitlines()]


def home(
    tmp_path: Path, order: Order, report: str, *, over: bool = False
) -> tuple[dict[str, Any], Quiet, Links]:
    """Do an order, offer what came of it, fetch that, and write the report."""
    told = Told(images=[(source.shown, target.shown) for source, target in order.images])
    for note in worked(order, tmp_path / "there"):
        if isinstance(note, notes.ReportPiece):
            told.take_piece(note, report)
    dashboard, show = Links(tmp_path / "logs", over=over), Quiet()
    remembered = Record(JOB, "http://head:8265", (None,), report=report)
    with driver._offered(order, tmp_path / "there", tmp_path / "logs" / "dino-ray" / JOB) as offered:
        assert [parcel.picture for parcel in offered] == ["heat.png", "worst.png"]
        told.ready = notes.parse(notes.to_line(notes.Ready(tuple(offered), 1.0)))  # type: ignore[assignment]
        results.fetch_all(cast(Dashboard, dashboard), remembered, told, show)  # type: ignore[arg-type]
    results.write_report(remembered, told)
    return json.loads(places.read_bytes(report)), show, dashboard


def test_pictures_come_home_beside_the_report_that_names_them(tmp_path: Path, ordered: Order) -> None:
    report = tmp_path / "home" / "my report.json"
    said, show, dashboard = home(tmp_path, ordered, str(report))
    for name, kind in (("my report-heat.png", "heat_map"), ("my report-worst.png", "worst_tiles")):
        assert said["fidelity"]["files"][kind] == str(tmp_path / "home" / name)
        with Image.open(tmp_path / "home" / name) as picture:
            assert picture.format == "PNG"
    assert dashboard.fetched
    assert show.texts == []


def test_pictures_follow_a_report_to_an_address(tmp_path: Path, ordered: Order) -> None:
    said, _, _ = home(tmp_path, ordered, "memory://submitted/r.json")
    assert said["fidelity"]["files"]["heat_map"] == "memory://submitted/r-heat.png"
    assert places.read_bytes("memory://submitted/r-heat.png").startswith(b"\x89PNG")


def test_pictures_that_do_not_arrive_cost_no_result(
    tmp_path: Path, ordered: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "replace_file", failing)
    monkeypatch.setattr(results, "RETRY_S", 0.0)
    _, show, dashboard = home(tmp_path, ordered, str(tmp_path / "home" / "r.json"))
    assert dashboard.fetched
    assert len(show.texts) == 2
    assert "r-heat.png" in show.texts[0]


def failing(*args: Any) -> None:
    raise JobError(f"{args[-1]}: did not arrive")


def test_a_job_that_is_over_has_lost_its_pictures_and_not_its_results(tmp_path: Path, ordered: Order) -> None:
    _, _, dashboard = home(tmp_path, ordered, str(tmp_path / "home" / "r.json"), over=True)
    assert not dashboard.fetched
    assert not list((tmp_path / "home").glob("*.png"))


def test_who_writes_no_report_gets_no_pictures(tmp_path: Path, ordered: Order) -> None:
    plain = Order(ordered.folder, ordered.images, ordered.config)
    told = [note for note in worked(plain, tmp_path / "there") if isinstance(note, notes.ReportPiece)]
    assert json.loads("".join(piece.text for piece in told))["fidelity"]["files"] == {}
    assert list(pictures.made(tmp_path / "there")) == []


def test_pictures_alone_are_not_missed_if_nobody_fetches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty:
        def take(self, name: str) -> None:
            return None

    monkeypatch.setattr(driver, "WAIT_HOURS", 0.0)
    driver._await_fetched(JOB, Empty(), missed=False)
    with pytest.raises(JobError, match="nobody fetched"):
        driver._await_fetched(JOB, Empty(), missed=True)


@pytest.mark.parametrize("end", ["../x.png", "a/b.png", "heat.exe", "", "a\\b.png"])
def test_no_picture_leads_out_of_the_reports_folder(end: str) -> None:
    with pytest.raises(JobError, match="no name of a picture"):
        pictures.place_here("/home/me/r.json", end)


def test_what_was_found_of_tiles_is_in_the_events_that_come_home() -> None:
    from dino_ray.engine.protocol import TileCall, TilesDone, Timings
    from dino_ray.report.progress import json_lines

    stream = io.StringIO()
    json_lines(stream)(TilesDone(TileCall(1, (3, 4)), 0, (), Timings({}, fidelity=(judging.judged(3),))))
    event = notes.parse(stream.getvalue().strip())
    assert isinstance(event, TilesDone)
    (record,) = event.timings.fidelity
    assert (record.tile, record.action, record.alarm, record.heat) == (3, "kept", 0.15, ())
