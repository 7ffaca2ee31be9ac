"""What a careful tool does with files that are hostile, cut short or odd; and ingests that end early."""

import io
import logging
import os
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image

from dino_ray.errors import UsageError
from dino_ray.plan.geometry import Rect
from dino_ray.raster import ingest as ingest_module
from dino_ray.raster import limits
from dino_ray.raster.source import (
    IngestStopped,
    ReadOptions,
    Source,
    ingest,
    ingest_array,
    open_source,
    probe,
)


def noise(height=200, width=300, bands=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)


def everything(source):
    return source.read(Rect(0, 0, source.info.width, source.info.height))


def refused(path, folder, how=open_source):
    with pytest.raises(UsageError) as caught:
        how(path, folder)
    message = str(caught.value)
    assert path.name.isprintable() is False or path.name in message
    assert "\n" not in message
    return message


# --- small files that claim to be large --------------------------------------------------------------------


def png_bomb(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg_bomb(width, height):
    """A whole small JPEG whose frame header (ITU T.81, B.2.2) tells another size."""
    image = pyvips.Image.black(16, 16, bands=3).copy(interpretation="srgb")
    data = bytearray(image.jpegsave_buffer())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_bomb(width, height):
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + frame + b";"


def webp_bomb(width, height):
    """The largest that WebP can claim (its limit is 16,383), in a hundred bytes."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "WEBP", lossless=True)
    data = file.getvalue()
    at = data.index(b"VP8L") + 9  # RFC 9649, 3.4: two 14-bit numbers less one
    (bits,) = struct.unpack_from("<I", data, at)
    bits = bits & ~0xFFFFFFF | (min(width, 16_383) - 1) | (min(height, 16_383) - 1) << 14
    return data[:at] + struct.pack("<I", bits) + data[at + 4 :]


def tiff_bomb(width, height, tile=False):
    """Every strip or tile is the same few bytes."""
    entries = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [8]),
        (259, 3, [8]),
        (262, 3, [1]),
        (277, 3, [1]),
    ]
    if tile:
        entries += [(322, 3, [16_384]), (323, 3, [16_384]), (324, 4, [8]), (325, 4, [8])]
    else:
        entries += [(273, 4, [8]), (278, 4, [height]), (279, 4, [8])]
    table = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", values[0])
        for tag, kind, values in sorted(entries)
    )
    data = zlib.compress(bytes(1))[:8].ljust(8, b"\0")
    return b"II*\0" + struct.pack("<I", 16) + data + struct.pack("<H", len(entries)) + table + bytes(4)


BOMBS = {
    "png": png_bomb,
    "jpg": jpeg_bomb,
    "gif": gif_bomb,
    "strips.tif": tiff_bomb,
    "tiles.tif": lambda w, h: tiff_bomb(w, h, tile=True),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_claims_3_gigapixels_is_refused_by_its_header(tmp_path, name):
    path = tmp_path / f"bomb.{name}"
    path.write_bytes(BOMBS[name](60_000, 60_000))
    before = peak_rss()
    with pytest.raises(UsageError):
        probe(path)
    refused(path, tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert peak_rss() - before < 100e6


def peak_rss():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_bomb_within_its_format_is_refused_where_memory_is_short(tmp_path, monkeypatch):
    path = tmp_path / "bomb.webp"
    path.write_bytes(webp_bomb(60_000, 60_000))
    monkeypatch.setattr(limits, "available_bytes", lambda: 500 * 10**6)
    assert "takes 1.9 GB of memory and 0.5 GB are free" in refused(path, tmp_path / "s")


# --- files that must be decoded whole ----------------------------------------------------------------------

WHOLE = {
    "progressive.jpg": ({"progressive": True, "subsampling": 0}, 2 * 3, "progressive JPEG"),
    "progressive-420.jpg": ({"progressive": True, "subsampling": 2}, 2 * 1.5, "progressive JPEG"),
    "a.webp": ({}, 7, "WebP"),
    "a.gif": ({}, 4, "GIF"),
    "a.avif": ({}, 6, "HEIF/AVIF"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_must_be_decoded_whole_is_refused_if_it_does_not_fit(tmp_path, monkeypatch, name):
    options, bytes_per_pixel, kind = WHOLE[name]
    Image.fromarray(noise()).save(tmp_path / name, **options)
    needed = int(200 * 300 * bytes_per_pixel)
    monkeypatch.setattr(limits, "available_bytes", lambda: needed)
    probe(tmp_path / name)
    monkeypatch.setattr(limits, "available_bytes", lambda: needed - 1)
    message = refused(tmp_path / name, tmp_path / "s")
    assert f"is a {kind} of 300 × 200, which can only be decoded whole" in message


def test_an_interlaced_png_is_refused_if_it_does_not_fit_and_the_way_out_is_named(tmp_path, monkeypatch):
    pyvips.Image.new_from_array(noise()).pngsave(str(tmp_path / "a.png"), interlace=True)
    monkeypatch.setattr(limits, "available_bytes", lambda: 200 * 300 * 3 - 1)
    assert "save it without interlacing" in refused(tmp_path / "a.png", tmp_path / "s")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_what_is_decoded_by_rows_needs_no_memory_to_speak_of(tmp_path, monkeypatch, name):
    Image.fromarray(noise()).save(tmp_path / name)
    monkeypatch.setattr(limits, "available_bytes", lambda: 0)
    ingest(tmp_path / name, tmp_path / "s")


def test_64_bit_rows_that_cannot_be_cut_are_refused_if_they_do_not_fit(tmp_path, monkeypatch):
    tifffile.imwrite(
        tmp_path / "a.tif", noise().astype("float64"), photometric="rgb", compression="zlib", rowsperstrip=200
    )
    monkeypatch.setattr(limits, "available_bytes", lambda: 200 * 300 * 3 * 8)
    assert "strips or tiles are 200 rows high" in refused(tmp_path / "a.tif", tmp_path / "s")


def test_memory_is_what_the_machine_and_the_control_group_leave(tmp_path, monkeypatch):
    limit, used = tmp_path / "max", tmp_path / "current"
    used.write_text("300\n")
    monkeypatch.setattr(limits, "_CGROUP_LIMITS", ((limit, used),))
    unlimited = limits.available_bytes()
    assert unlimited is None or unlimited > 10**6
    limit.write_text("1000\n")
    assert limits.available_bytes() == 700
    limit.write_text("max\n")
    assert limits.available_bytes() is None or limits.available_bytes() > 10**6


# --- files that end early ----------------------------------------------------------------------------------

TRUNCATED = {
    "baseline.jpg": {"quality": 90},
    "progressive.jpg": {"progressive": True},
    "a.png": {},
    "strips.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "a.webp": {},
    "lossless.webp": {"lossless": True},
    "a.gif": {},
    "a.avif": {},
}


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("name", TRUNCATED)
def test_files_of_every_format_that_end_early_are_refused(tmp_path, name, kept):
    Image.fromarray(noise()).save(tmp_path / name, **TRUNCATED[name])
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * kept)])
    for how in (ingest, open_source):
        assert "truncated" in refused(tmp_path / name, tmp_path / "s", how)


# --- pages -------------------------------------------------------------------------------------------------


def several(path, frames, **options):
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=rest, **options)
    return path


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp"])
def test_any_page_can_be_had_and_the_first_is_said(tmp_path, caplog, name):
    frames = [np.repeat(noise(30, 40, 1, seed=s), 3, 2) & 0xF0 for s in (1, 2, 3)]
    options = {"lossless": True, "duration": 100} if name == "a.webp" else {}
    path = several(tmp_path / name, frames, **options)
    for page, frame in enumerate(frames, 1):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            source = ingest(path, tmp_path / "s", ReadOptions(page=page))
        assert "pages" not in caplog.text
        np.testing.assert_array_equal(everything(source)[..., :3], frame)
        assert source.info == probe(path, ReadOptions(page=page))
        here = open_source(path, tmp_path / "unused", ReadOptions(page=page))
        np.testing.assert_array_equal(everything(here), everything(source))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(everything(ingest(path, tmp_path / "s"))[..., :3], frames[0])
    assert "has 3 pages or frames; the first is taken (--page takes another)" in caplog.text


@pytest.mark.parametrize("name", ["a.tif", "a.gif"])
@pytest.mark.parametrize("page", [0, -1, 4])
def test_a_page_that_is_not_there_is_named(tmp_path, name, page):
    path = several(tmp_path / name, [noise(30, 40, seed=s) for s in (1, 2, 3)])
    with pytest.raises(UsageError, match=rf"--page {page}: .*a\.... has 3 pages"):
        probe(path, ReadOptions(page=page))


def test_a_file_of_one_picture_has_one_page(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    assert probe(tmp_path / "a.png", ReadOptions(page=1)) == probe(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"--page 2: .*a\.png has 1 page;"):
        probe(tmp_path / "a.png", ReadOptions(page=2))


def test_pages_of_other_sizes_are_what_they_are(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(noise(30, 40), photometric="rgb")
        tiff.write(noise(50, 60, 1)[..., 0], photometric="minisblack", tile=(16, 16))
    info = probe(tmp_path / "a.tif", ReadOptions(page=2))
    assert (info.width, info.height, info.bands) == (60, 50, 1)


@pytest.mark.parametrize("subifd", [False, True])
def test_the_levels_of_a_pyramid_are_no_pages(tmp_path, caplog, subifd):
    image = pyvips.Image.new_from_array(noise(600, 600)).copy(interpretation="srgb")
    image.tiffsave(str(tmp_path / "a.tif"), tile=True, pyramid=True, subifd=subifd)
    with caplog.at_level(logging.WARNING):
        source = open_source(tmp_path / "a.tif", tmp_path / "s")
    assert caplog.text == ""
    np.testing.assert_array_equal(everything(source), noise(600, 600))


# --- shapes and names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "tiled.tif", "a.jpg"])
@pytest.mark.parametrize("how", [ingest, open_source])
def test_extreme_shapes_come_in(tmp_path, size, name, how):
    array = noise(*size)
    if name == "tiled.tif":
        tifffile.imwrite(tmp_path / name, array, photometric="rgb", tile=(16, 16))
    else:
        Image.fromarray(array).save(tmp_path / name)
    source = how(tmp_path / name, tmp_path / "s")
    assert (source.info.height, source.info.width) == size
    pixels = everything(source)
    if not name.endswith("jpg"):
        np.testing.assert_array_equal(pixels, array)
    assert source.read(Rect(-3, -3, 8, 8)).shape == (8, 8, 3)


@pytest.mark.parametrize("size", [(0, 10), (10, 0)])
def test_a_tiff_without_pixels_is_refused(tmp_path, size):
    (tmp_path / "a.tif").write_bytes(tiff_bomb(*size))
    refused(tmp_path / "a.tif", tmp_path / "s")


@pytest.mark.parametrize("name", ["new\nline.png", "tab\t.png", "\x1b[31mred.png", "caf\udce9.png"])
def test_messages_stay_on_one_line_whatever_the_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"nothing to see")
    message = refused(path, tmp_path / "s")
    assert message.isprintable()
    message.encode()
    Image.fromarray(noise()).save(path, format="PNG")
    np.testing.assert_array_equal(everything(ingest(path, tmp_path / "s")), noise())


def test_links_are_followed_and_broken_ones_named(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to("a.png")
    assert probe(tmp_path / "link.png").name == "link.png"
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    assert "is a link to nowhere.png, which does not exist" in refused(
        tmp_path / "dangling.png", tmp_path / "s"
    )
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert "levels of symbolic links" in refused(tmp_path / "loop.png", tmp_path / "s")


def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "is a pipe" in refused(tmp_path / "pipe.png", tmp_path / "s")
    (tmp_path / "device.png").symlink_to(os.devnull)
    assert "is a device" in refused(tmp_path / "device.png", tmp_path / "s")


def test_a_file_below_a_file_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    assert "cannot be read" in refused(tmp_path / "a.png" / "b.png", tmp_path / "s")


# --- ingests that end early --------------------------------------------------------------------------------


def stop_after(n):
    asked = []

    def stop():
        asked.append(None)
        return len(asked) > n

    return stop


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_ingest_stops_when_told_and_leaves_no_thread_and_no_source(tmp_path, monkeypatch, after):
    monkeypatch.setattr(ingest_module, "_MOST_CHUNK_ROWS", 64)
    Image.fromarray(noise(2000, 3000)).save(tmp_path / "a.png", compress_level=1)
    before = {thread.name for thread in threading.enumerate()}
    with pytest.raises(IngestStopped, match=r"a\.png: its ingest was stopped"):
        ingest(tmp_path / "a.png", tmp_path / "s", stop=stop_after(after))
    assert not {t.name for t in threading.enumerate() if t.name.startswith("decode")} - before
    with pytest.raises(Exception, match="did not finish"):
        Source.open(tmp_path / "s")
    ingest(tmp_path / "a.png", tmp_path / "s")  # and can begin again


def test_measuring_and_storing_arrays_stop_as_well(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise().astype("float32"), photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", noise().astype("float64"), photometric="rgb")
    for name in ("a.tif", "b.tif"):
        with pytest.raises(IngestStopped):
            ingest(tmp_path / name, tmp_path / "s", stop=lambda: True)
    with pytest.raises(IngestStopped):
        ingest_array(noise(), tmp_path / "s", stop=lambda: True)


GROWTH = """
import resource, sys
from dino_ray.raster.source import ingest, ReadOptions
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
ingest(sys.argv[1], sys.argv[3] + "/warm")
before = peak()
ingest(sys.argv[2], sys.argv[3] + "/large")
print(peak() - before)
"""


@pytest.mark.parametrize("name", ["strips.tif", "floats.tif", "doubles.tif", "baseline.jpg"])
def test_an_ingest_of_a_large_file_takes_little_memory(tmp_path, name):
    side = 5_000
    image = pyvips.Image.black(side, side, bands=3).linear(1, [20, 90, 200]).copy(interpretation="srgb")
    if name == "doubles.tif":
        tifffile.imwrite(tmp_path / name, shape=(side, side), dtype="float64", photometric="minisblack")
    elif name == "floats.tif":
        image.extract_band(0).cast("float").copy(interpretation="b-w").tiffsave(str(tmp_path / name))
    else:
        image.cast("uchar").write_to_file(str(tmp_path / name))
    Image.fromarray(noise()).save(tmp_path / "small.png")
    result = subprocess.run(
        [sys.executable, "-c", GROWTH, tmp_path / "small.png", tmp_path / name, tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(result.stdout) < 60  # MiB; the image has 72 (JPEG, strips), 95 (floats) or 191 (doubles)
