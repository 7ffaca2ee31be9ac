"""TIFF and BigTIFF: tiled, 8 and 16 bits, any size; a pyramid's levels are further directories.

Written block by block (`pyramid`), so memory does not depend on the canvas's size. The directories come first
in the file, so that a reader across a network knows with one request where every tile is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from dino_ray.raster import metadata
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export import ifd, pyramid
from dino_ray.raster.export.codecs import Codec, codec
from dino_ray.raster.export.formats import LIBVIPS_MAX_SIDE, Compression, Format, Labels, Settings
from dino_ray.raster.export.ifd import field
from dino_ray.raster.store import Pixels
from dino_ray.raster.tiff import tags
from dino_ray.raster.tiff.directory import BYTE, LONG, LONG8, RATIONAL, SHORT, UNDEFINED, Field
from dino_ray.raster.tiff.tags import Tag

# What cloud-optimised GeoTIFFs use: 256 would make four times as many tiles, each with a cost of its own.
_TILE = 512
# TIFF 6.0: sides of a tile are multiples of 16.
_TILE_MULTIPLE = 16

# Offsets of a classic TIFF are 32-bit. What is left below 2^32 is room for directories and metadata.
_CLASSIC_BYTES = 4_000_000_000
# Noise makes every compression write more than it was given: LZW, the worst, 12 bits and more for 8.
_WORST_GROWTH = 1.6

_UNSTATED_DPI = (72.0, 72.0)  # what TIFF's readers assume where a file says nothing
_DPI_DENOMINATOR = 1000
_LONG_MAX = 2**32 - 1


def save(canvas: Canvas, labels: Labels, settings: Settings, path: str) -> None:
    """Write a TIFF, or a BigTIFF where a classic one might not hold it."""
    packer = codec(settings.compression, settings.quality, canvas.bands)
    tile = (_tile_side(canvas.height), _tile_side(canvas.width))
    sizes = pyramid.level_sizes(canvas.width, canvas.height, _TILE)
    if not settings.pyramid:
        del sizes[1:]
    big = needs_bigtiff(sizes, tile, canvas.bands * np.dtype(canvas.dtype).itemsize, settings.compression)
    levels = [_Level.empty(width, height, tile) for width, height in sizes]

    def directories() -> list[list[Field]]:
        return [
            _directory(canvas, labels if i == 0 else None, packer, level, big)
            for i, level in enumerate(levels)
        ]

    def pack(block: pyramid.Block) -> list[_Tile]:
        return _packed(block, tile, packer)

    with open(path, "wb") as file:
        file.write(ifd.header(directories(), big))  # holds the place
        pyramid.build(
            canvas,
            sizes,
            pyramid.block_side(_TILE, canvas.bands * np.dtype(canvas.dtype).itemsize),
            pack,
            lambda tiles: _append(file, tiles, levels),
        )
        file.seek(0)
        file.write(ifd.header(directories(), big))
    metadata.complete(path, labels.metadata)


def needs_bigtiff(
    sizes: Sequence[tuple[int, int]], tile: tuple[int, int], pixel_bytes: int, compression: str
) -> bool:
    """Whether a file of levels of these sizes could outgrow a classic TIFF; border tiles are whole tiles."""
    tiles = sum(-(-width // tile[1]) * -(-height // tile[0]) for width, height in sizes)
    growth = 1.0 if compression == "none" else _WORST_GROWTH
    return tiles * tile[0] * tile[1] * pixel_bytes * growth > _CLASSIC_BYTES


def _tile_side(length: int) -> int:
    """Side of a tile along an axis: small images are not padded to a large one."""
    return min(_TILE, -(-length // _TILE_MULTIPLE) * _TILE_MULTIPLE)


@dataclass(frozen=True)
class _Tile:
    level: int
    row: int
    column: int
    data: bytes


@dataclass(frozen=True)
class _Level:
    """A directory's tiles: where each is in the file and how long, by row and column."""

    width: int
    height: int
    tile: tuple[int, int]
    offsets: np.ndarray[tuple[int, int], np.dtype[np.uint64]]
    counts: np.ndarray[tuple[int, int], np.dtype[np.uint64]]

    @classmethod
    def empty(cls, width: int, height: int, tile: tuple[int, int]) -> _Level:
        shape = (-(-height // tile[0]), -(-width // tile[1]))
        return cls(width, height, tile, np.zeros(shape, np.uint64), np.zeros(shape, np.uint64))


def _packed(block: pyramid.Block, tile: tuple[int, int], packer: Codec) -> list[_Tile]:
    high, wide = tile
    return [
        _Tile(
            block.level,
            (block.rect.y + y) // high,
            (block.rect.x + x) // wide,
            packer.pack(_filled(block.pixels[y : y + high, x : x + wide], tile)),
        )
        for y in range(0, block.rect.h, high)
        for x in range(0, block.rect.w, wide)
    ]


def _filled(pixels: Pixels, tile: tuple[int, int]) -> Pixels:
    """A whole tile: at the right and bottom borders, edges are repeated, which costs lossy codecs least."""
    missing = (tile[0] - pixels.shape[0], tile[1] - pixels.shape[1])
    if missing == (0, 0):
        return np.ascontiguousarray(pixels)
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")


def _append(file: BinaryIO, tiles: list[_Tile], levels: list[_Level]) -> None:
    for tile in tiles:
        level = levels[tile.level]
        level.offsets[tile.row, tile.column] = file.tell()
        level.counts[tile.row, tile.column] = len(tile.data)
        file.write(tile.data)


def _directory(canvas: Canvas, labels: Labels | None, packer: Codec, level: _Level, big: bool) -> list[Field]:
    """The fields of one level; ``labels`` for the image itself, None for its reduced copies."""
    jpeg_colour = packer.tables is not None and canvas.bands == 3
    colour = tags.YCBCR if jpeg_colour else tags.RGB if canvas.bands >= 3 else tags.BLACK_IS_ZERO
    place = LONG8 if big else LONG
    fields = [
        field(Tag.NEW_SUBFILE_TYPE, LONG, [0 if labels else tags.REDUCED_IMAGE]),
        field(Tag.IMAGE_WIDTH, LONG, [level.width]),
        field(Tag.IMAGE_LENGTH, LONG, [level.height]),
        field(Tag.COMPRESSION, SHORT, [packer.code]),
        field(Tag.PHOTOMETRIC, SHORT, [colour]),
        field(Tag.TILE_WIDTH, LONG, [level.tile[1]]),
        field(Tag.TILE_LENGTH, LONG, [level.tile[0]]),
        field(Tag.TILE_OFFSETS, place, level.offsets.ravel().tolist()),
        field(Tag.TILE_BYTE_COUNTS, place, level.counts.ravel().tolist()),
        *ifd.sample_fields(canvas.bands, 8 * np.dtype(canvas.dtype).itemsize),
    ]
    if packer.predictor:
        fields.append(field(Tag.PREDICTOR, SHORT, [tags.HORIZONTAL]))
    if packer.tables is not None:
        fields.append(field(Tag.JPEG_TABLES, UNDEFINED, packer.tables))
    if jpeg_colour:
        fields.append(field(Tag.YCBCR_SUBSAMPLING, SHORT, [1, 1]))
    if labels is not None:
        fields += _label_fields(labels)
    return fields


def _label_fields(labels: Labels) -> list[Field]:
    dpi_x, dpi_y = labels.dpi or _UNSTATED_DPI
    blocks = (
        (Tag.XMP, BYTE, labels.metadata.xmp),
        (Tag.IPTC, UNDEFINED, labels.metadata.iptc),
        (Tag.ICC_PROFILE, UNDEFINED, labels.icc),
    )
    return [
        field(Tag.X_RESOLUTION, RATIONAL, _rational(dpi_x)),
        field(Tag.Y_RESOLUTION, RATIONAL, _rational(dpi_y)),
        field(Tag.RESOLUTION_UNIT, SHORT, [tags.INCH]),
        *(field(tag, kind, block) for tag, kind, block in blocks if block),
    ]


def _rational(value: float) -> list[int]:
    return [min(round(value * _DPI_DENOMINATOR), _LONG_MAX), _DPI_DENOMINATOR]


FORMAT = Format(
    key="tiff",
    name="TIFF",
    suffixes=(".tif", ".tiff"),
    max_side=LIBVIPS_MAX_SIDE,
    compressions=(
        Compression("deflate"),
        Compression("none"),
        Compression("lzw"),
        Compression("zstd"),
        Compression("jpeg", lossy=True, depths=("uint8",), bands=(1, 3)),
        Compression("webp", lossy=True, depths=("uint8",), bands=(3, 4)),
    ),
    pyramid="chosen",
    save=save,
)
