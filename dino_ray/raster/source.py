"""The source image: looked at by its header, ingested once or read where it is, by windows from anywhere.

Coordinates are ``source_px``: pixels of the upright image, x to the right, y down.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from dino_ray import places
from dino_ray.errors import JobError
from dino_ray.plan.geometry import Rect
from dino_ray.raster import chunks, store
from dino_ray.raster import ingest as ingestion
from dino_ray.raster.decode import open_image
from dino_ray.raster.direct import DirectSource, direct_source, reads_directly
from dino_ray.raster.info import AS_IS, ReadOptions, SourceInfo, from_record
from dino_ray.raster.ingest import IngestStopped, Stop, describe_array, stored_bytes, upright_info
from dino_ray.raster.store import Pixels
from dino_ray.raster.windows import read_replicated

__all__ = [
    "DirectSource",
    "IngestStopped",
    "ReadOptions",
    "Source",
    "SourceInfo",
    "describe_array",
    "ingest",
    "ingest_array",
    "needs_bytes",
    "open_source",
    "probe",
    "stored_bytes",
]


@dataclass(frozen=True)
class Source:
    """An ingested image, read by windows; small, picklable, opened where and when it is first read."""

    folder: str
    info: SourceInfo

    @classmethod
    def open(cls, folder: str | Path) -> Source:
        """Open an earlier ingest.

        Raises
        ------
        JobError
            If the folder holds no ingested image, or one whose ingest was cut short.
        """
        found = cls.find(folder)
        if found is None:
            raise JobError(f"{places.shown(folder)}: holds no whole image; its ingest did not finish")
        return found

    @classmethod
    def find(cls, folder: str | Path) -> Source | None:
        """As `open`, or None where the ingest has yet to be done, or to be done again.

        Raises
        ------
        JobError
            If the folder can't be read, or holds a store of another kind.
        """
        if not store.exists(folder):
            return None
        opened = store.open_fresh(folder)
        record = opened.attrs.get(ingestion.INFO_ATTRIBUTE)
        # The record is written last, but a power cut can undo what was written before it.
        if record is None or not chunks.all_finished(opened.folder, opened.layout):
            return None
        return cls(str(folder), from_record(record))

    def read(self, rect: Rect) -> Pixels:
        """See `Windows.read`: the image's edges are replicated."""
        info = self.info
        layout = store.layout_of(self.folder, (info.height, info.width, info.bands), info.dtype)
        return read_replicated(
            rect, info.width, info.height, lambda part: chunks.read(self.folder, layout, part, absent="error")
        )


def probe(path: str | Path, options: ReadOptions = AS_IS) -> SourceInfo:
    """Look at an image file's header, without decoding pixels.

    Parameters
    ----------
    path
        A local path, or a URL that fsspec knows: ``s3://…``, ``https://…``.

    Raises
    ------
    UsageError
        If it is missing, a folder, empty, no image that can be read here, of a kind not taken, cut short as
        far as its header tells, made to exhaust memory, or would have to be decoded whole and does not fit.
    """
    with closing(open_image(path, options)) as opened:
        return upright_info(opened)


def needs_bytes(path: str | Path, options: ReadOptions = AS_IS) -> int:
    """Disk that `open_source` will take for a file.

    Raises
    ------
    UsageError
        As `probe`.
    """
    with closing(open_image(path, options)) as opened:
        return 0 if reads_directly(opened) else stored_bytes(upright_info(opened))


def open_source(
    path: str | Path, folder: str | Path, options: ReadOptions = AS_IS, stop: Stop | None = None
) -> Source | DirectSource:
    """A file as a source: as it is, if it is a tiled TIFF or small, and else ingested into ``folder``.

    A file that is read as it is must be seen by every process that reads, and stay as it is.

    Raises
    ------
    UsageError, JobError
        As `ingest`.
    """
    with closing(open_image(path, options)) as opened:
        direct = direct_source(path, options, opened)
    return direct or ingest(path, folder, options, stop)


def ingest(
    path: str | Path, folder: str | Path, options: ReadOptions = AS_IS, stop: Stop | None = None
) -> Source:
    """Decode an image file once, top to bottom, into a chunked store that any worker can read windows of.

    Orientation is applied, palettes and fewer than 8 bits are expanded, CMYK becomes sRGB; samples of other
    kinds than 8 and 16 unsigned bits are scaled to 16. RGB and grey keep their numbers and their profile
    unless sRGB is asked for. Memory is bounded by a few bands of rows, whatever the image's size, except
    where a format forbids decoding by rows (progressive JPEG, interlaced PNG, WebP, GIF, HEIF); what does not
    fit then is refused.

    Parameters
    ----------
    path
        A local path, or a URL that fsspec knows; it is read in blocks, and twice if samples are scaled.
    folder
        Where the store goes.
    options
        Which page, and whether to convert to sRGB.
    stop
        Asked once per band, from this thread; when it says yes, the ingest ends.

    Raises
    ------
    UsageError
        As `probe`; or if the pixels end before the header says, are damaged, NaN or infinite.
    JobError
        If the folder cannot be written, or a server fails.
    IngestStopped
        If ``stop`` said so; what is in the folder then is no source.
    """
    return Source(str(folder), ingestion.ingest(path, folder, options, stop))


def ingest_array(
    array: npt.NDArray[Any], folder: str | Path, name: str = "array", stop: Stop | None = None
) -> Source:
    """Store an array as `ingest` stores a file; what it may be, `describe_array` says.

    Raises
    ------
    UsageError
        As `describe_array`.
    JobError
        If the folder cannot be written.
    """
    return Source(str(folder), ingestion.ingest_array(array, folder, name, stop))
