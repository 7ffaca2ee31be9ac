"""Samples of every kind end up as 8 or 16 bits, by a rule that is said, and colours change only where asked."""

import io
import logging
import struct

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image, ImageCms

from dino_ray.errors import UsageError
from dino_ray.plan.geometry import Rect
from dino_ray.raster.source import ReadOptions, Source, ingest, probe

RNG = np.random.default_rng(0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def everything(source):
    return source.read(Rect(0, 0, source.info.width, source.info.height))


def write(path, array, **options):
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    photometric = "minisblack" if array.ndim == 2 or array.shape[2] < 3 else "rgb"
    extra = {"extrasamples": ["unassalpha"]} if array.ndim == 3 and array.shape[2] in (2, 4) else {}
    if options.get("planarconfig") == "separate":
        array = np.moveaxis(array, 2, 0)
    else:
        extra["planarconfig"] = "contig"
    tifffile.imwrite(path, array, photometric=photometric, **{**extra, **options})
    return path


def sixteen(values, low, high):
    return np.rint((values.astype(np.float64) - low) * (65_535 / (float(high) - low))).astype(int)


def taken(path, folder, caplog):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        source = ingest(path, folder)
    assert source.info.dtype == probe(path).dtype == "uint16"
    return everything(source).astype(int), caplog.text


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_floats_within_0_to_1_are_taken_as_such(tmp_path, caplog, dtype, bands):
    values = RNG.uniform(0.2, 0.7, (40, 50, bands)).astype(dtype)
    pixels, said = taken(write(tmp_path / "a.tif", values), tmp_path / "s", caplog)
    assert np.abs(pixels - sixteen(values, 0, 1)).max() <= 1  # libvips keeps 32-bit floats
    assert "floating-point samples within 0 to 1" in said


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("low", "high"), [(-3.0, 1.0), (0.0, 255.0), (0.5, 1e6), (1e6, 1e6 + 4)])
def test_other_floats_span_from_least_to_greatest_in_all_colours_alike(tmp_path, caplog, dtype, low, high):
    values = RNG.uniform(low, high, (40, 50, 3)).astype(dtype)
    values[..., 2] = (low + high) / 2  # a band that does not reach the ends keeps its place
    values[0, 0, 0], values[0, 1, 1] = low, high
    pixels, said = taken(write(tmp_path / "a.tif", values), tmp_path / "s", caplog)
    np.testing.assert_allclose(pixels, sixteen(values, low, high), atol=1)
    assert pixels.min() == 0
    assert pixels.max() == 65_535
    assert f"from {low:,.6g} to {high:,.6g}" in said


def test_alpha_keeps_its_meaning_beside_colours_that_are_scaled(tmp_path, caplog):
    values = RNG.uniform(0, 900, (40, 50, 4)).astype(np.float32)
    values[..., 3] = RNG.uniform(0.2, 0.8, (40, 50))
    pixels, _ = taken(write(tmp_path / "a.tif", values), tmp_path / "s", caplog)
    np.testing.assert_allclose(pixels[..., 3], values[..., 3] * 65_535, atol=1)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "int64", "uint64"])
