"""The source image: looked at by its header, ingested once, then read by windows from anywhere.

Coordinates are ``source_px``: pixels of the upright image, x to the right, y down.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyvips

from dino_ray.errors import JobError, UsageError
from dino_ray.plan.geometry import Rect
from dino_ray.raster import orientation, store
from dino_ray.raster.decode import Opened, open_image
from dino_ray.raster.rows import decoded_bands
from dino_ray.raster.store import Depth, Pixels
from dino_ray.raster.vips import one_line, overhear

logger = logging.getLogger(__name__)

# Side of a chunk: large enough that a gigapixel is a few thousand files, small enough that a window of one
# tile reads little beyond itself.
_CHUNK_SIDE = 512
_MIN_CHUNK_SIDE = 64
# A band of rows as high as a chunk is the unit of decoding; three are alive at a time. Very wide images get
# smaller chunks so that a band stays within this.
_BAND_BYTES = 32 * 2**20

_INFO_ATTRIBUTE = "dino_ray_source"


@dataclass(frozen=True)
class SourceInfo:
    """What an image is, upright: enough to plan a job and to label its output.

    Attributes
    ----------
    name
        File name, for messages and reports.
    width, height
        Size in source_px, after the file's orientation was applied.
    bands
        1 grey, 2 grey + alpha, 3 RGB, 4 RGBA; alpha is straight.
    dtype
        Depth of a sample.
    alpha
        Whether the last band is alpha.
    icc
        The ICC profile that the pixels are in, or None for sRGB.
    dpi
        Dots per inch in x and y, or None where the file does not say.
    """

    name: str
    width: int
    height: int
    bands: int
    dtype: Depth
    alpha: bool
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None

    @property
    def colour_bands(self) -> int:
        """Number of bands without alpha: 1 or 3."""
        return self.bands - self.alpha

    @property
    def grey(self) -> bool:
        """Whether the image has one colour band."""
        return self.colour_bands == 1


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
        record = store.open_fresh(folder).attrs.get(_INFO_ATTRIBUTE)
        if record is None:
            raise JobError(f"{folder}: holds no whole image; its ingest did not finish")
        return cls(str(folder), _info_from_record(record))

    def read(self, rect: Rect) -> Pixels:
        """Pixels of a window, which may stick out by any amount: the image's edges are replicated.

        Parameters
        ----------
        rect
            Window in source_px; width and height at least 1.

        Returns
        -------
        ndarray (rect.h, rect.w, bands) of ``info.dtype``, owned by the caller.

        Raises
        ------
        JobError
            If the store cannot be read or has lost bytes.
        """
        if rect.w < 1 or rect.h < 1:
            raise ValueError(f"a window must hold pixels: {rect}")
        info = self.info
        ys = np.clip(np.arange(rect.y, rect.y + rect.h), 0, info.height - 1)
        xs = np.clip(np.arange(rect.x, rect.x + rect.w), 0, info.width - 1)
        x, y = int(xs[0]), int(ys[0])
        part = Rect(x, y, int(xs[-1]) + 1 - x, int(ys[-1]) + 1 - y)
        inside = store.read(self.folder, (info.height, info.width, info.bands), info.dtype, part)
        if inside.shape[:2] == (rect.h, rect.w):
            return inside
        replicated: Pixels = inside[(ys - y)[:, None], (xs - x)[None, :]]
        return replicated


def probe(path: str | Path) -> SourceInfo:
    """Look at an image file's header, without decoding pixels.

    Raises
    ------
    UsageError
        If it is missing, a folder, empty, no image that can be read here, or of a kind not taken.
    """
    return _upright_info(path, open_image(path))


def ingest(path: str | Path, folder: str | Path) -> Source:
    """Decode an image file once, top to bottom, into a chunked store that any worker can read windows of.

    Orientation is applied, palettes and fewer than 8 bits are expanded, CMYK becomes sRGB; RGB and grey keep
    their numbers and their profile. Memory is bounded by a few bands of rows, whatever the image's
    size, except where a format forbids decoding by rows (progressive JPEG, interlaced PNG, WebP, HEIF).

    Raises
    ------
    UsageError
        As `probe`; or if the pixels end before the header says, or are damaged.
    JobError
        If the folder cannot be written.
    """
    opened = open_image(path)
    info = _upright_info(path, opened)
    side = _chunk_side(opened.image.width, opened.bands, opened.dtype)
    for note in opened.notes:
        logger.warning("%s: %s", path, note)
    with overhear() as heard, closing(_upright_bands(path, opened, side, heard)) as bands:
        source = _fill(folder, info, bands, side)
    if heard:
        logger.warning("%s: decoded, but may be damaged (%s)", path, heard[0])
    return source


def describe_array(array: npt.NDArray[Any], name: str = "array") -> SourceInfo:
    """What an array is as a source; what `probe` is for a file.

    Parameters
    ----------
    array
        uint8 or uint16, (height, width) or (height, width, 1 to 4): grey, grey + alpha, RGB, RGBA.
    name
        What messages and reports call it.

    Raises
    ------
    UsageError
        If the array has another shape or type, or no pixels.
    """
    array = np.asarray(array)
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise UsageError(f"{name}: has {array.dtype} samples; give uint8 (0 to 255) or uint16 (0 to 65,535)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and not 1 <= array.shape[2] <= 4):
        raise UsageError(f"{name}: has shape {array.shape}; give (height, width) or (height, width, 1 to 4)")
    if array.size == 0:
        raise UsageError(f"{name}: has no pixels (shape {array.shape}); give at least one")
    height, width, bands = _banded(array).shape
    dtype: Depth = "uint8" if array.dtype.itemsize == 1 else "uint16"
    return SourceInfo(name, width, height, bands, dtype, alpha=bands in (2, 4))


def ingest_array(array: npt.NDArray[Any], folder: str | Path, name: str = "array") -> Source:
    """Store an array as `ingest` stores a file; what it may be, `describe_array` says.

    Raises
    ------
    UsageError
        As `describe_array`.
    JobError
        If the folder cannot be written.
    """
    info, pixels = describe_array(array, name), _banded(np.asarray(array))
    side = _chunk_side(info.width, info.bands, info.dtype)

    def bands() -> Iterator[tuple[Rect, Pixels]]:
        for y in range(0, info.height, side):
            yield (
                Rect(0, y, info.width, min(side, info.height - y)),
                pixels[y : y + side].astype(info.dtype, copy=False),
            )

    return _fill(folder, info, bands(), side)


def _banded(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array[:, :, None] if array.ndim == 2 else array


def _chunk_side(width: int, bands: int, dtype: Depth) -> int:
    """Side of a chunk such that a band of rows of ``width`` pixels fits in `_BAND_BYTES`."""
    row_bytes = width * bands * np.dtype(dtype).itemsize
    side = _CHUNK_SIDE
    while side > _MIN_CHUNK_SIDE and side * row_bytes > _BAND_BYTES:
        side //= 2
    return side


def stored_bytes(info: SourceInfo) -> int:
    """Disk that an ingested image takes: chunks are uncompressed, and whole at the borders too."""
    side = _chunk_side(info.width, info.bands, info.dtype)
    stored = [-(-length // side) * min(side, length) for length in (info.width, info.height)]
    return stored[0] * stored[1] * info.bands * np.dtype(info.dtype).itemsize


def _upright_info(path: str | Path, opened: Opened) -> SourceInfo:
    width, height = opened.image.width, opened.image.height
    dpi = opened.dpi
    if orientation.transposes(opened.orientation):
        width, height = height, width
        dpi = dpi and (dpi[1], dpi[0])
    return SourceInfo(
        name=Path(path).name,
        width=width,
        height=height,
        bands=opened.bands,
        dtype=opened.dtype,
        alpha=opened.bands in (2, 4),
        icc=opened.icc,
        dpi=dpi,
    )


def _upright_bands(
    path: str | Path, opened: Opened, side: int, heard: Sequence[str]
) -> Generator[tuple[Rect, Pixels], None, None]:
    """Bands of the file in stored order, each upright and with its place in source_px."""
    width, height = opened.image.width, opened.image.height
    spans = list(orientation.spans(opened.orientation, height, side))
    row = 0
    try:
        with closing(decoded_bands(opened.image, opened.dtype, [b - a for a, b in spans])) as bands:
            for (start, row), stored in zip(spans, bands, strict=True):
                place = orientation.upright_rect(opened.orientation, width, height, start, row)
                yield place, orientation.upright(opened.orientation, stored)
    except pyvips.Error as error:
        raise UsageError(
            f"{path}: is truncated or damaged after row {row:,} of {height:,} ({one_line(error, heard)}); "
            "get a whole copy"
        ) from error


def _fill(folder: str | Path, info: SourceInfo, bands: Iterator[tuple[Rect, Pixels]], side: int) -> Source:
    """Write bands as they come, and note at the end that all is there."""
    shape = (info.height, info.width, info.bands)
    array = store.create(folder, shape, (min(side, info.height), min(side, info.width)), info.dtype)
    try:
        for rect, pixels in bands:
            array[rect.slices] = pixels
        store.set_attributes(array, {_INFO_ATTRIBUTE: _record_of(info)})
    except OSError as error:
        raise JobError(f"{folder}: cannot be written ({error.strerror or error}); check the disk") from error
    return Source(str(folder), info)


def _record_of(info: SourceInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "width": info.width,
        "height": info.height,
        "bands": info.bands,
        "dtype": info.dtype,
        "alpha": info.alpha,
        "icc": None if info.icc is None else base64.b64encode(info.icc).decode("ascii"),
        "dpi": None if info.dpi is None else list(info.dpi),
    }


def _info_from_record(record: dict[str, Any]) -> SourceInfo:
    icc, dpi = record["icc"], record["dpi"]
    return SourceInfo(
        **{**record, "icc": icc and base64.b64decode(icc), "dpi": dpi and (float(dpi[0]), float(dpi[1]))}
    )
