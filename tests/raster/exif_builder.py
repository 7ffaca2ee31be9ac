"""EXIF blocks made and read for tests, by code that shares nothing with what is tested."""

import random
import struct

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
EXIF, GPS, INTEROP = 34665, 34853, 40965
THUMBNAIL = b"\xff\xd8" + b"thumbnail" * 20 + b"\xff\xd9"
MAKER_NOTE = b"ACME\0\x01" + bytes(range(1, 90))


def short(order, *values):
    return SHORT, len(values), struct.pack(f"{order}{len(values)}H", *values)


def long(order, *values):
    return LONG, len(values), struct.pack(f"{order}{len(values)}I", *values)


def rational(order, *values):
    return RATIONAL, len(values) // 2, struct.pack(f"{order}{len(values)}I", *values)


def text(value):
    return ASCII, len(value) + 1, value.encode() + b"\0"


def undefined(value):
    return UNDEFINED, len(value), value


def camera(order):
    """What a camera writes: directory name to tag to (type, count, bytes)."""
    comment = "Grüße".encode("utf-16-le" if order == "<" else "utf-16-be")
    return {
        "main": {
            270: text("Am Fenster"),
            271: text("ACME"),
            272: text("Snap 1"),
            274: short(order, 6),
            282: rational(order, 300, 1),
            283: rational(order, 300, 1),
            296: short(order, 2),
            306: text("2024:05:06 07:08:09"),
            315: text("A. Photographer"),
            33432: text("(c) somebody"),
        },
        "exif": {
            33434: rational(order, 1, 125),
            36864: undefined(b"0232"),
            36867: text("2024:05:06 07:08:09"),
            37500: undefined(MAKER_NOTE),
            37510: undefined(b"UNICODE\0" + comment),
            40962: short(order, 4000),
            40963: short(order, 3000),
            42036: text("ACME 50 mm"),
            65024: short(order, 7),  # a tag that nobody knows
        },
        "gps": {
            0: (BYTE, 4, b"\2\3\0\0"),
            1: text("N"),
            2: rational(order, 48, 1, 8, 1, 0, 1),
        },
        "interop": {1: text("R98")},
        "thumbnail": {259: short(order, 6)},
    }


def build(order, directories, seed=0, thumbnail=THUMBNAIL):
    """A block with its pieces in random places; tables and values lie anywhere but where the header is."""
    chance = random.Random(seed)
    directories = {name: dict(fields) for name, fields in directories.items()}
    for parent, tag, child in (("main", EXIF, "exif"), ("main", GPS, "gps"), ("exif", INTEROP, "interop")):
        if child in directories and parent in directories:
            directories[parent][tag] = long(order, 0)
    has_thumbnail = "thumbnail" in directories
    if has_thumbnail:
        directories["thumbnail"] |= {513: long(order, 0), 514: long(order, len(thumbnail))}
    sizes = {name: 2 + 12 * len(fields) + 4 for name, fields in directories.items()}
    for name, fields in directories.items():
        sizes |= {(name, tag): len(f[2]) for tag, f in fields.items() if len(f[2]) > 4}
    if has_thumbnail:
        sizes["pixels"] = len(thumbnail)
    keys = list(sizes)
    chance.shuffle(keys)
    places, at = {}, 8
    for key in keys:
        at += 2 * chance.randrange(3)
        places[key] = at
        at += sizes[key] + sizes[key] % 2
    block = bytearray(at)
    block[:8] = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, places["main"])
    points = {EXIF: places.get("exif"), GPS: places.get("gps"), INTEROP: places.get("interop")}
    points[513] = places.get("pixels")
    for name, fields in directories.items():
        entries = b""
        for tag, (kind, count, data) in sorted(fields.items()):
            value = data
            if points.get(tag) is not None:
                value = struct.pack(f"{order}I", points[tag])
            elif len(data) > 4:
                value = struct.pack(f"{order}I", places[name, tag])
                block[places[name, tag] : places[name, tag] + len(data)] = data
            entries += struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")
        following = places["thumbnail"] if name == "main" and has_thumbnail else 0
        table = struct.pack(f"{order}H", len(fields)) + entries + struct.pack(f"{order}I", following)
        block[places[name] : places[name] + len(table)] = table
    if has_thumbnail:
        block[places["pixels"] : places["pixels"] + len(thumbnail)] = thumbnail
    return bytes(block)


def read(block):
    """Directories by name, as `build` takes them, with the offset of each value."""
    order = {b"II": "<", b"MM": ">"}[block[:2]]
    magic, first = struct.unpack(order + "HI", block[2:8])
    assert magic == 42
    found = {}

    def follow(name, at):
        (count,) = struct.unpack_from(order + "H", block, at)
        fields = {}
        tags = []
        for place in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(order + "HHI", block, place)
            size = SIZES[kind] * number
            start = place + 8 if size <= 4 else struct.unpack_from(order + "I", block, place + 8)[0]
            assert start + size <= len(block)
            fields[tag] = (kind, number, block[start : start + size], start)
            tags.append(tag)
        assert tags == sorted(tags)
        found[name] = fields
        (following,) = struct.unpack_from(order + "I", block, at + 2 + 12 * count)
        if following:
            follow("thumbnail", following)
        for tag, child in ((EXIF, "exif"), (GPS, "gps"), (INTEROP, "interop")):
            if tag in fields and child != name:
                follow(child, struct.unpack(order + "I", fields[tag][2])[0])

    follow("main", first)
    return found


def plain(directories):
    """Types, counts and bytes, without the offsets and the pointers between directories."""
    return {
        name: {tag: tuple(f[:3]) for tag, f in fields.items() if tag not in (EXIF, GPS, INTEROP, 513, 514)}
        for name, fields in directories.items()
    }
