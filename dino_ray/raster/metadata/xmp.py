"""XMP packets, changed in single places: all bytes around a changed value stay as they were.

Expat says what is where: it checks that the packet is well-formed, resolves prefixes, and gives the places
of elements in bytes. A packet that declares entities is refused unread, so that none are ever expanded.
Properties are written as attributes of ``rdf:Description`` or as elements in it (ISO 16684-1, 7.9.2.2), and both
are found. The second part of packets that JPEG cuts in two (extended XMP) never gets here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
TIFF = "http://ns.adobe.com/tiff/1.0/"
EXIF = "http://ns.adobe.com/exif/1.0/"
XMP = "http://ns.adobe.com/xap/1.0/"
GPANO = "http://ns.google.com/photos/1.0/panorama/"

# Pictures in words: base64, many times the size of all the rest.
_BULKY = frozenset({(XMP, "Thumbnails")})

_DESCRIPTION, _RDF_ROOT = (RDF, "Description"), (RDF, "RDF")
_ATTRIBUTE = re.compile(rb"""([^\s=<>"'/]+)\s*=\s*("[^"]*"|'[^']*')""")
# From a tag's < to its >, over values that may hold a >.
_TAG = re.compile(rb"""<(?:[^>"']|"[^"]*"|'[^']*')*>""")

_MAX_DEPTH = 200  # real packets stay below 20; time grows with the square of it

Name = tuple[str, str]  # namespace, local name


class Malformed(ValueError):
    """A packet that is no XML in UTF-8, or that declares entities."""


@dataclass(frozen=True)
class Place:
    """Where a property's value stands in the packet, in bytes, and its text."""

    start: int
    stop: int
    text: str


def properties(packet: bytes) -> dict[Name, list[Place]]:
    """The simple properties of the picture itself; not those of others that it was made from.

    Raises
    ------
    Malformed
        If the packet cannot be read.
    """
    return _scan(packet).properties


def edited(packet: bytes, edits: Mapping[Name, Callable[[str], str]]) -> bytes:
    """The packet without thumbnails, and with properties replaced wherever they stand.

    Parameters
    ----------
    edits
        From the old text of a property to its new one; plain text that needs no escapes. A ValueError leaves
        the old text.

    Raises
    ------
    Malformed
        If the packet cannot be read.
    """
    scan = _scan(packet)
    changes = [(start, stop, b"") for start, stop in scan.bulky]
    for name, change in edits.items():
        for place in scan.properties.get(name, ()):
            try:
                changes.append((place.start, place.stop, change(place.text).encode("ascii")))
            except (ValueError, OverflowError):
                continue
    parts, at = [], 0
    for start, stop, new in sorted(changes):  # disjoint: each is a value or an element of its own
        parts += [packet[at:start], new]
        at = stop
    return b"".join([*parts, packet[at:]])


def _scan(packet: bytes) -> _Scan:
    scan = _Scan(packet)
    try:
        scan.parser.Parse(packet.rstrip(b"\0"), True)
    except (expat.ExpatError, RecursionError) as error:
        raise Malformed(str(error)) from error
    return scan


@dataclass
class _Open:
    """An element whose end was not seen yet."""

    name: Name
    at: int
    inside: int  # behind its start tag
    empty: bool  # written as one tag
    text: list[str] = field(default_factory=list)
    simple: bool = True


class _Scan:
    """One pass over a packet, noting places."""

    def __init__(self, packet: bytes) -> None:
        self.properties: dict[Name, list[Place]] = {}
        self.bulky: list[tuple[int, int]] = []
        self._packet = packet
        self._open: list[_Open] = []
        self.parser = expat.ParserCreate(encoding="UTF-8", namespace_separator=" ")
        self.parser.namespace_prefixes = True
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters

    def _refuse(self, *_: object) -> None:
        raise Malformed("it has a document type declaration")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        at = self.parser.CurrentByteIndex
        tag = _TAG.match(self._packet, at)
        if tag is None:
            raise Malformed(f"no tag at byte {at:,}")
        if len(self._open) == _MAX_DEPTH:
            raise Malformed(f"elements in more than {_MAX_DEPTH} others")
        if self._open:
            self._open[-1].simple = False
        self._open.append(_Open(_expanded(name), at, tag.end(), empty=tag[0].endswith(b"/>")))
        if self._in_outer_description():
            self._note_attributes(tag, attributes)

    def _note_attributes(self, tag: re.Match[bytes], attributes: dict[str, str]) -> None:
        by_qualified = {_qualified(name): (_expanded(name), value) for name, value in attributes.items()}
        for match in _ATTRIBUTE.finditer(self._packet, tag.start(), tag.end()):
            found = by_qualified.get(match[1].decode("utf-8", "replace"))
            if found:
                start, stop = match.span(2)
                self._note(found[0], Place(start + 1, stop - 1, found[1]))

    def _characters(self, text: str) -> None:
        if self._open:
            self._open[-1].text.append(text)

    def _end(self, _: str) -> None:
        element = self._open.pop()
        end = self.parser.CurrentByteIndex  # of its end tag
        if element.name in _BULKY and all(above.name not in _BULKY for above in self._open):
            end_tag = None if element.empty else _TAG.match(self._packet, end)
            self.bulky.append((element.at, end_tag.end() if end_tag else element.inside))
        if element.simple and not element.empty and self._in_outer_description():
            self._note(element.name, Place(element.inside, end, "".join(element.text)))

    def _in_outer_description(self) -> bool:
        if len(self._open) < 2 or self._open[-1].name != _DESCRIPTION:
            return False
        names = [element.name for element in self._open]
        return names[-2:] == [_RDF_ROOT, _DESCRIPTION] and names.count(_DESCRIPTION) == 1

    def _note(self, name: Name, place: Place) -> None:
        self.properties.setdefault(name, []).append(place)


def _expanded(name: str) -> Name:
    """Namespace and local name of expat's ``namespace local prefix``."""
    parts = name.split(" ")
    return (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])


def _qualified(name: str) -> str:
    """As it is written in the packet."""
    parts = name.split(" ")
    return f"{parts[2]}:{parts[1]}" if len(parts) > 2 else parts[-1]
