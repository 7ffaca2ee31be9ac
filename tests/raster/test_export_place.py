"""Promises of how an output gets its name: whole, or not at all, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dino_ray.raster.export.place import beside, remove, replace_folder


def test_what_a_killed_process_left_is_gone_with_the_next_and_what_a_live_one_writes_is_not(
    tmp_path: Path,
) -> None:
    target = str(tmp_path / "out.tif")
    code = (
        "import sys; from dino_ray.raster.export.place import beside\n"
        "with beside(sys.argv[1]) as partial:\n"
        "    open(partial, 'w').close(); print(partial, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, target]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    dead, alive = (Path(writer.stdout.readline().strip()) for writer in writers if writer.stdout)
    writers[0].kill()
    writers[0].wait()
    with beside(target) as mine:
        assert dead.name != alive.name != Path(mine).name
        assert not dead.exists()
        assert alive.exists()
    writers[1].communicate("")
    assert list(tmp_path.iterdir()) == []


def test_partial_names_of_other_outputs_are_left_alone(tmp_path: Path) -> None:
    with beside(str(tmp_path / "a.tif")) as other:
        Path(other).touch()
        with beside(str(tmp_path / "b.tif")):
            assert Path(other).exists()


def test_names_as_long_as_can_be_have_room_for_a_partial(tmp_path: Path) -> None:
    with beside(str(tmp_path / ("x" * 251 + ".tif"))) as partial:
        Path(partial).touch()


def test_a_folder_that_cannot_be_put_in_place_leaves_the_older_one(tmp_path: Path) -> None:
    target = tmp_path / "out.zarr"
    target.mkdir()
    (target / "old").touch()
    try:
        replace_folder(str(tmp_path / "missing"), str(target))
    except FileNotFoundError:
        pass
    else:
        raise AssertionError("there was nothing to rename")
    assert os.listdir(target) == ["old"]
    remove(str(target))
    assert list(tmp_path.iterdir()) == []
