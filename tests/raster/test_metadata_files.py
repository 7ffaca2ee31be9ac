"""What a photographer put into a file comes out of the file that is written, as other programs read it."""

import io
import logging
import random
import struct
import zlib

import exif_builder as eb
import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, IptcImagePlugin

from dino_ray.raster import metadata as md
from dino_ray.raster.metadata import MAX_EXIF_BYTES, Metadata

WIDTH, HEIGHT = 64, 48
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source="Brücke"/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
).encode()


def data_set(record, number, value):
    return struct.pack(">BBBH", 0x1C, record, number, len(value)) + value


IPTC = data_set(2, 0, b"\0\4") + data_set(2, 120, b"A caption") + data_set(2, 25, b"bridge")
ORDERS = pytest.mark.parametrize("order", ["<", ">"], ids=["II", "MM"])


def picture(bands=3):
    return pyvips.Image.new_from_array(
        np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, bands), np.uint8)
    )


def full(order="<"):
    directories = {name: fields for name, fields in eb.camera(order).items() if name != "thumbnail"}
    return Metadata(eb.build(order, directories), XMP, IPTC)


def saved(path, metadata):
    png = path.suffix == ".png"
    md.reserve(picture(), metadata, png=png).write_to_file(str(path))
    md.complete(path, metadata)
    return path


def reread(path):
    return md.read(pyvips.Image.new_from_file(str(path), revalidate=True))


# --- JPEG, PNG, WebP ---------------------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_and_xmp_come_out_to_the_byte(tmp_path, suffix, order):
    metadata = full(order)
    path = saved(tmp_path / f"out.{suffix}", metadata)
    assert metadata.exif in path.read_bytes()
    assert metadata.xmp in path.read_bytes()
    with Image.open(path) as opened:
        assert opened.info["xmp"].rstrip() == metadata.xmp
        seen = opened.getexif()
        assert seen[271] == "ACME"
        assert seen.get_ifd(eb.EXIF)[37500] == eb.MAKER_NOTE
        assert seen.get_ifd(eb.EXIF)[65024] == 7
        assert seen.get_ifd(eb.GPS)[2] == (48, 8, 0)
    again = reread(path)
    assert again.exif.rstrip(b"\0") == metadata.exif.rstrip(b"\0")
    assert again.xmp.rstrip() == metadata.xmp


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_pixels_are_what_they_are_without_metadata(tmp_path, suffix):
    saved(tmp_path / f"with.{suffix}", full())
    saved(tmp_path / f"without.{suffix}", Metadata())
    images = [np.asarray(Image.open(tmp_path / f"{name}.{suffix}")) for name in ("with", "without")]
    np.testing.assert_array_equal(*images)


def test_every_chunk_of_a_png_has_its_checksum(tmp_path):
    data = saved(tmp_path / "out.png", full()).read_bytes()
    at, kinds = 8, []
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        assert struct.unpack_from(">I", data, at + 8 + size)[0] == zlib.crc32(data[at + 4 : at + 8 + size])
        kinds.append(kind)
        at += 12 + size
    assert at == len(data)
    assert {b"eXIf", b"iTXt"} <= set(kinds)
    assert b"zTXt" not in kinds


def test_iptc_comes_out_of_a_jpeg(tmp_path):
    path = saved(tmp_path / "out.jpg", full())
    with Image.open(path) as opened:
        assert IptcImagePlugin.getiptcinfo(opened)[2, 120] == b"A caption"
    assert reread(path).iptc == IPTC


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("size", [40, 149, 150, 151, 165, 5000, MAX_EXIF_BYTES - 1, MAX_EXIF_BYTES])
def test_a_block_of_any_size_finds_its_room(tmp_path, suffix, size):
    note = b"N" * size
    exif = eb.build("<", {"main": {}, "exif": {37500: eb.undefined(note)}}, 3)
    exif = eb.build("<", {"main": {}, "exif": {37500: eb.undefined(note[len(exif) - size :])}}, 3)
    path = saved(tmp_path / f"out.{suffix}", Metadata(exif=exif[:size]))
    assert exif[:size] in path.read_bytes()
    Image.open(path).load()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_block_that_is_too_large_is_left_out_and_said_so(tmp_path, suffix, caplog):
    exif = eb.build("<", {"main": {}, "exif": {37500: eb.undefined(b"N" * 70_000)}})
    with caplog.at_level(logging.WARNING):
        path = saved(tmp_path / f"out.{suffix}", Metadata(exif=exif))
    assert "EXIF is left out" in caplog.text
    assert b"N" * 100 not in path.read_bytes()
    assert 37500 not in Image.open(path).getexif().get_ifd(eb.EXIF)


