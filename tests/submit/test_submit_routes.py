"""Promises of how files travel: decided once, from what the user declares, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino_ray.errors import UsageError
from dino_ray.submit.routes import Means, folder_name, for_cluster, means


@pytest.mark.parametrize(
    ("place", "shared", "storage", "way"),
    [
        ("s3://b/photo.png", False, None, "as_is"),
        ("s3://b/photo.png", False, "s3://b/jobs", "as_is"),
        ("https://host/photo.png", True, None, "as_is"),
        ("mount/photo.png", True, None, "as_is"),
        ("mount/photo.png", True, "s3://b/jobs", "as_is"),
        ("mount/../photo.png", True, None, "port"),
        ("mount/link.png", True, None, "port"),
        ("mountain/photo.png", True, "s3://b/jobs", "storage"),
        ("photo.png", False, "s3://b/jobs", "storage"),
        ("photo.png", False, None, "port"),
        ("file://{tmp}/mount/photo.png", True, None, "as_is"),
        ("file://{tmp}/photo.png", True, None, "port"),
    ],
)
def test_a_file_travels_only_if_the_cluster_does_not_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, shared: bool, storage: str | None, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mount").mkdir()
    (tmp_path / "photo.png").touch()
    (tmp_path / "mount" / "link.png").symlink_to(tmp_path / "photo.png")
    common = means(False, ["mount"] if shared else [], storage)
    assert common.way(place.format(tmp=tmp_path)) == way


def test_shared_says_that_all_paths_are_seen() -> None:
    assert means(True, [], None).way("/anywhere/photo.png") == "as_is"


@pytest.mark.parametrize(
    ("dirs", "storage", "names"),
    [
        (["nowhere"], None, "--shared-dir nowhere"),
        ([], "/a/path", "--storage /a/path"),
        ([], "https://host/jobs", "--storage"),
        ([], "s3://key:secret@bucket/jobs", "credentials"),
    ],
)
def test_what_can_not_be_common_is_refused(dirs: list[str], storage: str | None, names: str) -> None:
    with pytest.raises(UsageError, match=names) as refused:
        means(False, dirs, storage)
    assert "secret" not in str(refused.value)


def test_a_folder_of_this_machine_is_no_model_of_the_clusters(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--model"):
        for_cluster({"model": str(tmp_path)}, Means(), ["a.png"])
    seen = for_cluster({"model": str(tmp_path)}, Means((str(tmp_path),)), ["a.png"])
    assert seen["model"] == str(tmp_path)
    assert for_cluster({"model": "flux-schnell"}, Means(), ["a.png"])["model"] == "flux-schnell"


def test_an_adapter_has_to_be_seen_by_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--dino-adapter .*is a file of this machine"):
        for_cluster({"dino_adapter": str(tmp_path / "a.safetensors")}, Means(), ["a.png"])
    monkeypatch.chdir(tmp_path)
    seen = for_cluster({"dino_adapter": "a.safetensors"}, Means((str(tmp_path),)), ["a.png"])
    assert seen["dino_adapter"] == str(tmp_path / "a.safetensors")


def test_a_lora_and_an_image_prompt_have_to_be_seen_by_the_cluster(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.touch()
    for options in ({"lora": (f"{file}:0.5",)}, {"image_prompt": str(file)}, {"image_prompt": str(tmp_path)}):
        with pytest.raises(UsageError, match=r"^--(lora|image-prompt) .*is a (file|folder) of this machine"):
            for_cluster(options, Means(), ["a.png"])
        assert for_cluster(options, Means((str(tmp_path),)), ["a.png"]).items() >= options.items()
    hub = {"lora": ("some/lora:0.5",), "image_prompt": "some/redux"}
    assert for_cluster(hub, Means(), ["a.png"]).items() >= hub.items()


def test_a_job_folder_of_this_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--job-dir"):
        for_cluster({"job_dir": str(tmp_path)}, Means(), ["a.png"])
    assert for_cluster({"job_dir": "s3://b/job"}, Means(), ["a.png"])["job_dir"] == "s3://b/job"


@pytest.mark.parametrize(
    ("options", "results", "job_dir"),
    [
        ({}, ["here.png"], None),
        ({}, ["mount/a.png"], "mount/a.png.dino-ray"),
        ({}, ["mount/a.png", "mount/b.png"], "mount"),
        ({}, ["mount/a.png", "mount/in/b.png"], None),
        ({}, ["mount/a.png", "b.png"], None),
        ({}, ["s3://b/a.png"], None),
        ({"job_dir": "mount/job"}, ["here.png"], "mount/job"),
    ],
)
def test_merges_run_anywhere_where_the_job_folder_is_seen_by_all(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    results: list[str],
    job_dir: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mount").mkdir()
    there = for_cluster(options, means(False, ["mount"], None), results)
    assert there["shared"] is (job_dir is not None)
    assert there.get("job_dir") == (None if job_dir is None else str(tmp_path / job_dir))


def test_only_a_job_that_can_be_gone_on_with_shares_its_folder_with_the_next() -> None:
    assert folder_name("a", None, ["out.png"]) != folder_name("b", None, ["out.png"])
    assert folder_name("a", "s3://b/job", ["out.png"]) == folder_name("b", "s3://b/job", ["out.png"])
    assert folder_name("a", "s3://b/job", ["out.png"]) != folder_name("a", "s3://b/job", ["other.png"])
