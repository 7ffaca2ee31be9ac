"""Promises of input patterns and output templates."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_ray.errors import UsageError
from dino_ray.inputs import Input, expand, make_folders, outputs


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "10.png",
        "2.png",
        "notes.txt",
        ".hidden.png",
        "sub/deep/3.tif",
        "sub/4.JPG",
        "a[1].png",
        "a1.png",
    ):
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(*named: str) -> list[str]:
    return [image.path for image in expand(named)]


def test_a_folder_gives_its_images_in_natural_order_and_nothing_else(tree: Path) -> None:
    assert paths("scans") == ["scans/2.png", "scans/10.png", "scans/a1.png", "scans/a[1].png"]


def test_a_pattern_reaches_into_folders_and_says_where_each_was_found(tree: Path) -> None:
    found = expand(["scans/**/*.tif"])
    assert found == [Input("scans/sub/deep/3.tif", "sub/deep")]


def test_a_file_that_looks_like_a_pattern_is_that_file(tree: Path) -> None:
    assert paths("scans/a[1].png") == ["scans/a[1].png"]


def test_what_is_named_twice_is_taken_once(tree: Path) -> None:
    assert paths("scans/2.png", "scans", "scans/*.png").count("scans/2.png") == 1


def test_patterns_without_a_match_are_refused(tree: Path) -> None:
    with pytest.raises(UsageError, match="matches no file"):
        expand(["scans/*.gif"])


def test_a_folder_without_images_is_refused(tree: Path) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(UsageError, match="empty: holds no image"):
        expand(["empty"])


def test_urls_pass_and_are_called_by_their_last_part() -> None:
    image = expand(["s3://bucket/a/photo%201.tif"])[0]
    assert image == Input("s3://bucket/a/photo%201.tif")
    assert outputs([image], "out/", 2, ".png") == ["out/photo 1@2x.png"]


def test_templates_fill_in_every_field(tree: Path) -> None:
    images = expand(["scans/**/*.tif", "scans/10.png"])
    template = "out/{folder}/{index:03}-{name}-{stem}.{suffix}@{scale}x.png"
    assert outputs(images, template, 2.5, ".png") == [
        "out/sub/deep/001-3.tif-3.tif@2.5x.png",
        "out/002-10.png-10.png@2.5x.png",
    ]


@pytest.mark.parametrize(
    "template",
    ["{nope}.png", "{stem.__class__}.png", "{stem!r:>{scale}}.png", "{stem", "{0}.png", "{}.png", "a{stem}/"],
)
def test_a_template_that_is_none_is_refused(template: str) -> None:
    with pytest.raises(UsageError, match="-o "):
        outputs([Input("photo.jpg")], template, 2, ".png")


@given(
    stem=st.text(
        st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=8
    )
)
def test_no_name_leads_a_template_out_of_its_folder(stem: str) -> None:
    try:
        made = outputs([Input(stem, folder=stem)], "out/{folder}/{name}.png", 2, ".png")[0]
    except UsageError:
        return
    root = Path("out").resolve()
    assert root in Path(made).resolve().parents


def test_a_folder_field_that_climbs_is_refused() -> None:
    with pytest.raises(UsageError, match="outside of"):
        outputs([Input("x.png", folder="../../etc")], "out/{folder}/{stem}.png", 2, ".png")


def test_folders_of_templates_are_made_and_those_of_a_plain_file_are_not(tmp_path: Path) -> None:
    template = str(tmp_path / "out" / "{folder}" / "{stem}.png")
    results = outputs([Input("x.png", folder="a/b")], template, 2, ".png")
    make_folders(results, template)
    assert (tmp_path / "out" / "a" / "b").is_dir()
    plain = str(tmp_path / "missing" / "x.png")
    make_folders(outputs([Input("x.png")], plain, 2, ".png"), plain)
    assert not (tmp_path / "missing").exists()


def test_a_file_is_taken_rather_than_a_link_to_it(tmp_path: Path) -> None:
    (tmp_path / "photo.png").touch()
    (tmp_path / "a-link.png").symlink_to("photo.png")
    assert [image.name for image in expand([str(tmp_path)])] == ["photo.png"]


@pytest.mark.parametrize(
    ("output", "result"),
    [
        ("memory://out/photo.png", "memory://out/photo.png"),
        ("memory://out/", "memory://out/photo 1@2x.png"),
        ("memory://out/{scale}/{name}.png", "memory://out/2/photo 1.tif.png"),
        ("file:///tmp/photo.png", "/tmp/photo.png"),
    ],
)
def test_an_output_may_be_an_address_a_folder_there_or_a_template_of_one(output: str, result: str) -> None:
    assert outputs([Input("s3://bucket/a/photo%201.tif")], output, 2, ".png") == [result]


def test_a_folder_behind_an_address_gets_files_named_after_the_inputs() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/there/other.png", b"x")
    assert outputs([Input("a.png")], "memory://there", 2, ".png") == ["memory://there/a@2x.png"]
    assert outputs([Input("a.png"), Input("b.png")], "memory://not", 2, ".png") == [
        "memory://not/a@2x.png",
        "memory://not/b@2x.png",
    ]


def test_no_folder_leads_a_template_out_of_an_address() -> None:
    with pytest.raises(UsageError, match="outside of sftp://host/out"):
        outputs(
            [Input("x.png", folder="../../etc")], "sftp://me:secret@host/out/{folder}/{stem}.png", 2, ".png"
        )


def test_two_results_at_one_address_and_a_result_over_its_input_are_refused() -> None:
    with pytest.raises(UsageError, match="would both become"):
        outputs([Input("a/x.png"), Input("b/x.png")], "memory://out/", 2, ".png")
    with pytest.raises(UsageError, match="written over the input"):
        outputs([Input("s3://in/x.png")], "s3://in/{name}", 2, ".png")


def test_an_image_that_is_a_folder_is_the_output_and_not_a_place_for_one(tmp_path: Path) -> None:
    (tmp_path / "out.ome.zarr").mkdir()
    assert outputs([Input("a.png")], str(tmp_path / "out.ome.zarr"), 2, ".png") == [
        str(tmp_path / "out.ome.zarr")
    ]