def sized_xmp(size, padding=0):
    filler = XMP.replace("Brücke".encode(), b"x" * (size - padding - len(XMP) + len("Brücke".encode())))
    return filler.replace(b"<?xpacket end", b" " * padding + b"<?xpacket end")


@pytest.mark.parametrize(("size", "padding"), [(60_000, 0), (63_000, 4000)])
def test_large_xmp_goes_into_a_jpeg_at_the_cost_of_its_padding(tmp_path, size, padding, caplog):
    xmp = sized_xmp(size, padding)
    with caplog.at_level(logging.WARNING):
        path = saved(tmp_path / "out.jpg", Metadata(xmp=xmp))
    assert len(xmp) == size
    assert reread(path).xmp == xmp.replace(b" " * 100, b"")
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("XMP", Metadata(xmp=sized_xmp(60_001))),
        ("IPTC", Metadata(iptc=IPTC + data_set(2, 0, bytes(32_000)) * 3)),
    ],
)
def test_what_a_jpeg_has_no_room_for_is_said(tmp_path, name, metadata, caplog):
    with caplog.at_level(logging.WARNING):
        path = saved(tmp_path / "out.jpg", metadata)
    assert f"{name} is left out" in caplog.text
    assert (reread(path).xmp, reread(path).iptc) == (None, None)


@pytest.mark.parametrize("size", [300, 3000, 300_000])
def test_xmp_of_any_size_finds_its_room_in_a_png(tmp_path, size):
    words = random.Random(0).choices(range(0x4E00, 0x9FFF), k=size // 3)
    xmp = XMP.replace("Brücke".encode(), "".join(map(chr, words)).encode())
    path = saved(tmp_path / "out.png", Metadata(xmp=xmp))
    assert Image.open(path).info["xmp"].rstrip() == xmp
    assert reread(path).xmp.rstrip() == xmp


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_what_was_attached_and_not_reserved_survives_completion(tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    md.attach(picture(), full()).write_to_file(str(path))
    md.complete(path, full())
    assert reread(path).xmp.rstrip() == XMP
    assert Image.open(path).getexif()[271] == "ACME"


def test_attached_blocks_take_the_place_of_those_there(tmp_path):
    image = md.attach(md.attach(picture(), full()), Metadata(xmp=XMP))
    assert md.read(image) == Metadata(xmp=XMP)


def test_other_files_are_not_touched(tmp_path):
    path = tmp_path / "out.ppm"
    path.write_bytes(b"P6 1 1 255\n   ")
    md.complete(path, full())
    assert path.read_bytes() == b"P6 1 1 255\n   "


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@ORDERS
def test_what_pillow_wrote_is_read_to_the_byte(tmp_path, suffix, order):
    path = tmp_path / f"in.{suffix}"
    prefix = b"Exif\0\0" if suffix == "jpg" else b""
    Image.new("RGB", (8, 8)).save(path, exif=prefix + full(order).exif)
    assert reread(path).exif == full(order).exif


# --- TIFF --------------------------------------------------------------------------------------------------


def bare_tiff(path, big=False, byteorder="<", pages=2):
    with tifffile.TiffWriter(path, bigtiff=big, byteorder=byteorder) as writer:
        for page in range(pages):
            pixels = np.full((HEIGHT, WIDTH, 3), 10 + page, np.uint8)
            writer.write(pixels, photometric="rgb", metadata=None, software=False, resolution=(300, 300))
    return path


@ORDERS
@pytest.mark.parametrize("byteorder", ["<", ">"], ids=["II file", "MM file"])
@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
def test_exif_goes_into_any_tiff_and_comes_back(tmp_path, big, byteorder, order):
    path = bare_tiff(tmp_path / "out.tif", big, byteorder)
    before = path.read_bytes()
    md.add_exif_to_tiff(path, full(order).exif)
    after = path.read_bytes()
    head = 16 if big else 8
    assert after[head : len(before)] == before[head:]
    with tifffile.TiffFile(path) as tiff:
        assert [int(page.asarray()[0, 0, 0]) for page in tiff.pages] == [10, 11]
        tags = tiff.pages[0].tags
        assert [tag.code for tag in tags] == sorted(tag.code for tag in tags)
        assert all(tag.valueoffset % 2 == 0 for tag in tags if tag.valuebytecount > 8)
        assert tags["Artist"].value == "A. Photographer"
        assert tags["XResolution"].value == (300, 1)
        assert "Orientation" not in tags
        assert tags["ExifTag"].value["ExposureTime"] == (1, 125)
        assert tags["GPSTag"].value["GPSLatitude"] == (48, 1, 8, 1, 0, 1)
    if not (big and byteorder == ">"):  # which Pillow cannot read
        with Image.open(path) as opened:
            seen = opened.getexif()
            assert seen.get_ifd(eb.EXIF)[37500] == eb.MAKER_NOTE
            assert seen.get_ifd(eb.EXIF)[40962] == 4000
            utf16 = "utf-16-le" if byteorder == "<" else "utf-16-be"
            assert seen.get_ifd(eb.EXIF)[37510].decode(utf16)[4:] == "Grüße"
            assert seen.get_ifd(eb.GPS)[2] == (48, 8, 0)
            assert seen.get_ifd(eb.INTEROP)[1] == "R98"
    assert pyvips.Image.new_from_file(str(path), page=1, revalidate=True).avg() == 11
    with open(path, "rb") as file:
        found = eb.plain(eb.read(md.read_tiff(file).exif))
    expected = eb.plain(eb.read(full("<").exif))  # what is put together from a TIFF is little-endian
    for tag in (274, 282, 283, 296):
        del expected["main"][tag]
    assert found == expected


def test_a_tiff_keeps_what_it_says_itself(tmp_path):
    path = tmp_path / "out.tif"
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), description="mine", metadata=None)
    md.add_exif_to_tiff(path, full().exif)
    with tifffile.TiffFile(path) as tiff:
        assert [tag.value for tag in tiff.pages[0].tags if tag.code == 270] == ["mine"]
        assert tiff.pages[0].tags["Make"].value == "ACME"


