"""Every lossless output is the canvas, pixel for pixel, to two decoders that are not ours; lossy ones come close."""

import io
import json
import os

import imagecodecs
import numpy as np
import openslide
import pytest
import pyvips
import tifffile
import zarr
from exported import noise, painted, source_of
from ome_zarr_models.v05.image import Image as OmeImage
from PIL import Image, ImageCms

from dino_ray.raster.export import ExportOptions, export
from dino_ray.raster.export.pyramid import halve

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EVERY_KIND = [(bands, dtype) for bands in (1, 2, 3, 4) for dtype in ("uint8", "uint16")]
# Several tiles and several levels, neither a multiple of a tile nor even.
HEIGHT, WIDTH = 701, 1203


def exported(tmp_path, pixels, name, icc=None, **options):
    canvas = painted(tmp_path / "canvas", pixels, cell=(300, 400))
    export(canvas, source_of(canvas, icc=icc), tmp_path / name, ExportOptions(**options))
    return tmp_path / name


def waves(bands, height=HEIGHT, width=WIDTH):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([128 + 100 * np.sin((x + y + 20 * b) / 25) for b in range(bands)], 2).astype(np.uint8)


def from_pillow(source):
    return np.asarray(Image.open(source))


def from_vips(path):
    image = pyvips.Image.new_from_file(str(path))
    return np.ndarray(
        (image.height, image.width, image.bands),
        {"uchar": np.uint8, "ushort": np.uint16}[image.format],
        image.write_to_memory(),
    )


def assert_same(decoded, pixels):
    np.testing.assert_array_equal(np.asarray(decoded).reshape(pixels.shape), pixels)
    assert decoded.dtype == pixels.dtype


# --- PNG and WebP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bands", "dtype"), EVERY_KIND)
def test_png(tmp_path, bands, dtype):
    pixels = noise(bands, dtype)
    path = exported(tmp_path, pixels, "out.png")
    assert_same(imagecodecs.png_decode(path.read_bytes()), pixels)
    assert_same(from_vips(path), pixels)
    if dtype == "uint8":
        assert_same(from_pillow(path), pixels)


@pytest.mark.parametrize("level", ["0", "9"])
def test_png_at_any_level(tmp_path, level):
    pixels = waves(3, 50, 60)
    path = exported(tmp_path, pixels, "out.png", compression=level)
    assert_same(from_pillow(path), pixels)
    assert (path.stat().st_size > pixels.nbytes) == (level == "0")


@pytest.mark.parametrize("bands", [3, 4])
def test_lossless_webp(tmp_path, bands):
    pixels = noise(bands, "uint8")
    path = exported(tmp_path, pixels, "out.webp", compression="lossless")
    assert_same(from_pillow(path), pixels)
    assert_same(imagecodecs.webp_decode(path.read_bytes()), pixels)


def test_lossless_grey_webp_has_equal_bands(tmp_path):
    pixels = noise(1, "uint8")
    path = exported(tmp_path, pixels, "out.webp", compression="lossless")
    assert_same(from_pillow(path), np.repeat(pixels, 3, axis=2))


@pytest.mark.slow
def test_lossy_webp_holds_a_large_picture(tmp_path):
    """Detail everywhere: modes of this many blocks overflow the format's room for them if libwebp does not care."""
    pixels = np.tile(waves(3, 128, 128) // 2 + noise(3, "uint8", 128, 128) // 2, (64, 64, 1))
    path = exported(tmp_path, pixels, "out.webp")
    assert Image.open(path).size == (8192, 8192)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif", "dzi"])
def test_quality_is_heeded(tmp_path, suffix):
    options = {"compression": "jpeg"} if suffix == "tif" else {}
    sizes = []
    for quality in (20, 98):
        path = exported(tmp_path, waves(3), f"out.{suffix}", quality=quality, **options)
        tile = tmp_path / "out_files" / "11" / "0_0.jpg"
        sizes.append((tile if suffix == "dzi" else path).stat().st_size)
    assert 1.2 * sizes[0] < sizes[1]


# --- TIFF --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pyramid", [False, True])
@pytest.mark.parametrize("compression", ["none", "deflate", "lzw", "zstd"])
@pytest.mark.parametrize(("bands", "dtype"), EVERY_KIND)
def test_tiff(tmp_path, bands, dtype, compression, pyramid):
    pixels = noise(bands, dtype, HEIGHT, WIDTH)
    path = exported(tmp_path, pixels, "out.tif", compression=compression, pyramid=pyramid)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        assert_same(page.asarray(), pixels)
        assert page.is_tiled
        assert list(page.extrasamples) == ([tifffile.EXTRASAMPLE.UNASSALPHA] if bands in (2, 4) else [])
        assert page.photometric.name == ("MINISBLACK" if bands <= 2 else "RGB")
        assert len(tiff.pages) == (3 if pyramid else 1)
    if compression != "zstd":
        assert_same(from_vips(path), pixels)
    elif bands != 2:  # which Pillow does not know
        opened = Image.open(path)
        if dtype == "uint8":
            assert_same(np.asarray(opened), pixels)


@pytest.mark.parametrize("compression", ["none", "deflate", "lzw", "zstd", "jpeg"])
def test_openslide_reads_a_pyramid(tmp_path, compression):
    pixels = waves(3)
    path = exported(tmp_path, pixels, "out.tif", compression=compression, pyramid=True)
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((WIDTH, HEIGHT), (602, 351), (301, 176))
        for level, expected in enumerate((pixels, halve(pixels), halve(halve(pixels)))):
            opened = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))
            assert (opened[:, :, 3] == 255).all()
            off = np.abs(opened[:, :, :3].astype(int) - expected)
            assert off.max() <= (12 if compression == "jpeg" else 0)


