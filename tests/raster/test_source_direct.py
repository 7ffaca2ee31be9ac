"""Tiled TIFFs and small images are read where they are, and give the very pixels that an ingest gives."""

import gc
import logging
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from dino_ray.errors import JobError, UsageError
from dino_ray.plan.geometry import Rect
from dino_ray.raster import direct
from dino_ray.raster.source import (
    DirectSource,
    ReadOptions,
    Source,
    ingest,
    needs_bytes,
    open_source,
    probe,
    stored_bytes,
)

WIDTH, HEIGHT = 230, 170
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(bands=3, dtype="uint8", width=WIDTH, height=HEIGHT, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, bands), dtype=dtype)


def vips(array):
    kind = {1: "b-w", 2: "b-w", 3: "srgb", 4: "srgb"}[array.shape[2]]
    kind = {"b-w": "grey16", "srgb": "rgb16"}[kind] if array.dtype == np.uint16 else kind
    return pyvips.Image.new_from_array(array).copy(interpretation=kind)


def tiled(path, array, **options):
    vips(array).tiffsave(str(path), tile=True, tile_width=64, tile_height=32, **options)
    return path


@pytest.fixture
def nothing_small(monkeypatch):
    """Tiled files must be read by tiles, however small they are."""
    monkeypatch.setattr(direct, "_SMALL_BYTES", 0)
    direct._reader.cache_clear()
    yield
    direct._reader.cache_clear()


KINDS = {
    "plain": {},
    "deflate": {"compression": "deflate", "predictor": "horizontal"},
    "lzw": {"compression": "lzw"},
    "jpeg": {"compression": "jpeg", "Q": 80},
    "webp": {"compression": "webp", "lossless": True},
    "pyramid": {"pyramid": True},
    "BigTIFF with levels in sub-directories": {"pyramid": True, "subifd": True, "bigtiff": True},
}


class TestWindowsOfTiledFiles:
    """In a class, so that what is patched for all examples is patched for these alone."""

    @pytest.fixture(scope="class")
    def pairs(self, tmp_path_factory):
        """Of files of each kind: read where they are, and ingested."""
        folder = tmp_path_factory.mktemp("direct")
        files = [tiled(folder / f"{i}.tif", noise(), **options) for i, options in enumerate(KINDS.values())]
        files += [tiled(folder / f"{b}{d}.tif", noise(b, d)) for b in (1, 2, 4) for d in ("uint8", "uint16")]
        files.append(folder / "premultiplied.tif")
        tifffile.imwrite(files[-1], noise(4), photometric="rgb", extrasamples=["assocalpha"], tile=(32, 48))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(direct, "_SMALL_BYTES", 0)
            direct._reader.cache_clear()
            yield [(open_source(f, folder / "no"), ingest(f, folder / f"{f.name}.zarr")) for f in files]
            assert not (folder / "no").exists()
        direct._reader.cache_clear()

    @given(
        which=st.integers(0, len(KINDS) + 6),
        x=st.integers(-2 * WIDTH, 2 * WIDTH),
        y=st.integers(-2 * HEIGHT, 2 * HEIGHT),
        w=st.integers(1, 2 * WIDTH),
        h=st.integers(1, 2 * HEIGHT),
    )
    @settings(max_examples=200)
    def test_any_window_equals_that_of_the_ingest(self, pairs, which, x, y, w, h):
        here, stored = pairs[which]
        assert isinstance(here, DirectSource)
        assert here.info == stored.info
        window = here.read(Rect(x, y, w, h))
        np.testing.assert_array_equal(window, stored.read(Rect(x, y, w, h)))
        assert window.flags.writeable


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tif"])
def test_a_small_image_equals_its_ingest(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise()).save(path)
    here, stored = open_source(path, tmp_path / "unused"), ingest(path, tmp_path / "s")
    assert isinstance(here, DirectSource)
    assert not (tmp_path / "unused").exists()
    assert here.info == stored.info
    for rect in (Rect(0, 0, WIDTH, HEIGHT), Rect(-5, 100, 300, 100), Rect(17, 3, 1, 1)):
        np.testing.assert_array_equal(here.read(rect), stored.read(rect))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("to_srgb", [False, True])
