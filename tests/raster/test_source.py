"""Whatever file comes in, workers read the same plain upright pixels of it, or the user is told why not."""

import logging
import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from dino_ray.errors import JobError, UsageError
from dino_ray.plan.geometry import Rect
from dino_ray.raster import ingest as ingest_module
from dino_ray.raster.source import Source, describe_array, ingest, ingest_array, probe


def pattern(height=90, width=130, bands=3, dtype="uint8", seed=0):
    """Smooth in part and noisy in part, no two rows or columns alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    top = np.iinfo(dtype).max
    planes = [(np.sin(x / (7 + b)) + np.cos(y / (5 + b)) + 2) / 4 * 0.8 for b in range(bands)]
    noise = rng.random((height, width, bands)) * 0.2
    return np.round((np.stack(planes, 2) + noise) * top).astype(dtype)


def everything(source):
    return source.read(Rect(0, 0, source.info.width, source.info.height))


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def small_chunks(monkeypatch):
    """Several chunks and bands in images that are quick to make."""
    monkeypatch.setattr(ingest_module, "_MOST_CHUNK_ROWS", 32)
    monkeypatch.setattr(ingest_module, "_CHUNK_PIXELS", 32 * 48)


# --- what files hold ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_rgb_files_come_in_as_another_library_reads_them(tmp_path, suffix, small_chunks):
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", pattern(), **options)
    source = ingest(path, tmp_path / "store")
    np.testing.assert_array_equal(everything(source), np.asarray(Image.open(path)))
    assert (source.info.bands, source.info.dtype, source.info.alpha) == (3, "uint8", False)


def test_jpeg_comes_in_close_to_what_another_decoder_gives(tmp_path):
    path = saved(tmp_path / "a.jpg", pattern(), quality=95, subsampling=0)
    difference = everything(ingest(path, tmp_path / "s")).astype(int) - np.asarray(Image.open(path))
    assert np.abs(difference).max() <= 2  # decoders may round differently


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_grey_and_alpha_keep_their_bands(tmp_path, mode):
    image = Image.fromarray(pattern(bands=4)).convert(mode)
    image.save(tmp_path / "a.png")
    source = ingest(tmp_path / "a.png", tmp_path / "s")
    expected = np.asarray(image).reshape(90, 130, -1)
    np.testing.assert_array_equal(everything(source), expected)
    assert source.info.grey == mode.startswith("L")
    assert source.info.alpha == mode.endswith("A")
    assert source.info.colour_bands == len(mode.removesuffix("A"))


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_sixteen_bits_stay_sixteen(tmp_path, bands):
    array = pattern(bands=bands, dtype="uint16")
    extra = {"extrasamples": ["unassalpha"]} if bands == 4 else {}
    photometric = "minisblack" if bands == 1 else "rgb"
    tifffile.imwrite(tmp_path / "a.tif", array.squeeze(), photometric=photometric, **extra)
    source = ingest(tmp_path / "a.tif", tmp_path / "s")
    np.testing.assert_array_equal(everything(source), array)


def test_sixteen_bit_png_comes_in_whole(tmp_path):
    array = pattern(bands=1, dtype="uint16")
    saved(tmp_path / "a.png", array[..., 0])
    np.testing.assert_array_equal(everything(ingest(tmp_path / "a.png", tmp_path / "s")), array)


@pytest.mark.parametrize("transparency", [None, 5])
def test_palettes_are_expanded(tmp_path, transparency):
    image = Image.fromarray(pattern()).convert("P")
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    mode = "RGB" if transparency is None else "RGBA"
    expected = np.asarray(Image.open(tmp_path / "a.png").convert(mode))
    np.testing.assert_array_equal(everything(ingest(tmp_path / "a.png", tmp_path / "s")), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_one_bit_becomes_black_and_white(tmp_path, suffix):
    image = Image.fromarray(pattern()).convert("1")
    image.save(tmp_path / f"a.{suffix}")
    expected = np.asarray(image.convert("L"))[..., None]
    np.testing.assert_array_equal(everything(ingest(tmp_path / f"a.{suffix}", tmp_path / "s")), expected)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_srgb_and_it_is_said(tmp_path, caplog, suffix):
    ink = np.zeros((40, 60, 4), np.uint8)
    ink[:, :30] = (0, 255, 255, 0)  # magenta and yellow make red
    Image.fromarray(ink, "CMYK").save(
        tmp_path / f"a.{suffix}", **({"quality": 95} if suffix == "jpg" else {})
    )
    with caplog.at_level(logging.WARNING):
        source = ingest(tmp_path / f"a.{suffix}", tmp_path / "s")
    pixels = everything(source)
    red, white = pixels[20, 10].astype(int), pixels[20, 50].astype(int)
    assert red[0] > red[1] + 100
    assert red[0] > red[2] + 100
    assert white.min() > 240
    assert source.info.bands == 3
    assert source.info.icc is not None
    assert source.info.icc[16:20] == b"RGB "
    assert "CMYK" in caplog.text


def test_premultiplied_alpha_comes_in_straight(tmp_path):
    colour = np.full((16, 16, 3), 200, np.uint8)
    alpha = np.full((16, 16, 1), 128, np.uint8)
    premultiplied = np.round(colour * (128 / 255)).astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.concatenate([premultiplied, alpha], 2),
        photometric="rgb",
        extrasamples=["assocalpha"],
    )
    pixels = everything(ingest(tmp_path / "a.tif", tmp_path / "s"))
    assert np.abs(pixels[..., :3].astype(int) - 200).max() <= 1


@pytest.mark.parametrize(
    "layout",
    [
        {"tile": (32, 48)},
        {"planarconfig": "separate"},
        {"bigtiff": True, "byteorder": ">"},
        {"rowsperstrip": 7},
    ],
    ids=["tiled", "planar", "big-endian BigTIFF", "strips"],
)
def test_tiff_layouts_are_all_the_same_image(tmp_path, layout, small_chunks):
    array = pattern()
    stored = np.moveaxis(array, 2, 0) if layout.get("planarconfig") == "separate" else array
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", **layout)
    np.testing.assert_array_equal(everything(ingest(tmp_path / "a.tif", tmp_path / "s")), array)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, orientation, small_chunks):
    image = Image.fromarray(pattern(height=75, width=101))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.tif", exif=exif, dpi=(300, 150))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.tif")))
    source = ingest(tmp_path / "a.tif", tmp_path / "s")
    np.testing.assert_array_equal(everything(source), upright)
    assert source.info == probe(tmp_path / "a.tif")
    assert source.info.dpi == pytest.approx((150, 300) if orientation >= 5 else (300, 150))


def test_an_animation_gives_its_first_frame_and_says_so(tmp_path, caplog):
    frames = [Image.fromarray(pattern(seed=s)).quantize(64) for s in (1, 2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.WARNING):
        source = ingest(tmp_path / "a.gif", tmp_path / "s")
    np.testing.assert_array_equal(everything(source)[..., :3], np.asarray(frames[0].convert("RGB")))
    assert "2 pages" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_the_profile_comes_along(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", pattern(), icc_profile=SRGB)
    assert ingest(path, tmp_path / "s").info.icc == SRGB


def test_a_profile_for_other_bands_is_left_out_and_it_is_said(tmp_path, caplog):
    saved(tmp_path / "a.jpg", pattern(bands=1)[..., 0], icc_profile=SRGB)
    with caplog.at_level(logging.WARNING):
        assert ingest(tmp_path / "a.jpg", tmp_path / "s").info.icc is None
    assert "profile" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_resolution_is_known_only_if_the_file_says_it(tmp_path, suffix):
    saved(tmp_path / f"plain.{suffix}", pattern())
    saved(tmp_path / f"stated.{suffix}", pattern(), dpi=(72, 72))
    assert probe(tmp_path / f"plain.{suffix}").dpi is None
    assert probe(tmp_path / f"stated.{suffix}").dpi == pytest.approx((72, 72), rel=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes_come_in(tmp_path, size):
    array = pattern(height=size[0], width=size[1])
    saved(tmp_path / "a.png", array)
    np.testing.assert_array_equal(everything(ingest(tmp_path / "a.png", tmp_path / "s")), array)


@pytest.mark.parametrize("name", ["a b.png", "ünïcødé 画像.png", "50% %d %s.png", "x[Q=1].png", "a[page=2]"])
def test_any_file_name_will_do(tmp_path, name):
    path = tmp_path / "ordner [1] 100% ü" / name
    path.parent.mkdir()
    saved(path, pattern(), format="PNG")
    source = ingest(path, path.parent / "store")
    np.testing.assert_array_equal(everything(source), pattern())
    assert source.info.name == name


def test_a_link_is_followed(tmp_path):
    saved(tmp_path / "a.png", pattern())
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    assert probe(tmp_path / "link.png").width == 130


# --- what is refused ---------------------------------------------------------------------------------------


def refused(path, folder):
    """The one line that a user reads, whether the header or only the pixels give the fault away."""
    with pytest.raises(UsageError) as caught:
        ingest(path, folder)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.jpg", None, "no such file"),
        ("empty.png", b"", "empty"),
        ("text.jpg", b"Dear diary, " * 50, "not an image"),
        ("table.csv", b"1,2\n3,4\n", "not an image"),
        ("painting.bmp", b"BM" + bytes(100), "JPEG, PNG, TIFF"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        probe(tmp_path / name)
    assert words in refused(tmp_path / name, tmp_path / "s")


def test_a_folder_is_named(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        probe(tmp_path)


WRITERS = {
    "baseline.jpg": lambda p, a: saved(p, a, quality=90),
    "progressive.jpg": lambda p, a: saved(p, a, quality=90, progressive=True),
    "plain.png": saved,
    "strips.tif": saved,
    "single-strip.tif": lambda p, a: tifffile.imwrite(p, a, photometric="rgb"),
    "deflated-tiles.tif": lambda p, a: tifffile.imwrite(
        p, a, photometric="rgb", tile=(32, 32), compression="zlib"
    ),
    "directory-last.tif": lambda p, a: saved(p, a, compression="tiff_lzw"),
    "lossy.webp": saved,
}


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.98])
@pytest.mark.parametrize("name", WRITERS)
def test_a_truncated_file_is_refused_never_filled_in(tmp_path, name, kept):
    WRITERS[name](tmp_path / name, pattern(200, 300))
    whole = (tmp_path / name).read_bytes()
    ingest(tmp_path / name, tmp_path / "s")  # whole, it is fine
    (tmp_path / name).write_bytes(whole[: int(len(whole) * kept)])
    assert "truncated" in refused(tmp_path / name, tmp_path / "half")
    with pytest.raises(JobError):
        Source.open(tmp_path / "half")


def test_libvips_stays_quiet_about_a_damaged_file(tmp_path, caplog):
    WRITERS["deflated-tiles.tif"](tmp_path / "a.tif", pattern(200, 300))
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.INFO, logger="pyvips"):
        refused(tmp_path / "a.tif", tmp_path / "s")
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def png_claiming(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_by_its_header(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_claiming(60_000, 60_000))
    with pytest.raises(UsageError, match="claims 60,000 × 60,000"):
        probe(tmp_path / "bomb.png")


def test_a_file_without_pixels_is_refused(tmp_path):
    (tmp_path / "zero.png").write_bytes(png_claiming(0, 10))
    refused(tmp_path / "zero.png", tmp_path / "s")


def test_too_many_bands_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pattern(bands=7), photometric="minisblack", planarconfig="contig")
    assert "7 bands" in refused(tmp_path / "a.tif", tmp_path / "s")


# --- windows -----------------------------------------------------------------------------------------------

SIDE = 80


@pytest.fixture(scope="module")
def chunked(tmp_path_factory):
    """A source of several chunks each way, and its pixels."""
    array = pattern(SIDE, SIDE + 30, bands=2, dtype="uint16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "_MOST_CHUNK_ROWS", 32)
        patch.setattr(ingest_module, "_CHUNK_PIXELS", 32 * 48)
        return ingest_array(array, tmp_path_factory.mktemp("chunked") / "s"), array


coordinates = st.integers(-3 * SIDE, 3 * SIDE)
lengths = st.integers(1, 2 * SIDE)


@given(x=coordinates, y=coordinates, w=lengths, h=lengths)
def test_any_window_equals_a_crop_of_the_image_with_replicated_edges(chunked, x, y, w, h):
    source, array = chunked
    margin = 6 * SIDE
    padded = np.pad(array, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    window = source.read(Rect(x, y, w, h))
    np.testing.assert_array_equal(window, padded[y + margin :, x + margin :][:h, :w])
    assert window.dtype == np.uint16


def test_a_window_belongs_to_its_reader(chunked):
    source, array = chunked
    source.read(Rect(0, 0, 10, 10))[:] = 0
    np.testing.assert_array_equal(source.read(Rect(0, 0, 10, 10)), array[:10, :10])


def test_an_empty_window_is_a_mistake(chunked):
    with pytest.raises(ValueError, match="must hold pixels"):
        chunked[0].read(Rect(3, 3, 0, 5))


def test_threads_and_copies_read_the_same(chunked):
    source, array = chunked
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 1000

    def reads(i):
        return np.array_equal(copy.read(Rect(i, i, 40, 40)), array[i : i + 40, i : i + 40])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(reads, range(40)))


def test_a_folder_used_again_shows_its_new_image(tmp_path):
    first = ingest_array(pattern(seed=1), tmp_path / "s")
    everything(first)
    second = ingest_array(pattern(seed=2), tmp_path / "s")
    np.testing.assert_array_equal(everything(second), pattern(seed=2))


# --- arrays, and finding an ingest again -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [(50, 40), (50, 40, 1), (50, 40, 2), (50, 40, 3), (50, 40, 4)])
def test_arrays_come_in_as_they_are(tmp_path, shape, dtype, small_chunks):
    array = pattern(50, 40, shape[2] if len(shape) == 3 else 1, dtype).reshape(shape)
    source = ingest_array(array, tmp_path / "s", name="mine")
    np.testing.assert_array_equal(everything(source), array.reshape(50, 40, -1))
    assert source.info == describe_array(array, "mine")
    assert source.info.alpha == (source.info.bands in (2, 4))


def test_an_array_and_its_file_become_the_same_source(tmp_path):
    saved(tmp_path / "a.png", pattern())
    file, array = ingest(tmp_path / "a.png", tmp_path / "1"), ingest_array(pattern(), tmp_path / "2", "a.png")
    assert file.info == array.info
    np.testing.assert_array_equal(everything(file), everything(array))


def test_views_and_foreign_byte_orders_come_in_right(tmp_path):
    array = pattern(dtype="uint16")
    view = array.astype(">u2")[::-1, ::2]
    np.testing.assert_array_equal(everything(ingest_array(view, tmp_path / "s")), array[::-1, ::2])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4), bool),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["float", "bool", "five bands", "flat", "no rows"],
)
def test_arrays_that_are_no_image_are_refused(tmp_path, array):
    with pytest.raises(UsageError, match="mine: has"):
        ingest_array(array, tmp_path / "s", "mine")


def test_an_ingest_is_found_again_with_all_that_is_known_of_it(tmp_path):
    saved(tmp_path / "a.png", pattern(), icc_profile=SRGB, dpi=(300, 200))
    source = ingest(tmp_path / "a.png", tmp_path / "s")
    assert Source.open(tmp_path / "s") == source


def test_an_ingest_never_deletes_what_is_not_its_own(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(JobError, match="not a pixel store"):
        ingest_array(pattern(), tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_bands_of_very_wide_images_stay_small():
    for width in (100, 30_000, 1_000_000):
        rows, columns = ingest_module.chunk_shape(width, 4, "uint16")
        assert rows == ingest_module._FEWEST_CHUNK_ROWS or rows * width * 8 <= ingest_module._BAND_BYTES
        assert rows * columns == ingest_module._CHUNK_PIXELS


@pytest.mark.parametrize("damage", ["short", "missing"])
def test_an_ingest_of_which_a_power_cut_took_a_part_is_to_be_done_again(tmp_path, damage):
    source = ingest_array(pattern(200, 300), tmp_path / "s")
    assert Source.find(tmp_path / "s") == source
    chunk = next((tmp_path / "s").glob("c.*"))
    chunk.write_bytes(chunk.read_bytes()[:-1]) if damage == "short" else chunk.unlink()
    assert Source.find(tmp_path / "s") is None
    with pytest.raises(JobError, match="did not finish"):
        Source.open(tmp_path / "s")


def test_opening_what_is_no_store_is_an_error(tmp_path):
    assert Source.find(tmp_path / "nowhere") is None
    with pytest.raises(JobError, match="no whole image"):
        Source.open(tmp_path / "nowhere")
    assert not Path(tmp_path / "nowhere").exists()


def test_reading_one_file_twice_sees_its_new_content(tmp_path):
    path = saved(tmp_path / "a.png", pattern(seed=1))
    ingest(path, tmp_path / "1")
    saved(path, pattern(seed=2))
    np.testing.assert_array_equal(everything(ingest(path, tmp_path / "2")), pattern(seed=2))


def test_content_tells_the_format_not_the_suffix(tmp_path):
    saved(tmp_path / "really.png", pattern(), format="JPEG")
    assert probe(tmp_path / "really.png").width == 130


def test_a_tiff_of_luma_and_chroma_is_refused_and_not_shown_in_wrong_colours(tmp_path):
    path = tmp_path / "ycc.tif"
    Image.new("YCbCr", (20, 20), (100, 90, 160)).save(path)
    with pytest.raises(UsageError, match="YCbCr samples without JPEG compression"):
        probe(path)


def test_a_jpeg_in_a_tiff_keeps_its_colours(tmp_path):
    path = tmp_path / "jpeg.tif"
    Image.new("RGB", (32, 32), (200, 60, 30)).save(path, compression="jpeg", quality=95)
    source = ingest(path, tmp_path / "store")
    assert np.abs(source.read(Rect(0, 0, 32, 32)).astype(int) - (200, 60, 30)).max() < 6
