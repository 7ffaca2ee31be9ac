"""Promises of a job's folder: what may go on, what is refused and why, what is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dino_ray.errors import UsageError
from dino_ray.jobfolder import (
    JobFolder,
    Manifest,
    check_owner,
    default_place,
    difference,
    forget,
    read_manifest,
    resumable,
)

UMASK = os.umask(0o022)
os.umask(UMASK)

PIXELS = {
    "--seed": 0,
    "--scale": 2.0,
    "--prompt": "",
    "--page": None,
    "numpy": "2.0",
    "weights": {"none": "none"},
}


def manifest(**pixels: object) -> Manifest:
    return Manifest("photo.png", "out.png", "/somewhere", {"seed": 0}, PIXELS | pixels)


def left_behind(place: Path) -> JobFolder:
    folder = JobFolder.open(str(place), manifest(), "resume")
    (place / "canvas.zarr").mkdir()
    folder.leave(worth_keeping=True)
    return folder


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"--seed": 1}, "the job in {} was made with --seed 0, now 1; "),
        ({"--scale": 4.0}, "made with --scale 2, now 4; "),
        ({"--page": 3}, "made with no --page, now 3; "),
        ({"--prompt": "a cat"}, "made with --prompt '', now a cat; "),
        ({"numpy": "2.1"}, "made with numpy 2.0, now 2.1; "),
        ({"--seed": 1, "--scale": 4.0}, "made with --seed 0, now 1, and --scale 2, now 4; "),
    ],
)
def test_a_job_that_pixels_would_differ_in_is_refused_by_name(
    tmp_path: Path, changed: dict, says: str
) -> None:
    place = tmp_path / "job"
    left_behind(place)
    with pytest.raises(UsageError) as caught:
        JobFolder.open(str(place), manifest(**changed), "resume")
    assert says.format(place) in str(caught.value)
    assert "--fresh" in str(caught.value)
    assert (place / "canvas.zarr").exists()


def test_equal_pixels_have_no_difference_whatever_json_did_to_them() -> None:
    assert difference({"a": (1, 2)}, {"a": [1, 2]}) == ""


def test_the_same_job_goes_on_and_fresh_starts_over(tmp_path: Path) -> None:
    place = tmp_path / "job"
    left_behind(place)
    going_on = JobFolder.open(str(place), manifest(), "must")
    assert going_on.resumed
    assert (place / "canvas.zarr").exists()
    going_on.leave(worth_keeping=True)
    anew = JobFolder.open(str(place), manifest(**{"--seed": 1}), "fresh")
    assert not anew.resumed
    assert not (place / "canvas.zarr").exists()


def test_a_job_that_must_be_there_is_missed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no job to resume"):
        JobFolder.open(str(tmp_path / "job"), manifest(), "must")
    assert not (tmp_path / "job").exists()


def test_another_output_is_refused(tmp_path: Path) -> None:
    left_behind(tmp_path / "job")
    with pytest.raises(UsageError, match=r"writes /somewhere/out.png, now /somewhere/other.png"):
        JobFolder.open(str(tmp_path / "job"), replace(manifest(), output="other.png"), "resume")


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UsageError, match=r"holds other files, such as holiday\.jpg"):
        JobFolder.open(str(tmp_path), manifest(), "fresh")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_what_was_there_before_stays_when_the_job_is_done(tmp_path: Path) -> None:
    mine = tmp_path / "named"
    mine.mkdir()
    JobFolder.open(str(mine), manifest(), "resume").finish({"output": None, "report": {}}, keep_note=False)
    assert list(mine.iterdir()) == []
    made = tmp_path / "made"
    JobFolder.open(str(made), manifest(), "resume").finish({"output": None, "report": {}}, keep_note=False)
    assert not made.exists()


def test_a_resumed_folder_loses_only_what_is_ours(tmp_path: Path) -> None:
    place = tmp_path / "job"
    left_behind(place)
    (place / "notes.txt").touch()
    JobFolder.open(str(place), manifest(), "resume").finish({"output": None, "report": {}}, keep_note=False)
    assert [path.name for path in place.iterdir()] == ["notes.txt"]


def test_two_processes_never_work_in_one_folder(tmp_path: Path) -> None:
    place = str(tmp_path / "job")
    code = (
        "import sys, time; from dino_ray.jobfolder import JobFolder, Manifest\n"
        "folder = JobFolder.open(sys.argv[1], Manifest('a', 'b', '/', {}, {}), 'resume')\n"
        "print('open', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, place], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline().strip() == "open"
    with pytest.raises(UsageError, match=rf"another dino-ray works there \(process {other.pid}\)"):
        JobFolder.open(place, Manifest("a", "b", "/", {}, {}), "resume")
    other.kill()  # and the lock is gone with it, however it ended
    other.wait()
    assert JobFolder.open(place, Manifest("a", "b", "/", {}, {}), "resume").resumed


def test_a_note_of_what_was_finished_outlives_the_stores_and_is_forgotten_at_the_end(tmp_path: Path) -> None:
    place = tmp_path / "job"
    folder = JobFolder.open(str(place), manifest(), "resume")
    (place / "canvas.zarr").mkdir()
    folder.finish({"output": None, "report": {}}, keep_note=True)
    assert not (place / "canvas.zarr").exists()
    noted = read_manifest(str(place))
    assert noted is not None
    assert noted.finished == {"output": None, "report": {}}
    forget(str(place))
    assert not place.exists()


def test_a_process_killed_while_it_clears_up_has_not_lost_what_it_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "job"
    folder = JobFolder.open(str(place), manifest(), "resume")
    monkeypatch.setattr("dino_ray.places.remove_tree", lambda place: sys.exit("killed"))
    with pytest.raises(SystemExit):
        folder.finish({"output": None, "report": {}}, keep_note=False)
    left = read_manifest(str(place))
    assert left is not None
    assert left.finished == {"output": None, "report": {}}


def test_forgetting_leaves_an_unfinished_job_alone(tmp_path: Path) -> None:
    left_behind(tmp_path / "job")
    forget(str(tmp_path / "job"))
    assert (tmp_path / "job" / "canvas.zarr").exists()


def test_unfinished_jobs_of_several_images_are_found_in_their_folder(tmp_path: Path) -> None:
    for name in ("b", "a"):
        left_behind(tmp_path / f"{name}.dino-ray")
    (tmp_path / "other").mkdir()
    assert [Path(place).name for place, _ in resumable(str(tmp_path))] == ["a.dino-ray", "b.dino-ray"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}', "{nonsense"])
def test_a_damaged_manifest_is_refused_and_fresh_gets_past_it(tmp_path: Path, content: str) -> None:
    place = tmp_path / "job"
    place.mkdir()
    (place / "job.json").write_text(content)
    with pytest.raises(UsageError, match="--fresh"):
        JobFolder.open(str(place), manifest(), "resume")
    assert JobFolder.open(str(place), manifest(), "fresh").manifest == manifest()


def test_a_manifest_of_a_later_format_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "job"
    left_behind(place)
    record = json.loads((place / "job.json").read_text()) | {"format": 2}
    (place / "job.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="made by another version"):
        read_manifest(str(place))


def test_names_too_long_for_a_suffix_still_have_a_place() -> None:
    place = Path(default_place(Path("/out/" + "ü" * 125 + ".png")))
    assert place.parent == Path("/out")
    assert len(place.name.encode()) <= 255
    assert place.name.endswith(".dino-ray")


def test_file_names_that_are_no_unicode_survive_in_the_manifest(tmp_path: Path) -> None:
    odd = replace(manifest(), source="photo\udcff.png")
    JobFolder.open(str(tmp_path / "job"), odd, "resume").leave(worth_keeping=True)
    assert read_manifest(str(tmp_path / "job")) == odd


@pytest.mark.parametrize(
    "edit",
    [
        {"cwd": 5},
        {"config": []},
        {"source": None},
        {"output": "a\0b.png"},
        {"devices": 5},
        {"poisoned": {"x": 1}},
        {"finished": {"output": None}},
        {"pixels": 3},
    ],
    ids=str,
)
def test_an_edited_manifest_is_refused_by_what_is_wrong_in_it(tmp_path: Path, edit: dict) -> None:
    left_behind(tmp_path)
    stored = json.loads((tmp_path / "job.json").read_text())
    (tmp_path / "job.json").write_text(json.dumps(stored | edit))
    with pytest.raises(UsageError, match=f"its job.json can't be read .*{next(iter(edit))}|not iterable"):
        read_manifest(str(tmp_path))


def test_a_job_of_another_user_is_not_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(tmp_path)
    check_owner(str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(UsageError, match="belongs to another user"):
        check_owner(str(tmp_path))


def test_a_source_with_a_password_is_nobody_elses_to_read(tmp_path: Path) -> None:
    secret, plain = "https://me:secret@example.org/a.png", "https://example.org/a.png"
    for source, mode in ((secret, 0o700), (plain, 0o777 & ~UMASK)):
        place = tmp_path / str(mode)
        JobFolder.open(str(place), replace(manifest(), source=source), "resume")
        assert place.stat().st_mode & 0o777 == mode


def test_what_a_killed_process_left_of_its_manifest_is_no_strangers(tmp_path: Path) -> None:
    place = tmp_path / "job"
    place.mkdir()
    (place / ".job.json.0123456789abcdef.partial").write_text('{"sou')
    (place / "lock").write_text("1")
    folder = JobFolder.open(str(place), manifest(), "resume")
    assert sorted(path.name for path in place.iterdir()) == ["job.json", "lock"]
    folder.leave(worth_keeping=False)
    assert not place.exists()


def test_starting_over_leaves_no_folder_behind(tmp_path: Path) -> None:
    place = tmp_path / "job"
    left_behind(place)
    (place / "job.json").write_text("{")
    JobFolder.open(str(place), manifest(), "fresh").finish({"output": None, "report": {}}, keep_note=False)
    assert not place.exists()
