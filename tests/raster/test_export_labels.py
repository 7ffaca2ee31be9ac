"""What a photographer put into the source comes out of every format that can carry it, true of the output."""

import base64
import json

import exif_builder as eb
import numpy as np
import pytest
import pyvips
import tifffile
import zarr
from exported import noise, painted, source_of
from PIL import Image, ImageCms

from dino_ray.raster.export import ExportOptions, export
from dino_ray.raster.metadata import Metadata, read, read_tiff
from dino_ray.raster.source import probe

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
    b'tiff:Orientation="6" tiff:ImageWidth="55" dc:source="a field"/></rdf:RDF></x:xmpmeta>'
    b'<?xpacket end="w"?>'
)
IPTC = b"\x1c\x02\x78\x00\x09A caption"
WIDTH, HEIGHT = 110, 70
FORMATS = ["png", "jpg", "webp", "tif"]


def labelled(tmp_path, name, **options):
    """An output whose source was rotated, had 300 × 200 dpi, a thumbnail, and all that a camera writes."""
    canvas = painted(tmp_path / "canvas", noise(3, "uint8"))
    metadata = Metadata(exif=eb.build("<", eb.camera("<")), xmp=XMP, iptc=IPTC)
    export(
        canvas,
        source_of(canvas, icc=SRGB, dpi=(300, 200), metadata=metadata),
        tmp_path / name,
        ExportOptions(**options),
    )
    return tmp_path / name


def found(path):
    if path.suffix != ".tif":
        return read(pyvips.Image.new_from_file(str(path)))
    with open(path, "rb") as file:
        return read_tiff(file)


@pytest.mark.parametrize("suffix", FORMATS)
def test_exif_comes_out_true_of_the_output(tmp_path, suffix):
    path = labelled(tmp_path, f"out.{suffix}")
    seen = eb.read(found(path).exif)
    camera = eb.camera("<")
    assert seen["main"][271][:3] == camera["main"][271]
    assert seen["exif"][37500][:3] == camera["exif"][37500]  # the maker note
    assert seen["gps"][2][:3] == camera["gps"][2]
    assert 274 not in seen["main"] or seen["main"][274][:3] == eb.short("<", 1)
    assert "thumbnail" not in seen
    assert eb.THUMBNAIL not in path.read_bytes()
    exif = Image.open(path).getexif().get_ifd(eb.EXIF)
    assert (exif[40962], exif[40963]) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("suffix", FORMATS)
def test_dots_per_inch_come_out_of_every_format(tmp_path, suffix):
    path = labelled(tmp_path, f"out.{suffix}")
    exif = Image.open(path).getexif()
    assert (exif[282], exif[283], exif[296]) == (600, 400, 2)


def test_a_webp_of_a_source_without_exif_has_its_dots_per_inch_in_one(tmp_path):
    canvas = painted(tmp_path / "canvas", noise(3, "uint8"))
    export(canvas, source_of(canvas, dpi=(300, 200)), tmp_path / "out.webp")
    exif = Image.open(tmp_path / "out.webp").getexif()
    assert (exif[282], exif[283]) == (600, 400)


@pytest.mark.parametrize("suffix", FORMATS)
def test_xmp_comes_out_upright_and_of_the_new_size(tmp_path, suffix):
    xmp = found(labelled(tmp_path, f"out.{suffix}")).xmp
    assert b'tiff:Orientation="1"' in xmp
    assert b'tiff:ImageWidth="110"' in xmp
    assert b'dc:source="a field"' in xmp


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_iptc_comes_out_where_there_is_a_place_for_it(tmp_path, suffix):
    assert found(labelled(tmp_path, f"out.{suffix}")).iptc == IPTC


@pytest.mark.parametrize("options", [{"pyramid": True}, {"compression": "jpeg"}, {"compression": "zstd"}])
def test_labels_leave_the_pixels_of_a_tiff_alone(tmp_path, options):
    path = labelled(tmp_path, "out.tif", **options)
    canvas = painted(tmp_path / "bare", noise(3, "uint8"))
    export(canvas, source_of(canvas), tmp_path / "bare.tif", ExportOptions(**options))
    with tifffile.TiffFile(path) as full, tifffile.TiffFile(tmp_path / "bare.tif") as bare:
        assert len(full.pages) == len(bare.pages)
        np.testing.assert_array_equal(full.asarray(), bare.asarray())
        assert full.pages[0].tags["XMP"].value
        assert full.pages[0].tags["InterColorProfile"].value == SRGB


def test_a_bigtiff_carries_everything_too(tmp_path, monkeypatch):
    monkeypatch.setattr("dino_ray.raster.export.tiff._CLASSIC_BYTES", 0)
    path = labelled(tmp_path, "out.tif")
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff
    info = probe(path)
    assert info.icc == SRGB
    assert info.dpi == pytest.approx((600, 400))
    assert eb.read(found(path).exif)["main"][271][:3] == eb.camera("<")["main"][271]
    assert found(path).iptc == IPTC


@pytest.mark.parametrize("suffix", FORMATS)
def test_nothing_is_made_up_where_the_source_says_nothing(tmp_path, suffix):
    canvas = painted(tmp_path / "canvas", noise(3, "uint8"))
    export(canvas, source_of(canvas), tmp_path / f"out.{suffix}")
    with Image.open(tmp_path / f"out.{suffix}") as image:
        assert not {"exif", "xmp", "icc_profile", "comment"} & set(image.info)
        assert suffix == "tif" or not dict(image.getexif())
    assert found(tmp_path / f"out.{suffix}").xmp is None


def test_an_ome_zarr_keeps_labels_in_an_attribute_of_ours(tmp_path):
    path = labelled(tmp_path, "out.ome.zarr")
    own = json.loads((path / "zarr.json").read_text())["attributes"]["dino_ray"]
    assert own["dpi"] == [600, 400]
    assert base64.b64decode(own["icc"]) == SRGB
    assert b'tiff:Orientation="1"' in base64.b64decode(own["xmp"])
    assert base64.b64decode(own["iptc"]) == IPTC
    assert eb.read(base64.b64decode(own["exif"]))["main"][271][:3] == eb.camera("<")["main"][271]
    assert zarr.open_group(path).attrs["dino_ray"] == own


def test_tiles_of_a_deep_zoom_have_the_profile_and_no_metadata(tmp_path):
    path = labelled(tmp_path, "out.dzi")
    for tile in path.with_name("out_files").glob("*/*.jpg"):
        with Image.open(tile) as image:
            assert image.info["icc_profile"] == SRGB
            assert not {"exif", "xmp", "photoshop"} & set(image.info)
