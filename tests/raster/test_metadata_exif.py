"""An EXIF block is made true of the output, and nothing else in it changes."""

import logging
import random
import struct

import exif_builder as eb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_ray.raster.metadata import Metadata, for_output

OLD, NEW = (3000, 4000), (6000, 8000)
ORDERS = pytest.mark.parametrize("order", ["<", ">"], ids=["II", "MM"])

TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12).map(eb.text)
BLOBS = st.binary(min_size=1, max_size=40).map(eb.undefined)
# Tags that mean nothing to us, so that they must come out as they went in.
OTHERS = st.dictionaries(st.integers(45000, 60000), st.one_of(TEXTS, BLOBS), max_size=6)


def updated(block, dpi=None, size=NEW):
    return for_output(Metadata(exif=block), OLD, size, dpi).exif


@st.composite
def blocks(draw):
    """A byte order, and a block whose directories are any part of a camera's with any further tags."""
    order = draw(st.sampled_from("<>"))
    names = {"main"} | draw(st.sets(st.sampled_from(["exif", "gps", "interop", "thumbnail"])))
    if "interop" in names:
        names.add("exif")
    directories = {}
    for name, fields in eb.camera(order).items():
        if name in names:
            some = draw(st.sets(st.sampled_from(sorted(fields))))
            directories[name] = {tag: fields[tag] for tag in some} | draw(OTHERS)
    return order, directories, eb.build(order, directories, draw(st.integers(0, 2**16)))


@given(blocks(), st.sampled_from([None, (600.0, 600.0), (300.0, 150.5)]))
def test_only_what_became_false_changes(made, dpi):
    order, before, block = made
    after = eb.plain(eb.read(updated(block, dpi)))
    expected = eb.plain(before)
    expected.pop("thumbnail", None)
    if 274 in expected["main"]:
        expected["main"][274] = eb.short(order, 1)
    for tag, value in ((40962, NEW[0]), (40963, NEW[1])):
        if tag in expected.get("exif", {}):
            expected["exif"][tag] = eb.short(order, value)
    if dpi is not None:
        expected["main"][282] = eb.rational(order, *dpi[0].as_integer_ratio())
        expected["main"][283] = eb.rational(order, *dpi[1].as_integer_ratio())
        expected["main"][296] = eb.short(order, 2)
    assert after == expected


@given(blocks())
def test_values_stay_where_they_are(made):
    # The offsets in a maker note are known to its maker alone.
    block = made[2]
    before, after = eb.read(block), eb.read(updated(block, (600.0, 600.0)))
    for name in before.keys() - {"main", "thumbnail"}:
        assert {t: f[3] for t, f in before[name].items()} == {t: f[3] for t, f in after[name].items()}


@given(blocks())
def test_no_byte_of_a_thumbnail_is_left(made):
    block = made[2]
    assert eb.THUMBNAIL[4:40] not in updated(block)


@ORDERS
def test_a_thumbnail_at_the_end_takes_no_room(order):
    directories = eb.camera(order)
    with_thumbnail = {seed: eb.build(order, directories, seed) for seed in range(200)}
    at_the_end = [b for b in with_thumbnail.values() if b.rstrip(b"\0").endswith(eb.THUMBNAIL)]
    assert at_the_end
    assert all(len(updated(b)) <= len(b) - len(eb.THUMBNAIL) for b in at_the_end)


@ORDERS
def test_dimensions_that_outgrow_their_type_get_a_larger_one(order):
    block = eb.build(order, eb.camera(order))
    after = eb.plain(eb.read(updated(block, size=(70_000, 40_000))))["exif"]
    assert after[40962] == eb.long(order, 70_000)
    assert after[40963] == eb.short(order, 40_000)


@ORDERS
def test_resolutions_that_share_their_value_come_apart(order):
    block = bytearray(eb.build(order, eb.camera(order)))
    found = eb.read(bytes(block))
    x_at = found["main"][282][3]
    y_entry = block.index(struct.pack(order + "HHI", 283, eb.RATIONAL, 1))
    struct.pack_into(order + "I", block, y_entry + 8, x_at)
    after = eb.plain(eb.read(updated(bytes(block), (600.0, 300.0))))["main"]
    assert after[282] == eb.rational(order, 600, 1)
    assert after[283] == eb.rational(order, 300, 1)


def test_resolution_alone_makes_a_block():
    after = eb.plain(eb.read(updated(None, (600.0, 72.009))))
    expected = {282: eb.rational("<", 600, 1), 283: eb.rational("<", 72009, 1000), 296: eb.short("<", 2)}
    assert after == {"main": expected}


def test_nothing_to_say_makes_no_block():
    assert for_output(Metadata(), OLD, NEW, None) == Metadata()


@ORDERS
@pytest.mark.parametrize("tag", [eb.EXIF, eb.GPS])
def test_a_block_that_points_outside_is_dropped_and_said_so(order, tag, caplog):
    block = bytearray(eb.build(order, eb.camera(order)))
    entry = block.index(struct.pack(order + "HHI", tag, eb.LONG, 1))
    struct.pack_into(order + "I", block, entry + 8, len(block) + 10)
    with caplog.at_level(logging.WARNING):
        assert updated(bytes(block)) is None
    assert "EXIF is left out" in caplog.text


@ORDERS
def test_directories_in_a_ring_end(order):
    directories = {"main": {274: eb.short(order, 6)}}
    block = bytearray(eb.build(order, directories))
    first = struct.unpack_from(order + "I", block, 4)[0]
    struct.pack_into(order + "I", block, first + 2 + 12, first)  # the next one is the first again
    assert eb.plain(eb.read(updated(bytes(block))))["main"] == {274: eb.short(order, 1)}


@settings(max_examples=300)
@given(blocks(), st.integers(0, 2**32), st.booleans())
def test_damage_never_raises(made, seed, cut):
    chance = random.Random(seed)
    block = bytearray(made[2])
    for _ in range(chance.randrange(1, 8)):
        block[chance.randrange(len(block))] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
    if cut:
        del block[chance.randrange(len(block)) :]
    result = updated(bytes(block), (600.0, 300.0))
    assert result is not None  # at least the resolution


@given(st.binary(max_size=200))
def test_noise_never_raises(noise):
    for block in (noise, b"II*\0" + noise, b"MM\0*" + noise):
        assert updated(block, (600.0, 300.0))
