"""The file that comes out is the canvas, labelled as its source was; and it is there whole or not at all."""

import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from exported import HEIGHT, WIDTH, noise, painted, source_of
from PIL import ExifTags, Image, ImageCms
from png_reader import read_png

from dino_ray.errors import JobError, UsageError
from dino_ray.raster import export as exporting
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export import ExportOptions, check_output, export, known_suffixes, output_dtype
from dino_ray.raster.export.tiff import needs_bigtiff
from dino_ray.raster.export.vips_source import bigtiff_header
from dino_ray.raster.source import ingest

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def smooth(bands=3):
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([128 + 100 * np.sin((x + y + 20 * b) / 25) for b in range(bands)], 2).astype(np.uint8)


# --- pixels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [(32, 48), (HEIGHT, WIDTH), (7, 13)], ids=["cells", "one cell", "odd cells"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_png_holds_the_canvas_exactly(tmp_path, bands, dtype, cell):
    pixels = noise(bands, dtype)
    canvas = painted(tmp_path / "c", pixels, cell)
    export(canvas, source_of(canvas), tmp_path / "out.png")
    np.testing.assert_array_equal(read_png(tmp_path / "out.png"), pixels)
    if dtype == "uint8":
        opened = np.asarray(Image.open(tmp_path / "out.png")).reshape(pixels.shape)
        np.testing.assert_array_equal(opened, pixels)


@pytest.mark.parametrize(("suffix", "bands"), [("jpg", 1), ("jpg", 3), ("webp", 1), ("webp", 3), ("webp", 4)])
def test_lossy_formats_come_close(tmp_path, suffix, bands):
    pixels = smooth(bands)
    canvas = painted(tmp_path / "c", pixels)
    export(canvas, source_of(canvas), tmp_path / f"out.{suffix}")
    opened = Image.open(tmp_path / f"out.{suffix}").convert({1: "L", 3: "RGB", 4: "RGBA"}[bands])
    assert opened.size == (WIDTH, HEIGHT)
    difference = np.asarray(opened).reshape(pixels.shape).astype(int) - pixels
    assert np.abs(difference).mean() < 2


def test_jpeg_keeps_chroma_at_full_resolution(tmp_path):
    canvas = painted(tmp_path / "c", smooth())
    export(canvas, source_of(canvas), tmp_path / "out.jpg")
    assert all(component[1:3] == (1, 1) for component in Image.open(tmp_path / "out.jpg").layer)


@pytest.mark.parametrize("suffix", [s for s in known_suffixes() if s not in (".dzi", ".ome.zarr", ".zarr")])
def test_every_suffix_works_in_capitals_too(tmp_path, suffix):
    canvas = painted(tmp_path / "c", smooth())
    export(canvas, source_of(canvas), tmp_path / f"OUT{suffix.upper()}")
    assert Image.open(tmp_path / f"OUT{suffix.upper()}").size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", ["a b.png", "ünïcødé 画像.jpg", "50% %d %s.tif", "x[Q=1].jpg", "[0].webp"])
def test_any_file_name_will_do(tmp_path, name):
    folder = tmp_path / "ordner [1] 100% ü"
    folder.mkdir()
    canvas = painted(folder / "c", smooth())
    export(canvas, source_of(canvas), folder / name)
    assert sorted(os.listdir(folder)) == sorted([name, "c"])
    assert Image.open(folder / name).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_extreme_shapes_come_out(tmp_path, size, suffix):
    canvas = painted(tmp_path / "c", noise(3, "uint8", *size), cell=(min(64, size[0]), min(64, size[1])))
    export(canvas, source_of(canvas), tmp_path / f"out.{suffix}")
    assert Image.open(tmp_path / f"out.{suffix}").size == size[::-1]


# --- labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_the_profile_comes_out_as_it_came_in(tmp_path, suffix):
    canvas = painted(tmp_path / "c", smooth())
    export(canvas, source_of(canvas, icc=SRGB), tmp_path / f"out.{suffix}")
    assert Image.open(tmp_path / f"out.{suffix}").info["icc_profile"] == SRGB


