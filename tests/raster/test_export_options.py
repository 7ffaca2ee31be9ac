"""What can't be honoured is refused before any work, by the option's name, and with what would do."""

import logging

import pytest

from dino_ray.errors import UsageError
from dino_ray.raster.export import (
    ExportOptions,
    check_output,
    compressions,
    known_formats,
    known_suffixes,
    output_dtype,
)


def refused(path, width=100, height=100, bands=3, dtype="uint8", **options):
    with pytest.raises(UsageError) as caught:
        check_output(path, width, height, bands, dtype, options=ExportOptions(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def allowed(path, width=100, height=100, bands=3, dtype="uint8", **options):
    check_output(path, width, height, bands, dtype, options=ExportOptions(**options))


@pytest.mark.parametrize(
    ("name", "bands", "options", "said"),
    [
        ("a.png", 3, {"quality": 90}, "--quality: PNG is lossless; leave it out"),
        ("a.zarr", 3, {"quality": 90}, "--quality: OME-Zarr is lossless; leave it out"),
        (
            "a.tif",
            3,
            {"quality": 90},
            "--quality: TIFF with deflate compression is lossless; "
            "leave it out or add --compression jpeg or webp",
        ),
        ("a.jpg", 3, {"quality": 0}, "--quality 0: is out of range; give 1 (worst) to 100 (best)"),
        ("a.jpg", 3, {"quality": 101}, "--quality 101: is out of range; give 1 (worst) to 100 (best)"),
        ("a.jpg", 3, {"compression": "lzw"}, "--compression lzw: JPEG has but one way; leave it out"),
        (
            "a.tif",
            3,
            {"compression": "zip"},
            "--compression zip: TIFF has deflate, none, lzw, zstd, jpeg and webp; use one of these",
        ),
        (
            "a.tif",
            4,
            {"compression": "jpeg"},
            "--compression jpeg: in TIFF holds no transparency, and the result has an alpha band; "
            "use deflate, none, lzw, zstd or webp",
        ),
        (
            "a.tif",
            1,
            {"compression": "webp"},
            "--compression webp: in TIFF holds colour only, and the result is grey; "
            "use deflate, none, lzw, zstd or jpeg",
        ),
        (
            "a.dzi",
            2,
            {"compression": "webp"},
            "--compression webp: in Deep Zoom holds colour only, and the result is grey; use png",
        ),
        (
            "a.jpg",
            3,
            {"depth": 16},
            "--depth 16: JPEG holds 8 bits; name a .png, .tif or .ome.zarr output",
        ),
        (
            "a.tif",
            3,
            {"depth": 16, "compression": "jpeg"},
            "--depth 16: TIFF with jpeg compression holds 8 bits; "
            "use --compression deflate, none, lzw or zstd",
        ),
        ("a.tif", 3, {"depth": 12}, "--depth 12: is no depth of a sample; use 8 or 16"),
        (
            "a.png",
            3,
            {"pyramid": True},
            "--pyramid: PNG holds the image in one size; name a .tif, .dzi or .ome.zarr output",
        ),
        (
            "a.dzi",
            3,
            {"pyramid": False},
            "--no-pyramid: Deep Zoom is a pyramid always; leave it out or name a .tif output",
        ),
        (
            "a",
            3,
            {"format": "bmp"},
            "--format bmp: is not known; use png, jpeg, webp, tiff, dzi or ome-zarr",
        ),
    ],
)
def test_what_a_format_cannot_do_is_refused_with_what_would_do(
    tmp_path, name, bands, options, said, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert refused(name, bands=bands, **options) == said


def test_a_format_that_contradicts_the_suffix_is_refused(tmp_path):
    message = refused(tmp_path / "a.png", format="tiff")
    assert message.startswith("--format tiff: ")
    assert "name it .tif" in message
    allowed(tmp_path / "a.tiff", format="tiff")
    allowed(tmp_path / "a", format="tiff")
    allowed(tmp_path / "a.out", format="tiff")


@pytest.mark.parametrize("key", known_formats())
def test_every_compression_listed_can_be_asked_for(tmp_path, key):
    for name in compressions()[key]:
        allowed(tmp_path / "out", format=key, compression=name)


@pytest.mark.parametrize("key", known_formats())
def test_the_first_compression_is_the_default(tmp_path, key):
    # Quality is heeded without a compression where the first of them is lossy, and only there.
    lossy = compressions()[key][0] in ("jpeg", "lossy")
    if lossy:
        allowed(tmp_path / "out", format=key, quality=50)
    else:
        refused(tmp_path / "out", format=key, quality=50)


@pytest.mark.parametrize("suffix", known_suffixes())
def test_depth_comes_from_the_option_then_the_source(suffix):
    shallow = suffix not in (".png", ".tif", ".tiff", ".zarr", ".ome.zarr")
    assert output_dtype(f"a{suffix}", "uint8") == "uint8"
    assert output_dtype(f"a{suffix}", "uint16") == ("uint8" if shallow else "uint16")
    assert output_dtype(f"a{suffix}", "uint16", ExportOptions(depth=8)) == "uint8"
    if not shallow:
        assert output_dtype(f"a{suffix}", "uint8", ExportOptions(depth=16)) == "uint16"


def test_a_compression_of_8_bits_rounds_16_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        assert output_dtype("a.tif", "uint16", ExportOptions(compression="jpeg")) == "uint8"
    assert "TIFF with jpeg compression holds 8 bits" in caplog.text
    caplog.clear()
    assert output_dtype("a.tif", "uint16", ExportOptions(compression="jpeg", depth=8)) == "uint8"
    assert caplog.text == ""


def test_what_is_too_large_for_a_format_goes_into_the_others(tmp_path):
    message = refused(tmp_path / "a.jpg", width=70_000)
    assert "65,535" in message
    assert message.endswith("name a .png, .tif, .dzi or .ome.zarr output instead")
    for name in ("a.png", "a.tif", "a.dzi", "a.ome.zarr"):
        allowed(tmp_path / name, width=70_000, height=70_000)


def test_a_lossy_webp_of_more_pixels_than_its_encoder_is_sure_of_is_refused(tmp_path):
    allowed(tmp_path / "a.webp", 8192, 8192)
    message = refused(tmp_path / "a.webp", 8192, 8193)
    assert message.startswith("--compression lossy: in WebP holds 67,108,864 pixels for sure")
    assert "use lossless" in message
    allowed(tmp_path / "a.webp", 8192, 8193, compression="lossless")