@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
def test_a_classic_tiff_does_not_grow_past_its_offsets(tmp_path, big, caplog):
    path = bare_tiff(tmp_path / "out.tif", big)
    with open(path, "r+b") as file:
        file.truncate(2**32 - 100)  # sparse
    with caplog.at_level(logging.WARNING):
        md.add_exif_to_tiff(path, full().exif)
    with tifffile.TiffFile(path) as tiff:
        assert ("ExifTag" in tiff.pages[0].tags) == big
        assert tiff.pages[0].asarray()[0, 0, 0] == 10
    assert ("no room" in caplog.text) == (not big)


def test_damaged_exif_leaves_a_tiff_as_it_was(tmp_path, caplog):
    path = bare_tiff(tmp_path / "out.tif")
    before = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        md.add_exif_to_tiff(path, full().exif[:9])
    assert path.read_bytes() == before
    assert "EXIF is left out" in caplog.text


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_damaged_exif_never_breaks_a_tiff(tmp_path, seed):
    chance = random.Random(seed)
    block = bytearray(full(chance.choice("<>")).exif)
    for _ in range(chance.randrange(1, 8)):
        block[chance.randrange(len(block))] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
    path = bare_tiff(tmp_path / "out.tif")
    md.add_exif_to_tiff(path, bytes(block))
    with tifffile.TiffFile(path) as tiff:
        assert [int(page.asarray()[0, 0, 0]) for page in tiff.pages] == [10, 11]


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_a_damaged_tiff_is_read_as_far_as_it_goes(seed):
    chance = random.Random(seed)
    file = io.BytesIO(full(chance.choice("<>")).exif)  # a TIFF without an image
    block = file.getbuffer()
    for _ in range(chance.randrange(1, 8)):
        block[chance.randrange(len(block))] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
    found = md.read_tiff(file)
    if found.exif is not None:
        eb.read(found.exif)


@pytest.mark.parametrize("kind", ["bytes", "undefined", "longs", "turned longs"])
def test_iptc_and_xmp_of_a_tiff_are_read_however_they_are_typed(tmp_path, kind):
    records = IPTC + b"\0" * (-len(IPTC) % 4)
    order = ">" if kind == "turned longs" else "<"
    longs = struct.unpack(f"<{len(records) // 4}I", records)
    typed = {"bytes": (1, len(records), records), "undefined": (7, len(records), records)}
    code, count, value = typed.get(kind, (4, len(longs), longs))
    path = tmp_path / "in.tif"
    tags = [(33723, code, count, value, True), (700, 1, len(XMP), XMP, True)]
    tifffile.imwrite(
        path, np.zeros((8, 8), np.uint8), byteorder=order, extratags=tags, metadata=None, software=False
    )
    with open(path, "rb") as file:
        assert md.read_tiff(file) == Metadata(None, XMP, records)