def test_other_integers_span_from_least_to_greatest(tmp_path, caplog, dtype):
    kind = np.iinfo(dtype)
    values = RNG.integers(kind.min // 2, kind.max // 2, (40, 50), dtype=dtype)
    pixels, said = taken(write(tmp_path / "a.tif", values), tmp_path / "s", caplog)
    expected = sixteen(values, float(values.min()), float(values.max()))
    np.testing.assert_allclose(pixels[..., 0], expected, atol=1)
    assert "scaled to 16 bits" in said


def test_no_two_signed_16_bit_values_become_one(tmp_path, caplog):
    values = np.arange(-32_768, 32_768, dtype=np.int16).reshape(256, 256)
    pixels, _ = taken(write(tmp_path / "a.tif", values), tmp_path / "s", caplog)
    np.testing.assert_array_equal(pixels[..., 0], values.astype(int) + 32_768)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_a_constant_image_is_no_division_by_zero(tmp_path, caplog, dtype):
    pixels, _ = taken(write(tmp_path / "a.tif", np.full((9, 9), 7, dtype)), tmp_path / "s", caplog)
    assert pixels.max() == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_counted_and_refused(tmp_path, dtype, bad):
    values = RNG.random((60, 50)).astype(dtype)
    values[[3, 50, 59], [1, 2, 3]] = bad
    with pytest.raises(UsageError, match="3 of its 3,000 samples are NaN or infinite; replace them"):
        ingest(write(tmp_path / "a.tif", values), tmp_path / "s")


LAYOUTS = [
    {},
    {"byteorder": ">"},
    {"tile": (32, 48)},
    {"compression": "zlib", "rowsperstrip": 16},
    {"compression": "zlib", "predictor": True, "tile": (32, 32), "bigtiff": True},
    {"compression": "lzw", "rowsperstrip": 7},
    {"planarconfig": "separate"},
    {"planarconfig": "separate", "compression": "zlib", "rowsperstrip": 16},
    {"planarconfig": "separate", "tile": (32, 32)},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_64_bits_come_in_from_any_layout(tmp_path, caplog, layout):
    values = RNG.random((75, 90, 3))
    pixels, _ = taken(write(tmp_path / "a.tif", values, **layout), tmp_path / "s", caplog)
    np.testing.assert_array_equal(pixels, sixteen(values, 0, 1))


def test_64_bits_keep_what_the_file_says_of_itself(tmp_path):
    path = tmp_path / "a.tif"
    tags = [(34675, 7, len(SRGB), SRGB, True), (700, 1, 9, b"<x:xmp/>\n", True), (274, 3, 1, 6, True)]
    resolution = {"resolution": (300, 150), "resolutionunit": "inch"}
    write(path, RNG.random((40, 60, 3)), extratags=tags, **resolution)
    info = probe(path)
    assert (info.width, info.height) == (40, 60)
    assert info.icc == SRGB
    assert info.dpi == pytest.approx((150, 300))
    assert info.metadata.xmp == b"<x:xmp/>\n"


@pytest.mark.parametrize("layout", [{}, {"compression": "zlib", "rowsperstrip": 16}], ids=str)
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_64_bits_that_end_early_are_refused(tmp_path, layout, kept):
    path = write(tmp_path / "a.tif", RNG.random((75, 90, 3)), **layout)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(UsageError, match="truncated"):
        ingest(path, tmp_path / "s")


def test_64_bits_that_are_damaged_inside_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", RNG.random((75, 90, 3)), compression="zlib", rowsperstrip=16)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[2]
    data = bytearray(path.read_bytes())
    data[offset : offset + 2] = b"\xff\xff"  # no longer a deflate stream
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"a\.tif: is truncated or damaged"):
        ingest(path, tmp_path / "s")


def test_complex_samples_are_refused(tmp_path):
    with pytest.raises(UsageError, match="not taken"):
        ingest(write(tmp_path / "a.tif", RNG.random((9, 9)).astype("complex64")), tmp_path / "s")


# --- profiles ----------------------------------------------------------------------------------------------


def p3():
    return bytes(pyvips.Operation.call("profile_load", "p3"))


def gray_profile(gamma):
    """A profile of one grey ink with a plain power curve (ICC.1:2022, 8.4)."""

    def tag(kind, body):
        data = kind + bytes(4) + body
        return data + bytes(-len(data) % 4)

    def desc(text):
        return tag(b"desc", struct.pack(">I", len(text) + 1) + text + b"\0" + bytes(78))

    white = b"".join(struct.pack(">i", round(v * 65536)) for v in (0.9642, 1.0, 0.8249))
    tags = {
        b"desc": desc(b"grey"),
        b"cprt": tag(b"text", b"none\0"),
        b"wtpt": tag(b"XYZ ", white),
        b"kTRC": tag(b"curv", struct.pack(">IH", 1, round(gamma * 256))),
    }
    at, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, body in tags.items():
        table += name + struct.pack(">II", at + len(data), len(body))
        data += body
    size = at + len(data)
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + white
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def colours(dtype, bands):
    top = np.iinfo(dtype).max
    return RNG.integers(0, top, (30, 40, bands), dtype=dtype)


def tagged(path, array, profile):
    kinds = {("uint8", 1): "b-w", ("uint8", 3): "srgb", ("uint16", 1): "grey16", ("uint16", 3): "rgb16"}
    colour_bands = 1 if array.shape[2] < 3 else 3
    image = pyvips.Image.new_from_array(array)
    image = image.copy(interpretation=kinds[str(array.dtype), colour_bands])
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    image.write_to_file(str(path))
    return path


def by_littlecms(array, profile):
    """What Pillow makes of 8-bit RGB."""
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        "RGB",
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=flags,
    )
    return np.asarray(ImageCms.applyTransform(Image.fromarray(array), transform)).astype(int)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("bands", [3, 4])