@pytest.mark.parametrize(("bands", "dtype"), EVERY_KIND)
def test_levels_of_a_tiff_are_halvings(tmp_path, bands, dtype):
    pixels = noise(bands, dtype, HEIGHT, WIDTH)
    path = exported(tmp_path, pixels, "out.tif", pyramid=True)
    with tifffile.TiffFile(path) as tiff:
        (series,) = tiff.series
        assert [page.is_reduced for page in tiff.pages] == [False, True, True]
        for level in series.levels:
            assert_same(level.asarray(), pixels)
            pixels = halve(pixels)


@pytest.mark.parametrize(("compression", "bands"), [("jpeg", 1), ("jpeg", 3), ("webp", 3), ("webp", 4)])
def test_lossy_tiffs_come_close(tmp_path, compression, bands):
    pixels = waves(bands)
    path = exported(tmp_path, pixels, "out.tif", compression=compression)
    # Pillow's own libtiff knows no WebP.
    others = [from_pillow(path)] if compression == "jpeg" else []
    for decoded in (from_vips(path), tifffile.imread(path), *others):
        off = np.abs(decoded.reshape(pixels.shape).astype(int) - pixels)
        assert off.mean() < 1.5
        assert off.max() < 30


def test_an_opaque_webp_tiff_keeps_its_alpha_band(tmp_path):
    pixels = waves(4)
    pixels[:, :, 3] = 255
    path = exported(tmp_path, pixels, "out.tif", compression="webp")
    decoded = from_vips(path)  # libwebp drops such a band, and libtiff brings it back
    assert decoded.shape == pixels.shape
    assert (decoded[:, :, 3] == 255).all()


def test_jpeg_tiles_keep_chroma_at_full_resolution_and_share_their_tables(tmp_path):
    path = exported(tmp_path, waves(3), "out.tif", compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        assert page.photometric.name == "YCBCR"
        assert page.tags["YCbCrSubSampling"].value == (1, 1)
        tile = path.read_bytes()[page.dataoffsets[0] :][: page.databytecounts[0]]
        assert b"\xff\xdb" not in tile[:200]
        assert b"\xff\xdb" in page.jpegtables


def test_a_tiff_is_a_pyramid_from_a_size_on_that_no_viewer_decodes_at_once(tmp_path, monkeypatch):
    def pages():
        return len(tifffile.TiffFile(exported(tmp_path, waves(1), "out.tif")).pages)

    assert pages() == 1
    monkeypatch.setattr("dino_ray.raster.export.formats.PYRAMID_FROM_PIXELS", 2**19)
    assert pages() == 3


def test_the_same_canvas_makes_the_same_file(tmp_path):
    first, second = (
        exported(tmp_path, noise(3, "uint8", 3000, 2000), f"{name}.tif", pyramid=True).read_bytes()
        for name in "ab"
    )
    assert first == second


@pytest.mark.parametrize("pyramid", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (16, 16), (513, 512)])
def test_tiffs_of_extreme_shape(tmp_path, size, pyramid):
    pixels = noise(3, "uint16", *size)
    path = exported(tmp_path, pixels, "out.tif", pyramid=pyramid)
    assert_same(tifffile.imread(path), pixels)
    assert_same(from_vips(path), pixels)


