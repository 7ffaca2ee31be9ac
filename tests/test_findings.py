"""Promises of what is kept of tiles' fidelity: it outlives a crash, costs no job, and goes with the job's folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from dino_ray import findings as module
from dino_ray import places
from dino_ray.errors import JobError
from dino_ray.fidelity.record import TileFidelity
from dino_ray.findings import Findings
from dino_ray.jobfolder import JobFolder, Manifest

N_TILES = 20


def folder(place: object) -> JobFolder:
    return JobFolder.open(str(place), Manifest("photo.png", "out.png", "/", {}, {"--seed": 0}), "resume")


def record(tile: int) -> TileFidelity:
    return TileFidelity(tile, "accepted", 0.5, 0.25, 0.125, 40.0, 1.5, 0.5, 0, tuple(range(64)))


def tiles(found: Findings) -> list[int]:
    return [each.tile for each in found.ledger]


def test_records_survive_a_crash_at_any_byte(tmp_path: Path) -> None:
    job = folder(tmp_path / "job")
    Findings(job, N_TILES).add([record(0), record(1)])
    job.leave(worth_keeping=True)
    kept = tmp_path / "job" / "fidelity" / "records.jsonl"
    whole = kept.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("}")]
    for cut in range(len(whole) + 1):
        kept.write_bytes(whole[:cut])
        job = folder(tmp_path / "job")
        found = Findings(job, N_TILES)
        survivors = sum(end <= cut for end in ends)
        assert tiles(found) == list(range(survivors))
        found.add([record(5)])  # not spoilt by what is torn before it
        assert tiles(Findings(job, N_TILES)) == [*range(survivors), 5]
        job.leave(worth_keeping=True)
    assert next(iter(found.ledger)) == record(0)


def test_what_a_power_cut_or_another_version_has_left_is_passed_over(tmp_path: Path) -> None:
    job = folder(tmp_path / "job")
    Findings(job, N_TILES).add([record(3)])
    with open(tmp_path / "job" / "fidelity" / "records.jsonl", "ab") as file:
        file.write(b'\n\0\0\0\n{"tile": 4}\n[]\n7\n\xff\n{"tile": 99, "action": "accepted", "heat": ""}')
    job.leave(worth_keeping=True)
    assert tiles(Findings(folder(tmp_path / "job"), N_TILES)) == [3]


def test_behind_an_address_records_come_in_few_files_and_an_early_end_writes_the_rest() -> None:
    now = [0.0]

    def work(found: Findings) -> None:
        with found:
            for tile in range(12):
                now[0] = 13.0 * tile
                found.add([record(tile)])
            assert len(places.list_files(job.fidelity)) == 2
            raise KeyboardInterrupt

    job = folder("memory://findings/job")
    try:
        with pytest.raises(KeyboardInterrupt):
            work(Findings(job, N_TILES, lambda: now[0]))
        assert len(places.list_files(job.fidelity)) == 3
        job.leave(worth_keeping=True)
        assert tiles(Findings(folder("memory://findings/job"), N_TILES)) == list(range(12))
    finally:
        job.remove()
    assert not places.list_names("memory://findings/job")


def test_a_job_that_starts_over_knows_nothing_and_one_that_ends_leaves_nothing(tmp_path: Path) -> None:
    job = folder(tmp_path / "job")
    Findings(job, N_TILES).add([record(0)])
    job.leave(worth_keeping=True)
    anew = JobFolder.open(str(tmp_path / "job"), job.manifest, "fresh")
    assert tiles(Findings(anew, N_TILES)) == []
    Findings(anew, N_TILES).add([record(0)])
    anew.finish({"output": None, "report": {}}, keep_note=True)
    assert sorted(os.listdir(tmp_path / "job")) == ["job.json", "lock"]


def test_a_job_that_keeps_nothing_writes_nothing() -> None:
    job = JobFolder.temporary(Manifest("photo.png", "", "/", {}, {}))
    Findings(job, N_TILES).add([record(0)])
    assert os.listdir(job.place) == []
    job.leave(worth_keeping=False)


def failing(number: int) -> Any:
    def fail(*args: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def test_records_that_can_not_be_kept_cost_no_job_and_are_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = folder(tmp_path / "job")
    found = Findings(job, N_TILES)
    monkeypatch.setattr(module, "open", failing(errno.EACCES), raising=False)
    found.add([record(0)])
    found.add([record(1)])
    assert len(caplog.records) == 1
    assert "the job goes on" in caplog.text
    monkeypatch.undo()
    found.add([record(2)])
    assert tiles(Findings(folder_again(job), N_TILES)) == [0, 1, 2]


def folder_again(job: JobFolder) -> JobFolder:
    job.leave(worth_keeping=True)
    return folder(job.place)


def test_records_that_can_not_be_read_cost_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = folder(tmp_path / "job")
    Findings(job, N_TILES).add([record(0)])
    again = folder_again(job)
    monkeypatch.setattr(module, "open", failing(errno.EIO), raising=False)
    assert tiles(Findings(again, N_TILES)) == []
    assert "may not know the fidelity of every tile" in caplog.text


def test_a_full_disk_is_the_jobs_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Findings(folder(tmp_path / "job"), N_TILES)
    monkeypatch.setattr(module, "open", failing(errno.ENOSPC), raising=False)
    with pytest.raises(JobError, match="the disk is full"):
        found.add([record(0)])


def test_records_outlive_a_job_in_an_object_store(s3_bucket: str) -> None:
    job = folder(f"{s3_bucket}/job")
    for start in (0, 5):  # two runs, each cut short
        found = Findings(job, N_TILES)
        assert tiles(found) == list(range(start))
        found.add([record(tile) for tile in range(start, start + 5)])
        found.__exit__(KeyboardInterrupt, None, None)
        job.leave(worth_keeping=True)
        job = folder(job.place)
    assert tiles(Findings(job, N_TILES)) == list(range(10))
    job.remove()
    assert not places.list_names(job.place)
