"""What every user of libvips here needs: a name for its untyped image, errors on one line, its warnings.

Importing this changes two things for the whole process, since libvips has but one of each: its cache of operations
is off, and its warnings go where `overhear` says.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyvips

VipsImage = Any  # pyvips has no types

_PREFIX = "VIPS: "

# libvips keeps its last hundred operations, in case they come again; none does here, and what they hold on to
# are the tile caches of files long done with (150 against 20 MB after 100 windows of a tiled TIFF).
pyvips.cache_set_max(0)


def field(image: VipsImage, name: str, default: Any) -> Any:
    """A field of an image's header, or what stands for one that is not there."""
    return image.get(name) if image.get_typeof(name) else default


def loader(image: VipsImage) -> str:
    """Name of the operation that reads an image's file."""
    return str(field(image, "vips-loader", ""))


def one_line(error: BaseException, heard: Sequence[str] = ()) -> str:
    """The gist of an error: libvips' own may span lines, repeat themselves, or leave the reason to a warning.

    ``heard`` is what `overhear` caught meanwhile.
    """
    detail = getattr(error, "detail", None) or getattr(error, "strerror", None) or ""
    if isinstance(detail, bytes):
        detail = detail.decode(errors="replace")
    for text in (str(detail), *heard, str(error)):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines:
            return lines[0]
    return type(error).__name__


class _Hush(logging.Filter):
    """Takes libvips' warnings out of the log and gives them to whoever listens.

    libvips warns through pyvips' logger, for a damaged file once per strip and thread, in words that mean
    nothing to a user; the error or the note that we give instead says it once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listeners: list[list[str]] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        for heard in list(self.listeners):
            heard.append(record.getMessage().removeprefix(_PREFIX).split("\n")[0])
        return False


_hush = _Hush()
logging.getLogger("pyvips").addFilter(_hush)


@contextmanager
def overhear() -> Iterator[list[str]]:
    """A list that fills with what libvips warns of, from any thread, while the context lasts."""
    heard: list[str] = []
    _hush.listeners.append(heard)
    try:
        yield heard
    finally:
        # By identity: two lists of the same warnings are equal.
        _hush.listeners[:] = [other for other in _hush.listeners if other is not heard]