# --- OME-Zarr ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["blosc", "zstd", "gzip", "none"])
@pytest.mark.parametrize(("bands", "dtype"), EVERY_KIND)
def test_ome_zarr(tmp_path, bands, dtype, compression):
    pixels = noise(bands, dtype, HEIGHT, WIDTH)
    path = exported(tmp_path, pixels, "out.ome.zarr", compression=compression)
    group = zarr.open_group(path, mode="r")
    image = OmeImage.from_zarr(group)
    datasets = image.ome_attributes.multiscales[0].datasets
    assert [axis.name for axis in image.ome_attributes.multiscales[0].axes] == ["c", "y", "x"]
    assert [dataset.path for dataset in datasets] == ["0", "1", "2", "3"]
    expected = pixels
    for dataset in datasets:
        assert_same(np.moveaxis(group[dataset.path][:], 0, 2), expected)
        expected = halve(expected)
    # By hand, too: one chunk of the first band.
    decode = {
        "blosc": imagecodecs.blosc_decode,
        "zstd": imagecodecs.zstd_decode,
        "gzip": imagecodecs.gzip_decode,
        "none": bytes,
    }[compression]
    chunk = decode((path / "0" / "c" / "0" / "0" / "0").read_bytes())
    chunk = np.frombuffer(chunk, np.dtype(dtype).newbyteorder("<")).reshape(HEIGHT, 1024)
    np.testing.assert_array_equal(chunk, pixels[:, :1024, 0])


def test_levels_of_an_ome_zarr_lie_where_they_belong(tmp_path):
    path = exported(tmp_path, waves(3), "out.zarr")
    (image,) = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["multiscales"]
    assert [d["coordinateTransformations"] for d in image["datasets"][:3]] == [
        [{"type": "scale", "scale": [1, s, s]}, {"type": "translation", "translation": [0, t, t]}]
        for s, t in ((1, 0), (2, 0.5), (4, 1.5))
    ]


# --- Deep Zoom ---------------------------------------------------------------------------------------------


def deep_zoom(path, decode):
    """The image that a viewer puts together from the tiles of the last level."""
    attributes = path.read_text()
    assert 'Overlap="1"' in attributes
    assert 'TileSize="254"' in attributes
    files = path.with_name(path.stem + "_files")
    level = max(files.iterdir(), key=lambda folder: int(folder.name))
    tiles = {tuple(map(int, tile.stem.split("_"))): decode(tile.read_bytes()) for tile in level.iterdir()}
    columns, rows = (max(key[axis] for key in tiles) + 1 for axis in (0, 1))

    def inner(tile, x, y):
        return tile[(y > 0) :, (x > 0) :][:254, :254]

    return np.concatenate(
        [np.concatenate([inner(tiles[x, y], x, y) for x in range(columns)], 1) for y in range(rows)]
    )


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_deep_zoom(tmp_path, bands):
    pixels = noise(bands, "uint8", 600, 800)
    path = exported(tmp_path, pixels, "out.dzi", compression="png")
    assert_same(deep_zoom(path, lambda data: np.asarray(Image.open(io.BytesIO(data)))), pixels)
    assert_same(deep_zoom(path, imagecodecs.png_decode), pixels)
    assert 'Width="800"' in path.read_text()
    levels = sorted(int(name) for name in os.listdir(tmp_path / "out_files"))
    assert levels == list(range(11))


@pytest.mark.parametrize(("bands", "compression"), [(1, None), (3, None), (3, "webp"), (4, "webp")])
def test_lossy_deep_zoom_comes_close(tmp_path, bands, compression):
    pixels = waves(bands)
    path = exported(tmp_path, pixels, "out.dzi", compression=compression)
    decode = imagecodecs.webp_decode if compression else imagecodecs.jpeg8_decode
    off = np.abs(deep_zoom(path, decode).reshape(pixels.shape).astype(int) - pixels)
    assert off.mean() < 1.5


def test_deep_zoom_of_transparent_images_has_png_tiles(tmp_path):
    exported(tmp_path, noise(4, "uint8"), "out.dzi")
    assert (tmp_path / "out_files" / "0" / "0_0.png").exists()


def test_tiles_of_a_deep_zoom_carry_the_profile(tmp_path):
    exported(tmp_path, waves(3), "out.dzi", icc=SRGB)
    for level in ("0", "11"):
        tile = Image.open(tmp_path / "out_files" / level / "0_0.jpg")
        assert tile.info["icc_profile"] == SRGB
        assert not tile.getexif().get(271)
