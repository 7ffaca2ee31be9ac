"""Promises of the folders of Rays that jobs start: what is left of them goes, and nothing else."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from dino_ray.engine.ray.private import LOCK, ORPHANED_S, PREFIX, SessionFolder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go; no socket is made, so its name may be long."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("dino_ray.engine.ray.private.LONGEST_ROOT", len(str(tmp_path)))
    return tmp_path


def lockless(root: Path, name: str, *entries: str, age_s: float = 2 * ORPHANED_S) -> Path:
    """A folder with a name like a job's, and these folders in it."""
    folder = root / f"{PREFIX}{name}"
    folder.mkdir()
    for entry in entries:
        (folder / entry / "logs").mkdir(parents=True)
    then = time.time() - age_s
    os.utime(folder, (then, then))
    return folder


def test_a_folder_that_dying_processes_made_anew_is_swept_when_it_is_old_and_holds_nothing_else(
    root: Path,
) -> None:
    target = root / "target"
    (target / "session_2").mkdir(parents=True)
    (root / f"{PREFIX}link").symlink_to(target)
    os.utime(target, (0, 0))
    swept = [lockless(root, "anew", "session_1"), lockless(root, "empty")]
    kept = [
        lockless(root, "mine", "session_1", "letters"),
        lockless(root, "young", "session_1", age_s=0),
    ]
    SessionFolder().remove()
    assert not [path for path in swept if path.exists()]
    assert all((path / "session_1").exists() for path in kept)
    assert (target / "session_2").exists()


def test_while_anything_is_left_of_a_folder_its_lock_is_too_and_the_next_job_sweeps_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = SessionFolder()
    (used.path / "session_1").mkdir()
    (used.path / "session_latest").symlink_to("session_1")
    with monkeypatch.context() as patch:
        # As fast as they go, files come anew.
        patch.setattr("shutil.rmtree", lambda path, ignore_errors: None)
        used.remove()
    assert sorted(path.name for path in used.path.iterdir()) == [LOCK, "session_1"]
    SessionFolder().remove()
    assert list(root.iterdir()) == []


def test_what_is_written_while_a_folder_is_removed_is_removed_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = SessionFolder()
    (used.path / "session_1").mkdir()
    through = shutil.rmtree

    def written_anew(path: Path, ignore_errors: bool) -> None:
        through(path)
        monkeypatch.setattr("shutil.rmtree", through)
        path.mkdir()

    monkeypatch.setattr("shutil.rmtree", written_anew)
    used.remove()
    assert list(root.iterdir()) == []