def test_exif_that_pillow_put_into_a_tiff_is_read(tmp_path):
    path = tmp_path / "in.tif"
    Image.new("RGB", (8, 8)).save(path, exif=full().exif)
    with open(path, "rb") as file:
        found = eb.read(md.read_tiff(file).exif)
    assert found["main"][271][2] == b"ACME\0"
    assert found["exif"][37500][2] == eb.MAKER_NOTE
    assert found["gps"][2][2] == struct.pack("<6I", 48, 1, 8, 1, 0, 1)


@pytest.mark.parametrize(
    "options",
    [{}, {"imagej": True}, {"ome": True}, {"description": "shape=(48, 64, 3)", "metadata": None}],
    ids=["shaped", "ImageJ", "OME", "old shaped"],
)
def test_what_a_program_wrote_of_a_tiffs_layout_stays_behind(tmp_path, options):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((HEIGHT, WIDTH, 3), np.uint8), photometric="rgb", **options)
    with open(path, "rb") as file:
        found = eb.read(md.read_tiff(file).exif)["main"]
    assert 270 not in found
    assert 305 in found  # so the rest was read


def test_words_beside_a_programs_description_of_the_layout_are_kept(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, np.zeros((HEIGHT, WIDTH, 3), np.uint8), photometric="rgb", description="Am Fenster"
    )
    with tifffile.TiffFile(path) as tiff:
        assert len([tag for tag in tiff.pages[0].tags if tag.code == 270]) == 2
    with open(path, "rb") as file:
        assert eb.read(md.read_tiff(file).exif)["main"][270][2] == b"Am Fenster\0"


def test_entries_that_share_their_bytes_do_not_add_up_to_more_than_memory(tmp_path, caplog):
    shared = 10 * 2**20
    exif_at, data_at = 26, 26 + 2 + 12 * 500 + 4
    main = struct.pack("<HHHIII", 1, eb.EXIF, eb.LONG, 1, exif_at, 0)
    entries = b"".join(struct.pack("<HHII", 50_000 + i, eb.UNDEFINED, shared, data_at) for i in range(500))
    head = b"II*\0" + struct.pack("<I", 8) + main
    (tmp_path / "a.tif").write_bytes(head + struct.pack("<H", 500) + entries + bytes(4) + b"x" * shared)
    assert len(head) == exif_at
    with open(tmp_path / "a.tif", "rb") as file, caplog.at_level(logging.CRITICAL):
        found = md.read_tiff(file)
    assert shared < len(found.exif) < 2 * shared


@pytest.mark.parametrize("content", [b"", b"II*\0", b"GIF89a" + bytes(30)])
def test_what_is_no_tiff_says_nothing(content):
    assert md.read_tiff(io.BytesIO(content)) == Metadata()


# --- IPTC --------------------------------------------------------------------------------------------------


def photoshop(*resources):
    block = b"Photoshop 3.0\0"
    for number, name, data in resources:
        pascal = bytes([len(name)]) + name
        pascal += b"\0" * (len(pascal) % 2)
        block += b"8BIM" + struct.pack(">H", number) + pascal + struct.pack(">I", len(data)) + data
        block += b"\0" * (len(data) % 2)
    return block


def with_iptc(block):
    image = picture().copy()
    image.set_type(pyvips.GValue.blob_type, "iptc-data", block)
    return md.read(image).iptc


@given(
    st.lists(st.tuples(st.integers(1000, 1027), st.binary(max_size=5), st.binary(max_size=9)), max_size=3),
    st.binary(max_size=6),
)
def test_iptc_is_found_among_photoshops_resources(others, name):
    assert with_iptc(photoshop(*others, (0x0404, name, IPTC), *others)) == IPTC


@given(st.binary(max_size=60), st.booleans())
def test_damaged_photoshop_resources_never_raise(noise, prefixed):
    with_iptc((b"Photoshop 3.0\x008BIM" if prefixed else b"8BIM") + noise)


def test_the_small_picture_in_iptc_is_dropped():
    large = struct.pack(">BBBHI", 0x1C, 2, 202, 0x8004, 40_000) + bytes(40_000)
    records = data_set(2, 200, b"\0\x0b") + data_set(2, 201, b"\0\1") + large
    before = Metadata(iptc=IPTC + records + data_set(2, 80, b"me"))
    assert md.for_output(before, (1, 1), (2, 2), None).iptc == IPTC + data_set(2, 80, b"me")


@given(st.binary(max_size=60))
def test_damaged_iptc_never_raises(noise):
    md.for_output(Metadata(iptc=IPTC + noise), (1, 1), (2, 2), None)