def test_small_images_are_turned_and_converted_as_by_an_ingest(tmp_path, orientation, to_srgb):
    exif = Image.Exif()
    exif[0x0112] = orientation
    profile = bytes(pyvips.Operation.call("profile_load", "p3"))
    Image.fromarray(noise()).save(tmp_path / "a.jpg", exif=exif, icc_profile=profile)
    options = ReadOptions(to_srgb=to_srgb)
    here = open_source(tmp_path / "a.jpg", tmp_path / "unused", options)
    stored = ingest(tmp_path / "a.jpg", tmp_path / "s", options)
    rect = Rect(0, 0, here.info.width, here.info.height)
    np.testing.assert_array_equal(here.read(rect), stored.read(rect))
    assert here.info == stored.info


def test_small_float_images_are_scaled_as_by_an_ingest(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "a.tif", noise().astype("float32") * 3, photometric="rgb", tile=(32, 32))
    with caplog.at_level(logging.WARNING):
        here = open_source(tmp_path / "a.tif", tmp_path / "unused")
    assert "scaled to 16 bits" in caplog.text
    stored = ingest(tmp_path / "a.tif", tmp_path / "s")
    rect = Rect(0, 0, WIDTH, HEIGHT)
    np.testing.assert_array_equal(here.read(rect), stored.read(rect))


def floats(path):
    tifffile.imwrite(path, noise().astype("float32"), photometric="rgb", tile=(32, 32))


def cmyk(path):
    ink = vips(noise(4)).copy(interpretation="cmyk")
    ink.tiffsave(str(path), tile=True, tile_width=64, tile_height=32)


def turned(path):
    image = vips(noise()).copy()
    image.set_type(pyvips.GValue.gint_type, "orientation", 6)
    image.tiffsave(str(path), tile=True, tile_width=64, tile_height=32)


MUST_BE_INGESTED = {
    "floats": floats,
    "CMYK": cmyk,
    "turned": turned,
    "strips": lambda path: tifffile.imwrite(path, noise(), photometric="rgb"),
    "enormous tiles": lambda path: tifffile.imwrite(path, noise(), photometric="rgb", tile=(128, 128)),
    "no TIFF": lambda path: Image.fromarray(noise()).save(path, format="PNG"),
}


@pytest.mark.parametrize("name", MUST_BE_INGESTED)
def test_what_cannot_be_read_by_tiles_is_ingested(tmp_path, nothing_small, monkeypatch, name):
    monkeypatch.setattr(direct, "_MAX_TILE_BYTES", 32 * 2**10)
    MUST_BE_INGESTED[name](tmp_path / "a.tif")
    source = open_source(tmp_path / "a.tif", tmp_path / "s")
    assert isinstance(source, Source)
    assert needs_bytes(tmp_path / "a.tif") == stored_bytes(source.info)


def test_what_is_read_where_it_is_takes_no_disk(tmp_path, nothing_small):
    assert needs_bytes(tiled(tmp_path / "a.tif", noise())) == 0


def test_any_process_and_thread_reads_the_same(tmp_path, nothing_small):
    array = noise()
    source = open_source(tiled(tmp_path / "a.tif", array), tmp_path / "s")
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source
    assert len(pickle.dumps(source)) < 1000

    def reads(i):
        return np.array_equal(copy.read(Rect(i, i, 90, 90)), array[i : i + 90, i : i + 90])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(reads, range(80)))


def test_the_path_holds_from_other_folders(tmp_path, monkeypatch):
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path)
    array = noise()
    Image.fromarray(array).save("a.png")
    source = open_source("a.png", "s")
    monkeypatch.chdir("else")
    np.testing.assert_array_equal(source.read(Rect(0, 0, WIDTH, HEIGHT)), array)


