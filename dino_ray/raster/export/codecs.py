"""How a tile of a TIFF is packed: one function per compression."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np

from dino_ray.raster.store import Pixels

# On upscaled photographs, with the predictor, one core: libdeflate's level 1 makes files 0.6 % larger than level 3
# does, in two thirds of the time; zstd's level 1 1 % larger than level 3, in half the time.
_DEFLATE_LEVEL = 1
_ZSTD_LEVEL = 1
# As for WebP files: more effort saves nothing at high quality.
_WEBP_EFFORT = 1

# JPEG markers, ITU-T T.81 table B.1.
_START_OF_IMAGE, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
_QUANTISATION, _HUFFMAN, _START_OF_SCAN, _JFIF = 0xDB, 0xC4, 0xDA, 0xE0


@dataclass(frozen=True)
class Codec:
    """One of TIFF's compressions.

    Attributes
    ----------
    code
        Its number in the file.
    pack
        A tile (height, width, bands) as bytes.
    predictor
        Whether it packs differences of neighbours in a row, predictor 2.
    tables
        For JPEG, what all tiles share.
    """

    code: int
    pack: Callable[[Pixels], bytes]
    predictor: bool = False
    tables: bytes | None = None


def codec(compression: str, quality: int, bands: int) -> Codec:
    """The codec of that name.

    Parameters
    ----------
    compression
        none, deflate, lzw, zstd, jpeg or webp.
    quality
        1 to 100, for the last two.
    bands
        Of the tiles.
    """
    if compression == "jpeg":
        blank = np.zeros((8, 8, bands), np.uint8)
        tables, _ = split_jpeg(_jpeg(blank, quality))
        return Codec(7, lambda tile: split_jpeg(_jpeg(tile, quality))[1], tables=tables)
    if compression == "webp":
        return Codec(50001, lambda tile: _webp(tile, quality))
    if compression == "none":
        return Codec(1, lambda tile: _little_endian(tile).tobytes())
    code, squeeze = _LOSSLESS[compression]
    return Codec(code, lambda tile: squeeze(_differences(tile)), predictor=True)


# Their arguments are arrays, which imagecodecs takes and its annotations do not know.
_LOSSLESS: dict[str, tuple[int, Callable[[Any], bytes]]] = {
    "deflate": (8, lambda samples: bytes(imagecodecs.deflate_encode(samples, level=_DEFLATE_LEVEL))),
    "lzw": (5, lambda samples: bytes(imagecodecs.lzw_encode(samples))),
    "zstd": (50000, lambda samples: bytes(imagecodecs.zstd_encode(samples, level=_ZSTD_LEVEL))),
}


def split_jpeg(stream: bytes) -> tuple[bytes, bytes]:
    """A JPEG stream as its tables and the rest, both as TIFF has them (Technical Note 2 of 1995)."""
    tables, rest, position = [_START_OF_IMAGE], [_START_OF_IMAGE], len(_START_OF_IMAGE)
    while True:
        _, marker, length = struct.unpack_from(">BBH", stream, position)
        if marker == _START_OF_SCAN:
            break
        segment = stream[position : position + 2 + length]
        if marker in (_QUANTISATION, _HUFFMAN):
            tables.append(segment)
        elif marker != _JFIF:  # says no more than the directory does
            rest.append(segment)
        position += len(segment)
    return b"".join([*tables, _END_OF_IMAGE]), b"".join([*rest, stream[position:]])


def _jpeg(tile: Pixels, quality: int) -> bytes:
    if tile.shape[2] == 1:
        return bytes(imagecodecs.jpeg8_encode(tile[:, :, 0], level=quality))
    return bytes(
        imagecodecs.jpeg8_encode(
            tile, level=quality, colorspace="RGB", outcolorspace="YCBCR", subsampling="444", optimize=False
        )
    )


def _webp(tile: Pixels, quality: int) -> bytes:
    return bytes(imagecodecs.webp_encode(tile, level=quality, lossless=False, method=_WEBP_EFFORT))


def _differences(tile: Pixels) -> Pixels:
    """Predictor 2: each sample less the one of the same band to its left."""
    return _little_endian(imagecodecs.delta_encode(tile, axis=1))


def _little_endian(tile: Pixels) -> Pixels:
    return np.ascontiguousarray(tile, tile.dtype.newbyteorder("<"))
