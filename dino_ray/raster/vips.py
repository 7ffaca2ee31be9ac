"""What every user of libvips here needs: a name for its untyped image, and errors on one line."""

from __future__ import annotations

from typing import Any

VipsImage = Any  # pyvips has no types


def one_line(error: BaseException) -> str:
    """The gist of an error: libvips' messages may span lines and repeat themselves."""
    text = getattr(error, "detail", None) or getattr(error, "strerror", None) or str(error)
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