def test_srgb_on_request_is_what_another_colour_engine_makes_at_the_same_depth(
    tmp_path, suffix, dtype, bands
):
    step = np.iinfo(dtype).max // 255
    eight = RNG.integers(120, 200, (30, 40, bands), dtype=np.uint8)  # within sRGB
    array = eight * np.array(step, dtype)
    path = tagged(tmp_path / f"a.{suffix}", array, p3())
    source = ingest(path, tmp_path / "s", ReadOptions(to_srgb=True))
    expected = by_littlecms(eight[..., :3], p3())
    pixels = everything(source)
    assert np.abs(pixels[..., :3].astype(int) / step - expected).max() <= 1
    assert np.abs(pixels[..., :3] / step - eight[..., :3]).max() > 5  # it does something
    np.testing.assert_array_equal(pixels[..., 3:], array[..., 3:])
    assert (source.info.icc, source.info.dtype, source.info.bands) == (None, dtype, bands)
    assert source.info == probe(path, ReadOptions(to_srgb=True))


def test_16_bits_in_another_space_use_all_of_their_levels(tmp_path):
    ramp = np.repeat(np.arange(4096, dtype=np.uint16)[None, :, None] + 20_000, 3, 2)
    path = tagged(tmp_path / "a.png", ramp, p3())
    pixels = everything(ingest(path, tmp_path / "s", ReadOptions(to_srgb=True)))
    assert len(np.unique(pixels[..., 0])) > 3_500  # 8 bits would leave 17


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("bands", [1, 2])
def test_grey_stays_grey_on_its_way_to_srgb(tmp_path, dtype, bands):
    array = colours(dtype, bands)
    path = tagged(tmp_path / "a.tif", array, gray_profile(1.8))
    source = ingest(path, tmp_path / "s", ReadOptions(to_srgb=True))
    top = np.iinfo(dtype).max
    linear = (array[..., 0] / top) ** 1.8
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(everything(source)[..., 0] / top - expected).max() < 0.01
    np.testing.assert_array_equal(everything(source)[..., 1:], array[..., 1:])
    assert (source.info.bands, source.info.icc) == (bands, None)


def test_without_a_profile_srgb_is_what_it_is_taken_for(tmp_path):
    array = colours("uint8", 3)
    Image.fromarray(array).save(tmp_path / "a.png")
    source = ingest(tmp_path / "a.png", tmp_path / "s", ReadOptions(to_srgb=True))
    np.testing.assert_array_equal(everything(source), array)


def test_a_damaged_profile_is_left_out_and_it_is_said(tmp_path, caplog):
    array = colours("uint8", 3)
    profile = bytearray(SRGB)
    profile[128:] = bytes(len(profile) - 128)
    Image.fromarray(array).save(tmp_path / "a.png", icc_profile=bytes(profile))
    with caplog.at_level(logging.WARNING):
        source = ingest(tmp_path / "a.png", tmp_path / "s", ReadOptions(to_srgb=True))
    np.testing.assert_array_equal(everything(source), array)
    assert "damaged" in caplog.text


def test_cmyk_on_request_leaves_no_profile_to_be_wrong_about(tmp_path):
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    info = ingest(tmp_path / "a.tif", tmp_path / "s", ReadOptions(to_srgb=True)).info
    assert (info.bands, info.icc) == (3, None)


def test_a_palette_tiff_is_expanded(tmp_path):
    image = Image.fromarray(colours("uint8", 3)).quantize(16)
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(
        everything(ingest(tmp_path / "a.tif", tmp_path / "s")), np.asarray(image.convert("RGB"))
    )


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png", "webp"])
def test_exif_and_xmp_are_known_and_found_again(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
    if suffix == "tif":
        exif[700] = packet
    options = {} if suffix == "tif" else {"xmp": packet}
    Image.fromarray(colours("uint8", 3)).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    source = ingest(tmp_path / f"a.{suffix}", tmp_path / "s")
    assert b"Maker" in source.info.metadata.exif
    if suffix != "png":  # Pillow writes none there
        assert source.info.metadata.xmp == packet
    assert Source.open(tmp_path / "s") == source