def test_a_tile_cache_is_dropped_when_it_is_full_and_pixels_stay_right(tmp_path, nothing_small, monkeypatch):
    monkeypatch.setattr(direct, "_CACHE_BYTES", 5 * 64 * 32 * 3)
    opened = []
    real = direct._open_again
    monkeypatch.setattr(direct, "_open_again", lambda source: opened.append(1) or real(source))
    array = noise()
    source = open_source(tiled(tmp_path / "a.tif", array), tmp_path / "s")
    for y in range(0, HEIGHT - 40, 30):
        np.testing.assert_array_equal(source.read(Rect(0, y, 100, 40)), array[y : y + 40, :100])
    assert len(opened) > 2


def test_no_files_stay_open_once_their_turn_is_over(tmp_path, nothing_small):
    def open_files():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    sources = [open_source(tiled(tmp_path / f"{i}.tif", noise()), tmp_path / "s") for i in range(12)]
    before = open_files()
    for source in sources:
        source.read(Rect(0, 0, 100, 100))
    assert open_files() <= before + direct._KEPT_IMAGES + 1


# --- what goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"compression": "deflate"}, {"pyramid": True}], ids=str)
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_tiled_file_is_refused_before_work(tmp_path, nothing_small, options, kept):
    tifffile.imwrite(
        tmp_path / "a.tif", noise(), photometric="rgb", tile=(32, 64)
    )  # its directory comes first
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(UsageError, match=r"a\.tif: is truncated: [\d,]+ bytes are missing at its end"):
        open_source(tmp_path / "a.tif", tmp_path / "s")


def test_tiles_of_one_band_each_are_refused_by_the_header(tmp_path):
    planes = np.moveaxis(noise(), 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate", tile=(32, 48))
    with pytest.raises(UsageError, match="tiles of one band each"):
        probe(tmp_path / "a.tif")


def test_tiles_that_were_never_written_are_refused_before_work(tmp_path, nothing_small):
    tiled(tmp_path / "a.tif", noise(), compression="deflate")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        counts = list(tiff.pages[0].databytecounts)
        tiff.pages[0].tags[325].overwrite([0, *counts[1:]])
    with pytest.raises(UsageError, match="1 of its strips or tiles were never written"):
        open_source(tmp_path / "a.tif", tmp_path / "s")


def test_damage_inside_is_an_error_where_it_is_and_only_there(tmp_path, nothing_small):
    array = noise()
    path = tiled(tmp_path / "a.tif", array, compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + 2] = b"\xff\xff"  # no longer a deflate stream
    path.write_bytes(data)
    source = open_source(path, tmp_path / "s")
    for _ in range(2):
        with pytest.raises(JobError, match=r"a\.tif: is damaged near .*; get a whole copy"):
            source.read(Rect(0, 0, 10, 10))
        np.testing.assert_array_equal(source.read(Rect(100, 100, 50, 50)), array[100:150, 100:150])


def test_a_small_file_that_is_damaged_is_refused_before_work(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="truncated"):
        open_source(tmp_path / "a.png", tmp_path / "s")


@pytest.mark.parametrize("size", ["small", "tiled"])
def test_a_file_that_changed_or_went_is_not_read(tmp_path, size, request):
    if size == "tiled":
        request.getfixturevalue("nothing_small")
    source = open_source(tiled(tmp_path / "a.tif", noise(seed=1)), tmp_path / "s")
    tiled(tmp_path / "a.tif", noise(seed=2))
    os.utime(tmp_path / "a.tif", ns=(0, source.changed_ns + 1))
    with pytest.raises(JobError, match="has changed since the job began"):
        source.read(Rect(0, 0, 10, 10))
    (tmp_path / "a.tif").unlink()
    with pytest.raises(JobError, match="is gone"):
        source.read(Rect(0, 0, 10, 10))


def test_a_window_without_pixels_is_a_mistake(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="must hold pixels"):
        open_source(tmp_path / "a.png", tmp_path / "s").read(Rect(3, 3, 0, 5))
