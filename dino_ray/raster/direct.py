"""Sources that need no store: tiled TIFFs and small images, read from the file itself by every process."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyvips

from dino_ray.errors import DinoRayError, JobError
from dino_ray.places import shown
from dino_ray.plan.geometry import Rect
from dino_ray.raster.decode import Opened, open_image
from dino_ray.raster.image_file import LocalFile
from dino_ray.raster.info import ReadOptions, SourceInfo
from dino_ray.raster.ingest import open_measured, tell, upright_bands, upright_info
from dino_ray.raster.store import Pixels
from dino_ray.raster.vips import VipsImage, one_line, overhear
from dino_ray.raster.windows import read_replicated

# Decoded images up to this are read whole: 5 megapixels of 8-bit RGB.
_SMALL_BYTES = 16 * 2**20
_KEPT_IMAGES = 2  # open in a process: one that is worked on and the next

# libvips keeps every tile that it has decoded, up to several rows of them, however wide they are. So the
# file is opened anew once its tiles take this.
_CACHE_BYTES = 64 * 2**20
# A larger tile costs too much where a window needs a corner of it; such files are ingested.
_MAX_TILE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class DirectSource:
    """An image that is read from its file by windows; small, picklable, opened where and when it is first read.

    Attributes
    ----------
    path
        Absolute; every process that reads must see it.
    size, changed_ns
        Size in bytes and time of the last change when the job began: another file is not read.
    options
        How the file is read.
    info
        What it is.
    """

    path: str
    size: int
    changed_ns: int
    options: ReadOptions
    info: SourceInfo

    def read(self, rect: Rect) -> Pixels:
        """See `Windows.read`: the image's edges are replicated."""
        return read_replicated(rect, self.info.width, self.info.height, _reader(self).read)


def direct_source(path: str | Path, options: ReadOptions, opened: Opened) -> DirectSource | None:
    """A file as a `DirectSource`, or None if it has to be ingested.

    Raises
    ------
    UsageError
        If a small image is truncated or damaged.
    """
    if not reads_directly(opened):
        return None
    file = opened.input
    assert isinstance(file, LocalFile), "reads_directly refuses others"
    status = file.path.stat()
    source = DirectSource(
        os.path.abspath(file.path), status.st_size, status.st_mtime_ns, options, upright_info(opened)
    )
    if _small(opened):
        with overhear() as heard, closing(open_measured(path, options)) as measured:
            _decoded(measured, heard)
        tell(measured, heard)
    else:
        tell(opened, ())
    return source


def reads_directly(opened: Opened) -> bool:
    """Whether a file needs no store."""
    return isinstance(opened.input, LocalFile) and (_small(opened) or _tiled(opened))


def _small(opened: Opened) -> bool:
    image = opened.image
    decoded: int = image.width * image.height * opened.bands * np.dtype(opened.dtype).itemsize
    return decoded <= _SMALL_BYTES


def _tiled(opened: Opened) -> bool:
    """Whether windows can be had at the cost of their tiles, and need no conversion."""
    tiff = opened.tiff
    return (
        tiff is not None
        and tiff.tile is not None
        and tiff.tile_bytes <= _MAX_TILE_BYTES
        and opened.untouched
        and opened.orientation == 1
    )


def _decoded(opened: Opened, heard: Sequence[str]) -> Pixels:
    info = upright_info(opened)
    pixels = np.empty((info.height, info.width, info.bands), info.dtype)
    with closing(upright_bands(opened, opened.image.height, heard)) as bands:
        for rect, part in bands:
            pixels[rect.slices] = part
    return pixels


class _Small:
    """A decoded image."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels

    def read(self, rect: Rect) -> Pixels:
        return self._pixels[rect.slices].copy()


class _Tiled:
    """An open tiled TIFF, opened anew when the tiles decoded since take too much memory."""

    def __init__(self, source: DirectSource, opened: Opened) -> None:
        assert opened.tiff is not None
        assert opened.tiff.tile is not None
        self._source = source
        self._image: VipsImage | None = opened.image
        self._tile, self._tile_bytes = opened.tiff.tile, opened.tiff.tile_bytes
        self._decoded: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def read(self, rect: Rect) -> Pixels:
        info = self._source.info
        # One at a time: a tile that failed for one reader is in the cache as a black one for the next.
        with self._lock, overhear() as heard:
            try:
                data = pyvips.Region.new(self._current(rect)).fetch(rect.x, rect.y, rect.w, rect.h)
            except pyvips.Error as error:
                self._image = None
                raise JobError(
                    f"{shown(self._source.path)}: is damaged near {rect} ({one_line(error, heard)}); get a whole copy"
                ) from error
        return np.frombuffer(data, info.dtype).reshape(rect.h, rect.w, info.bands)

    def _current(self, rect: Rect) -> VipsImage:
        """The image to read from, after counting the tiles that this will decode."""
        w, h = self._tile
        tiles = {
            (x, y)
            for y in range(rect.y // h, -(-(rect.y + rect.h) // h))
            for x in range(rect.x // w, -(-(rect.x + rect.w) // w))
        }
        if self._decoded and len(self._decoded | tiles) * self._tile_bytes > _CACHE_BYTES:
            self._image = None
        if self._image is None:
            self._image, self._decoded = _open_again(self._source).image, set()
        self._decoded |= tiles
        return self._image


@lru_cache(maxsize=_KEPT_IMAGES)
def _reader(source: DirectSource) -> _Small | _Tiled:
    opened = _open_again(source)
    if not _small(opened):
        return _Tiled(source, opened)
    opened.close()
    with overhear() as heard, closing(open_measured(source.path, source.options)) as measured:
        return _Small(_decoded(measured, heard))


def _open_again(source: DirectSource) -> Opened:
    """The file that the source was made of, checked to be the same."""
    where = shown(source.path)
    try:
        status = os.stat(source.path)
    except OSError as error:
        raise JobError(f"{where}: is gone ({error.strerror}); put it back") from error
    if (status.st_size, status.st_mtime_ns) != (source.size, source.changed_ns):
        raise JobError(f"{where}: has changed since the job began; put the old file back, or begin anew")
    try:
        return open_image(source.path, source.options, access="random")
    except DinoRayError as error:
        raise JobError(str(error)) from error
