"""XMP is changed in single values, wherever its properties stand; nothing in it is trusted."""

import logging
import random
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_ray.raster.metadata import Metadata, Panorama, for_output, panorama

OLD, NEW = (4096, 2048), (16384, 8192)
DPI = (1200.0, 72.5)

HEAD = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
)
TAIL = "</rdf:RDF></x:xmpmeta>\n" + " " * 200 + '\n<?xpacket end="w"?>'
SPACES = {
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "GPano": "http://ns.google.com/photos/1.0/panorama/",
}
DECLARATIONS = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in SPACES.items())

BEFORE = {
    "tiff:Orientation": "6",
    "tiff:ImageWidth": "4096",
    "tiff:ImageLength": "2048",
    "tiff:XResolution": "3000000/10000",
    "tiff:YResolution": "300/1",
    "tiff:ResolutionUnit": "3",
    "tiff:Make": "ACME &amp; Söhne &gt; alle",
    "exif:PixelXDimension": "4096",
    "exif:PixelYDimension": "2048",
    "exif:ExposureTime": "1/125",
    "xmp:Rating": "5",
    "GPano:ProjectionType": "equirectangular",
    "GPano:FullPanoWidthPixels": "4096",
    "GPano:FullPanoHeightPixels": "3000",
    "GPano:CroppedAreaImageWidthPixels": "4096",
    "GPano:CroppedAreaImageHeightPixels": "2048",
    "GPano:CroppedAreaLeftPixels": "0",
    "GPano:CroppedAreaTopPixels": "101",
    "GPano:InitialViewHeadingDegrees": "280",
}
CHANGED = {
    "tiff:Orientation": "1",
    "tiff:ImageWidth": "16384",
    "tiff:ImageLength": "8192",
    "tiff:XResolution": "1200/1",
    "tiff:YResolution": "145/2",
    "tiff:ResolutionUnit": "2",
    "exif:PixelXDimension": "16384",
    "exif:PixelYDimension": "8192",
    "GPano:FullPanoWidthPixels": "16384",
    "GPano:FullPanoHeightPixels": "12000",
    "GPano:CroppedAreaImageWidthPixels": "16384",
    "GPano:CroppedAreaImageHeightPixels": "8192",
    "GPano:CroppedAreaLeftPixels": "0",
    "GPano:CroppedAreaTopPixels": "404",
}


def packet(values, elements=(), quote='"', inside=""):
    """A packet with these properties, those of ``elements`` as elements and the others as attributes."""
    attributes = "".join(
        f"\n {name} = {quote}{v}{quote}" for name, v in values.items() if name not in elements
    )
    body = "".join(f"<{name}>{v}</{name}>" for name, v in values.items() if name in elements)
    return f'{HEAD}<rdf:Description rdf:about="" {DECLARATIONS}{attributes}>{body}{inside}</rdf:Description>{TAIL}'


def updated(text, dpi=DPI):
    result = for_output(Metadata(xmp=text.encode()), OLD, NEW, dpi).xmp
    return None if result is None else result.decode()


@given(
    st.sets(st.sampled_from(sorted(BEFORE))), st.sets(st.sampled_from(sorted(BEFORE))), st.sampled_from("\"'")
)
def test_only_values_that_became_false_change(names, elements, quote):
    before = {name: BEFORE[name] for name in names}
    after = {name: CHANGED.get(name, value) for name, value in before.items()}
    assert updated(packet(before, elements, quote)) == packet(after, elements, quote)


def test_without_a_resolution_the_old_one_stays():
    before = {"tiff:XResolution": "300/1", "tiff:ResolutionUnit": "3"}
    assert updated(packet(before), dpi=None) == packet(before)


def test_prefixes_do_not_matter_but_namespaces_do():
    text = packet({"tiff:Orientation": "8"}).replace("tiff:", "t:").replace(":tiff=", ":t=")
    assert 't:Orientation = "1"' in updated(text)
    foreign = packet({"tiff:Orientation": "8"}).replace(SPACES["tiff"], "http://example.org/")
    assert updated(foreign) == foreign


def test_thumbnails_go_and_nothing_else_does():
    image = "<rdf:Alt><rdf:li rdf:parseType='Resource'><a>/9j/4AAQ</a><xmp:Thumbnails/></rdf:li></rdf:Alt>"
    title = "<dc:title><rdf:Alt><rdf:li xml:lang='x-default'>Zwölf > elf</rdf:li></rdf:Alt></dc:title>"
    with_them = packet(
        BEFORE, BEFORE, inside=f"{title}<xmp:Thumbnails>{image}</xmp:Thumbnails><xmp:Thumbnails/>"
    )
    after = {name: CHANGED.get(name, value) for name, value in BEFORE.items()}
    assert updated(with_them) == packet(after, BEFORE, inside=title)


