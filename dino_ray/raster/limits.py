"""Files that would take more than there is: those that claim more than they can hold, and those that cannot be
decoded by rows: what that takes, and whether this machine has it.
"""

from __future__ import annotations

import os
from pathlib import Path

from dino_ray.errors import UsageError
from dino_ray.raster.vips import VipsImage, field, loader

_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMITS = (  # limit and use, of control groups v2 and v1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)

# A picture with anything on it stays far below 16,384 pixels per byte: deflate ends at 1:1032, which is 8,256
# pixels per byte for a blank 1-bit PNG. What is small enough to do no harm may be as blank as it likes (and
# every WebP is that small); vector drawings have no pixels to count.
_MAX_PIXELS_PER_BYTE = 16_384
_ALWAYS_PLAUSIBLE_PIXELS = 2**28

_COEFFICIENT_BYTES = 2  # a progressive JPEG's, of which libjpeg keeps all until the last scan
_GIGABYTE = 1e9

_WORKAROUNDS = {
    "progressive JPEG": "save it as a baseline JPEG (jpegtran -copy all) or a tiled TIFF",
    "interlaced PNG": "save it without interlacing or as a tiled TIFF",
}


def check_plausible(image: VipsImage, size: int | None, shown: str) -> None:
    """Refuse a file that claims more pixels than its bytes can hold.

    Parameters
    ----------
    size
        Of the file in bytes; None where a server does not say.

    Raises
    ------
    UsageError
        With what it claims.
    """
    claimed = image.width * image.height
    vector = loader(image).startswith("svg")
    if size is None or vector:
        return
    if claimed > max(_ALWAYS_PLAUSIBLE_PIXELS, size * _MAX_PIXELS_PER_BYTE):
        raise UsageError(
            f"{shown}: claims {image.width:,} × {image.height:,} pixels in {size:,} bytes, more than such a "
            "file can hold; it is truncated or made to exhaust memory: get a whole copy"
        )


def kind_of(image: VipsImage) -> str:
    """What kind of file that must be decoded whole this is, "" for one that is decoded by rows."""
    name = loader(image)
    if name.startswith("jpeg") and field(image, "jpeg-multiscan", 0):
        return "progressive JPEG"
    if name.startswith("png") and field(image, "interlaced", 0):
        return "interlaced PNG"
    for prefix, kind in (("webp", "WebP"), ("heif", "HEIF/AVIF"), ("gif", "GIF")):
        if name.startswith(prefix):
            return kind
    return ""


def bytes_needed(image: VipsImage) -> int:
    """Memory that decoding takes beyond a few rows, by the decoders' own data structures; 0 if none."""
    pixels: int = image.width * image.height
    kind = kind_of(image)
    if kind == "progressive JPEG":
        halved = field(image, "jpeg-chroma-subsample", "") == "4:2:0"
        samples = 1.5 if halved and image.bands == 3 else image.bands
        return int(pixels * samples * _COEFFICIENT_BYTES)
    bands: int = image.bands
    sample_bytes = 2 if image.format == "ushort" else 1
    if kind == "interlaced PNG":
        return pixels * bands * sample_bytes
    if kind == "HEIF/AVIF":  # luma and chroma, and the RGB made of them
        return pixels * (bands + 3) * sample_bytes
    if kind == "WebP":  # a frame, and the RGBA that it is put on
        return pixels * (bands + 4)
    return pixels * 4 if kind else 0  # a GIF's RGBA


def check_memory(image: VipsImage, shown: str) -> None:
    """Refuse a file that would have to be decoded whole and does not fit.

    Raises
    ------
    UsageError
        With the kind of file, what it takes, what there is, and what to do.
    """
    kind = kind_of(image)
    check_fits(
        bytes_needed(image),
        f"{shown}: is a {kind} of {image.width:,} × {image.height:,}, which can only be decoded whole",
        _WORKAROUNDS.get(kind, "save it as a tiled TIFF on a larger machine"),
    )


def check_fits(needed: int, what: str, instead: str) -> None:
    """Refuse what takes more memory than there is.

    Parameters
    ----------
    needed
        In bytes.
    what, instead
        The message's beginning, and the way out at its end.

    Raises
    ------
    UsageError
        With what it takes and what there is.
    """
    free = available_bytes()
    if free is not None and needed > free:
        raise UsageError(
            f"{what}; that takes {needed / _GIGABYTE:.1f} GB of memory and {free / _GIGABYTE:.1f} GB are free: "
            f"{instead}"
        )


def available_bytes() -> int | None:
    """Memory that this process may still use, by the machine and by its control group; None if unknown."""
    free = [_machine_bytes()]
    for limit, used in _CGROUP_LIMITS:
        try:
            free.append(max(0, int(limit.read_text()) - int(used.read_text())))
        except (OSError, ValueError):  # not there, or "max"
            continue
    known = [amount for amount in free if amount is not None]
    return min(known) if known else None


def _machine_bytes() -> int | None:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:  # not Linux: what is built in, which is better than nothing
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
