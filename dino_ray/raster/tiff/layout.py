"""What a TIFF says about its layout that libvips does not pass on, read with tifffile from the directory alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from dino_ray.errors import UsageError
from dino_ray.raster.tiff.directory import STARTS
from dino_ray.raster.tiff.tags import REDUCED_IMAGE, SEPARATE, YCBCR

_JPEG_COMPRESSIONS = frozenset({6, 7, 33007, 34892})
_BITS_BEYOND_LIBVIPS = 64

_logger = logging.getLogger("tifffile")


@dataclass(frozen=True)
class TiffLayout:
    """One page.

    Attributes
    ----------
    tile
        Width and height of a tile, None for strips.
    tile_bytes
        Bytes of a decoded tile, all of its bands.
    beyond
        Bytes that the page's data lie beyond the file's end: more than 0 if the file was cut short.
    missing
        Strips or tiles that were never written.
    pages, full_pages
        Pages of the file, and those of them that are no reduced copies of others.
    wide
        Whether samples have 64 bits, more than libvips reads.
    planar_tiles
        Whether every tile holds one band, which libvips does not read.
    raw_luma_chroma
        Whether samples are YCbCr that no JPEG decoder will convert.
    """

    tile: tuple[int, int] | None
    tile_bytes: int
    beyond: int
    missing: int
    pages: int
    full_pages: int
    wide: bool
    planar_tiles: bool
    raw_luma_chroma: bool


def is_tiff(file: BinaryIO) -> bool:
    """Whether a file starts as a classic or a BigTIFF does."""
    return file.read(4) in STARTS


def read(file: BinaryIO, size: int | None, page: int = 0) -> TiffLayout | None:
    """Layout of a page, counted from 0, or of the last if there are fewer; None where tifffile sees no sense."""
    import tifffile

    with _hushed():
        try:
            return _layout(tifffile.TiffFile(file), size, page)
        except Exception:  # of a damaged directory it may raise anything; libvips has the last word on it
            return None


@contextmanager
def _hushed() -> Iterator[None]:
    """What tifffile finds odd stays out of the log: it means nothing to a user."""
    disabled, _logger.disabled = _logger.disabled, True
    try:
        yield
    finally:
        _logger.disabled = disabled


def _layout(tiff: Any, size: int | None, page_number: int) -> TiffLayout:
    pages = len(tiff.pages)
    page = tiff.pages[min(page_number, pages - 1)]
    spans = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    end = max((offset + count for offset, count in spans), default=0)
    tile = (page.tilewidth, page.tilelength) if page.is_tiled else None
    bits = page.bitspersample
    return TiffLayout(
        tile=tile,
        tile_bytes=-(-tile[0] * tile[1] * page.samplesperpixel * bits // 8) if tile else 0,
        beyond=max(0, end - size) if size is not None else 0,
        missing=sum(not offset or not count for offset, count in spans),
        pages=pages,
        full_pages=sum(not other.aspage().subfiletype & REDUCED_IMAGE for other in tiff.pages),
        wide=bits == _BITS_BEYOND_LIBVIPS,
        planar_tiles=tile is not None and page.samplesperpixel > 1 and int(page.planarconfig) == SEPARATE,
        raw_luma_chroma=int(page.photometric) == YCBCR and int(page.compression) not in _JPEG_COMPRESSIONS,
    )


def check(tiff: TiffLayout, shown: str) -> None:
    """Refuse what libvips would read wrongly, or read for long before it finds the end missing.

    Raises
    ------
    UsageError
        Says what to do instead.
    """
    if tiff.raw_luma_chroma:
        # It converts YCbCr where JPEG compression has libtiff do it, and else takes it for RGB.
        raise UsageError(f"{shown}: has YCbCr samples without JPEG compression; convert it to RGB first")
    if tiff.planar_tiles and not tiff.wide:
        raise UsageError(
            f"{shown}: has tiles of one band each, which cannot be read here; interleave its bands first (tiffcp "
            "-p contig)"
        )
    if tiff.beyond:
        raise UsageError(
            f"{shown}: is truncated: {tiff.beyond:,} bytes are missing at its end; get a whole copy"
        )
    if tiff.missing:
        raise UsageError(
            f"{shown}: {tiff.missing:,} of its strips or tiles were never written; fill them first"
        )