def grey_profile():
    """The least that ICC.1:2022 lets a grey profile be: a white point and a curve of gamma 2.2."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)  # D50
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, 0x0233) + bytes(2)
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, len(white), b"kTRC", 156 + len(white), len(curve))
    header = struct.pack(
        ">I4sI4s4s4s12s4s28x3i48x",
        156 + len(white) + len(curve),
        bytes(4),
        0x02400000,
        b"mntr",
        b"GRAY",
        b"XYZ ",
        bytes(12),
        b"acsp",
        0xF6D6,
        0x10000,
        0xD32D,
    )
    return header + table + white + curve


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_a_grey_profile_stays_with_grey_pixels_and_no_others(tmp_path, suffix):
    canvas = painted(tmp_path / "c", smooth(1))
    export(canvas, source_of(canvas, icc=grey_profile()), tmp_path / f"out.{suffix}")
    image = Image.open(tmp_path / f"out.{suffix}")
    if suffix == "webp":  # has no grey
        assert image.info["icc_profile"][16:20] == b"RGB "
        assert np.ptp(np.asarray(image.convert("RGB")).astype(int), axis=2).max() <= 2
    else:
        assert image.mode == "L"
        assert image.info["icc_profile"] == grey_profile()


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_no_profile_in_no_profile_out(tmp_path, suffix):
    canvas = painted(tmp_path / "c", smooth())
    export(canvas, source_of(canvas), tmp_path / f"out.{suffix}")
    assert Image.open(tmp_path / f"out.{suffix}").info.get("icc_profile") is None


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_dots_per_inch_grow_so_that_the_print_does_not(tmp_path, suffix):
    canvas = painted(tmp_path / "c", smooth())
    export(canvas, source_of(canvas, dpi=(300, 200)), tmp_path / f"out.{suffix}")
    image = Image.open(tmp_path / f"out.{suffix}")
    if suffix == "jpg":  # in EXIF, of which Pillow shows the horizontal number alone
        dpi = [image.getexif()[ExifTags.Base.XResolution], image.getexif()[ExifTags.Base.YResolution]]
    else:
        dpi = image.info["dpi"]
    assert [float(d) for d in dpi] == pytest.approx([600, 400], rel=1e-3)


def test_what_went_in_comes_out_of_a_round_trip(tmp_path):
    """16-bit RGBA with a profile: ingest, copy cell by cell, export, ingest."""
    tifffile.imwrite(
        tmp_path / "in.tif",
        noise(4, "uint16"),
        photometric="rgb",
        extrasamples=["unassalpha"],
        iccprofile=SRGB,
    )
    source = ingest(tmp_path / "in.tif", tmp_path / "s1")
    info = source.info
    canvas = Canvas.create(tmp_path / "c", info.width, info.height, info.bands, info.dtype, (32, 48))
    for row, column in canvas.missing():
        rect = canvas.cell_rect(row, column)
        canvas.write(rect, source.read(rect))
    export(canvas, info, tmp_path / "out.tif")
    again = ingest(tmp_path / "out.tif", tmp_path / "s2")
    assert (again.info.icc, again.info.bands, again.info.dtype) == (SRGB, 4, "uint16")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), tifffile.imread(tmp_path / "in.tif"))


# --- refused before work -----------------------------------------------------------------------------------


def refused(path, width=100, height=100, bands=3, dtype="uint8", source=None):
    with pytest.raises(UsageError) as caught:
        check_output(path, width, height, bands, dtype, source)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_a_jpeg_too_wide_is_refused_and_what_would_hold_it_is_said(tmp_path):
    message = refused(tmp_path / "out.jpg", width=65_536)
    assert "65,535" in message
    assert ".png, .tif" in message
    assert ".webp" not in message
    check_output(tmp_path / "out.jpg", 65_535, 65_535, 3, "uint8")


def test_a_webp_too_high_is_refused_and_what_would_hold_it_is_said(tmp_path):
    assert ".png, .jpg, .tif" in refused(tmp_path / "out.webp", height=16_384)
    lossless = ExportOptions(compression="lossless")
    check_output(tmp_path / "out.webp", 16_383, 16_383, 4, "uint8", options=lossless)


@pytest.mark.parametrize("bands", [2, 4])
def test_transparency_does_not_go_into_a_jpeg(tmp_path, bands):
    message = refused(tmp_path / "out.jpeg", bands=bands)
    assert "transparency" in message
    assert ".png, .webp, .tif" in message


@pytest.mark.parametrize("name", ["out.xyz", "out", ".png", "out.png.exe"])
def test_an_unknown_suffix_gets_the_known_ones(tmp_path, name):
    message = refused(tmp_path / name)
    assert all(suffix in message for suffix in (".png", ".jpg", ".webp", ".tif"))


def test_a_missing_folder_is_named(tmp_path):
    assert "does not exist" in refused(tmp_path / "nowhere" / "out.png")


def test_a_folder_is_no_output(tmp_path):
    (tmp_path / "out.png").mkdir()
    assert "is a folder" in refused(tmp_path / "out.png")


def test_a_pipe_is_no_output(tmp_path):
    os.mkfifo(tmp_path / "out.png")
    assert "regular file" in refused(tmp_path / "out.png")


@pytest.mark.parametrize("protected", ["folder", "file"])
def test_what_is_protected_is_refused(tmp_path, monkeypatch, protected):
    (tmp_path / "out.png").write_bytes(b"old")
    target = tmp_path if protected == "folder" else tmp_path / "out.png"
    # Permissions do not bind the superuser, as whom tests may run.
    monkeypatch.setattr(os, "access", lambda path, mode: os.fspath(path) != str(target))
    refused(tmp_path / "out.png")


@pytest.mark.parametrize("disguise", ["plain", "link", "dots"])
def test_the_input_is_never_the_output(tmp_path, disguise):
    source = tmp_path / "photo.png"
    source.write_bytes(b"precious")
    (tmp_path / "link.png").symlink_to(source)
    (tmp_path / "folder").mkdir()
    path = {"plain": source, "link": tmp_path / "link.png", "dots": tmp_path / "folder" / ".." / "photo.png"}
    assert "is the input file" in refused(path[disguise], source=source)


def test_sixteen_bits_are_kept_where_the_format_can(tmp_path, caplog):
    assert output_dtype("out.tif", "uint16") == "uint16"
    assert output_dtype("out.png", "uint8") == "uint8"
    assert caplog.text == ""
    assert output_dtype("out.jpg", "uint16") == "uint8"
    assert "8 bits" in caplog.text
    check_output(tmp_path / "out.jpg", 100, 100, 3, "uint16")


# --- whole or not at all -----------------------------------------------------------------------------------


@pytest.fixture
def old_output(tmp_path):
    path = tmp_path / "out.png"
    path.write_bytes(b"the old one")
    yield path
    assert path.read_bytes() == b"the old one"
    assert [name for name in os.listdir(tmp_path) if name.endswith(".partial")] == []


def test_an_unfinished_canvas_is_not_exported(tmp_path, old_output):
    canvas = Canvas.create(tmp_path / "c", WIDTH, HEIGHT, 3, "uint8", (32, 48))
    canvas.write(canvas.cell_rect(0, 0), np.zeros((32, 48, 3), np.uint8))
    with pytest.raises(JobError, match="8 cells are not done"):
        export(canvas, source_of(canvas), old_output)


def test_a_canvas_too_deep_for_the_format_is_a_mistake(tmp_path):
    canvas = painted(tmp_path / "c", noise(3, "uint16"))
    with pytest.raises(ValueError, match="output_dtype"):
        export(canvas, source_of(canvas), tmp_path / "out.jpg")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.png").symlink_to(tmp_path / "elsewhere" / "real.png")
    canvas = painted(tmp_path / "c", noise(3, "uint8"))
    export(canvas, source_of(canvas), tmp_path / "out.png")
    assert (tmp_path / "out.png").is_symlink()
    assert Image.open(tmp_path / "elsewhere" / "real.png").size == (WIDTH, HEIGHT)


def test_the_longest_name_can_be_written(tmp_path):
    name = "n" * 251 + ".png"
    canvas = painted(tmp_path / "c", noise(3, "uint8"))
    export(canvas, source_of(canvas), tmp_path / name)
    assert (tmp_path / name).exists()


# --- the file that libvips reads ---------------------------------------------------------------------------


@pytest.mark.parametrize("rows_per_strip", [1, 7, HEIGHT, 500])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_the_made_up_header_is_a_bigtiff_to_others(tmp_path, bands, dtype, rows_per_strip):
    pixels = noise(bands, dtype)
    header = bigtiff_header(WIDTH, HEIGHT, bands, 8 * pixels.itemsize, rows_per_strip)
    (tmp_path / "a.tif").write_bytes(header + pixels.tobytes())
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif").reshape(pixels.shape), pixels)


class Counting(Canvas):
    """A canvas that notes which rows are read."""

    reads: list[int] = []  # noqa: RUF012

    def read(self, rect):
        self.reads.append(rect.y)
        return super().read(rect)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_every_row_is_read_once(tmp_path, suffix):
    canvas = painted(tmp_path / "c", noise(3, "uint8", 900, 300), cell=(64, 100))
    Counting.reads.clear()
    counting = Counting(canvas.folder, canvas.width, canvas.height, canvas.bands, canvas.dtype, canvas.cell)
    export(counting, source_of(canvas), tmp_path / f"out.{suffix}")
    assert Counting.reads == list(range(0, 900, 64))


def test_bigtiff_is_used_where_noise_would_not_fit_into_a_classic_one(tmp_path, monkeypatch):
    tile = (512, 512)
    assert not needs_bigtiff([(32_000, 32_000)], tile, 3, "none")
    assert needs_bigtiff([(32_000, 32_000)], tile, 3, "deflate")
    assert needs_bigtiff([(32_768, 32_768)], tile, 4, "none")
    assert needs_bigtiff([(100_000, 8_000)], tile, 6, "none")
    canvas = painted(tmp_path / "c", noise(3, "uint8"))
    monkeypatch.setattr(exporting.tiff, "_CLASSIC_BYTES", 1000)
    export(canvas, source_of(canvas), tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as tiff:
        assert tiff.is_bigtiff


_MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export import export
from dino_ray.raster.source import SourceInfo, ingest

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

folder, width = Path(sys.argv[1]), 2048
cell = np.random.default_rng(0).integers(0, 256, (256, 512, 3)).astype(np.uint8)
peaks = []
for height in (4096, 16 * 1024):
    canvas = Canvas.create(folder / "c", width, height, 3, "uint8", (256, 512))
    for row, column in canvas.missing():
        canvas.write(canvas.cell_rect(row, column), cell)
    for suffix in ("jpg", "tif", "png"):
        export(canvas, SourceInfo("s", width, height, 3, "uint8", False), folder / f"o.{suffix}")
    ingest(folder / "o.png", folder / "s")
    peaks.append(peak_mb())
print(*peaks)
"""


def test_memory_does_not_grow_with_the_image(tmp_path):
    """Out and in again: four times the pixels, 75 MB more of them, and next to no more memory."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    small, large = map(float, done.stdout.split())
    assert large - small < 25
