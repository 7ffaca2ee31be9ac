"""Deep Zoom: a ``.dzi`` file and a folder of tiles beside it, for viewers in browsers; 8 bits."""

from __future__ import annotations

import os
import re

from dino_ray import places, uploads
from dino_ray.errors import UsageError
from dino_ray.files import check_place
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export.formats import LIBVIPS_MAX_SIDE, Compression, Format, Labels, Settings
from dino_ray.raster.export.place import flush, remove, replace_folder
from dino_ray.raster.export.vips_image import save_tiles_with

# Tiles of 256 with what they share: one pixel of each neighbour, so that viewers which scale tiles one by one show
# no seams.
_TILE, _OVERLAP = 254, 1

_SUFFIX, _TILES = ".dzi", "_files"
# What is saved before it is placed: a folder, in it an index and tiles of this name.
_NAME = "image"

# How libvips spells the tiles' format; the file name endings are what browsers know.
_TILE_FORMATS = {
    "jpeg": ".jpg[Q={quality},subsample_mode=off]",
    "png": ".png[compression=3,filter=paeth]",
    "webp": ".webp[Q={quality},effort=1,smart_subsample=true]",
}
_PROPERTIES = "vips-properties.xml"
_LEVEL = re.compile(r"\d+")
_HEAD_BYTES = 4096


def save(canvas: Canvas, labels: Labels, settings: Settings, path: str) -> None:
    """Write a folder with an index and its tiles; each tile carries the profile and nothing else."""
    os.mkdir(path)
    suffix = _TILE_FORMATS[settings.compression].format(quality=settings.quality)
    save_tiles_with(
        canvas,
        labels,
        lambda image: image.dzsave(
            os.path.join(path, _NAME),
            layout="dz",
            suffix=suffix,
            tile_size=_TILE,
            overlap=_OVERLAP,
            keep="icc",
        ),
    )
    # libvips' own account of the image, among the levels, which names our source's stand-in.
    remove(os.path.join(path, _NAME + _TILES, _PROPERTIES))


def place(partial: str, target: str) -> None:
    """Move tiles, then the index that names them, to where they belong."""
    index = os.path.join(partial, _NAME + _SUFFIX)
    if places.is_url(target):
        uploads.put_folder(os.path.join(partial, _NAME + _TILES), tiles_folder(target), (index, target))
        return
    flush(index)  # what can fail, before anything is replaced
    replace_folder(os.path.join(partial, _NAME + _TILES), tiles_folder(target))
    os.replace(index, target)


def tiles_folder(path: str) -> str:
    """Where viewers look for the tiles of an index: beside it, under its name without the ending."""
    return os.path.splitext(path)[0] + _TILES


def check(path: str) -> None:
    """Refuse a place that cannot be written, or tiles that are not a Deep Zoom's.

    Raises
    ------
    UsageError
        If so.
    """
    check_place(path)
    away = places.is_url(path)
    target = path if away else os.path.realpath(path)
    folder, named = tiles_folder(target), places.shown(path)
    there = places.is_file(target)
    if there and b"schemas.microsoft.com/deepzoom" not in places.read_bytes(target, _HEAD_BYTES):
        raise UsageError(f"{named}: exists and is no Deep Zoom index; name another output")
    if places.is_file(folder) or (not away and os.path.islink(folder)):
        raise UsageError(
            f"{named}: its tiles belong in {places.shown(folder)}, which is no folder; name another output"
        )
    names = places.list_names(folder)
    strangers = [name for name in names if not _LEVEL.fullmatch(name) and name != _PROPERTIES]
    # Tiles alone are none of ours on a disk; in a store they are what is left of an upload that was cut short.
    if strangers or (names and not there and not away):
        raise UsageError(
            f"{named}: its tiles belong in {places.shown(folder)}, which holds other files; "
            "name another output or remove it"
        )


FORMAT = Format(
    key="dzi",
    name="Deep Zoom",
    suffixes=(_SUFFIX,),
    max_side=LIBVIPS_MAX_SIDE,
    compressions=(
        Compression("jpeg", lossy=True, depths=("uint8",), bands=(1, 3)),
        Compression("png", depths=("uint8",)),
        Compression("webp", lossy=True, depths=("uint8",), bands=(3, 4)),
    ),
    pyramid="always",
    save=save,
    check=check,
    place=place,
)