@pytest.mark.parametrize("root", ["rdf:li", "rdf:RDF"])
def test_other_pictures_that_this_one_was_made_from_keep_their_numbers(root):
    inner = packet({"tiff:Orientation": "6", "tiff:ImageWidth": "10"}, {"tiff:ImageWidth"})
    inner = inner.removeprefix(HEAD).removesuffix(TAIL)
    text = packet(
        {}, inside=f"<xmp:Ingredients><rdf:Bag><{root}>{inner}</{root}></rdf:Bag></xmp:Ingredients>"
    )
    assert updated(text) == text


def test_what_has_parts_is_no_number():
    text = packet({}, inside="<tiff:Orientation>6<rdf:value>6</rdf:value></tiff:Orientation>")
    assert updated(text) == text


def test_numbers_that_are_none_stay():
    text = packet(
        {
            "GPano:FullPanoWidthPixels": "wide",
            "GPano:CroppedAreaTopPixels": "nan",
            "GPano:CroppedAreaLeftPixels": "1e999999999",
        }
    )
    assert updated(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<x",
        packet(BEFORE)[:-300],
        '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + packet(BEFORE)[40:],
        packet(BEFORE).replace("ACME", "\x01"),
        '<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
        "<a>" * 100_000,
    ],
    ids=["empty", "cut", "truncated", "entities", "control", "external", "deep"],
)
def test_what_is_no_plain_xml_is_dropped_and_said_so(text, caplog):
    with caplog.at_level(logging.WARNING):
        assert not updated(text)
    assert ("XMP is left out" in caplog.text) == bool(text)


def test_a_packet_in_another_encoding_is_dropped():
    block = packet(BEFORE).encode("utf-16")
    assert for_output(Metadata(xmp=block), OLD, NEW, None).xmp is None


def test_zeros_behind_a_packet_do_no_harm():
    block = packet({"tiff:Orientation": "6"}).encode() + b"\0"
    assert b'"1"' in for_output(Metadata(xmp=block), OLD, NEW, None).xmp


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_damage_never_raises_and_what_comes_out_is_xml(seed):
    chance = random.Random(seed)
    block = bytearray(packet(BEFORE, sorted(BEFORE)[::2]).encode())
    for _ in range(chance.randrange(1, 4)):
        block[chance.randrange(len(block))] = chance.choice(b"<>\"'/= &;x\0\xff")
    metadata = Metadata(xmp=bytes(block))
    panorama(metadata)
    result = for_output(metadata, OLD, NEW, DPI).xmp
    if result is not None:
        ElementTree.fromstring(result.rstrip(b"\0"))


# --- panoramas ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [(), sorted(BEFORE)], ids=["attributes", "elements"])
def test_a_panorama_is_read(elements):
    found = panorama(Metadata(xmp=packet(BEFORE, elements).encode()))
    assert found == Panorama("equirectangular", 4096, 3000, 0, 101, 4096, 2048)
    assert found.closes


def test_a_part_of_a_panorama_does_not_close():
    found = panorama(Metadata(xmp=packet({**BEFORE, "GPano:FullPanoWidthPixels": "4100"}).encode()))
    assert not found.closes


def test_another_projection_does_not_close():
    found = panorama(Metadata(xmp=packet({**BEFORE, "GPano:ProjectionType": "cylindrical"}).encode()))
    assert (found.projection, found.closes) == ("cylindrical", False)


def test_a_panorama_that_states_no_crop_is_whole():
    assert panorama(Metadata(xmp=packet({"GPano:ProjectionType": "equirectangular"}).encode())).closes


@pytest.mark.parametrize("xmp", [None, b"", b"<x", packet({"tiff:Make": "ACME"}).encode()])
def test_no_panorama_is_none(xmp):
    assert panorama(Metadata(xmp=xmp)) is None


def test_the_panorama_of_the_output_closes_like_that_of_the_source():
    values = {**BEFORE, "GPano:FullPanoWidthPixels": "4096", "GPano:CroppedAreaImageWidthPixels": "4096"}
    out = for_output(Metadata(xmp=packet(values).encode()), (4096, 2048), (6144, 3071), None)
    found = panorama(out)
    assert found.closes
    assert (found.cropped_width, found.cropped_height) == (6144, 3071)
