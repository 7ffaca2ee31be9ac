"""TIFFs with 64-bit samples, which libvips does not read: served to it as the 16-bit TIFF that they become.

The stand-in has the original's directory as far as libvips looks at it, and strips that are decoded with
tifffile and scaled when they are asked for. So everything else here sees one more TIFF, and memory stays
bounded by a row of the original's strips or tiles.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyvips
import tifffile

from dino_ray.errors import DinoRayError, UsageError
from dino_ray.raster import image_file, limits, samples
from dino_ray.raster.image_file import ImageFile
from dino_ray.raster.samples import Span
from dino_ray.raster.tiff.directory import (
    BIG_LITTLE_ENDIAN,
    BIG_TIFF_HEADER,
    LONG,
    LONG8,
    RATIONAL,
    SHORT,
    UNDEFINED,
    Field,
    field,
    write_directory,
)
from dino_ray.raster.tiff.tags import BLACK_IS_ZERO, CONTIGUOUS, RGB, SEPARATE, UNCOMPRESSED, UNSIGNED, Tag
from dino_ray.raster.vips import one_line

_SAMPLE_BYTES = 2
_STRIP_BYTES = 2**20  # of rows that can be cut anywhere; as doubles, with copies, they take 16 times that
_COPIES = 4  # alive at a time: rows compressed, decoded, interleaved, scaled

_BLOCKS = (Tag.XMP, Tag.IPTC, Tag.ICC_PROFILE)
_KINDS = {"f": "floating-point", "i": "signed 64-bit", "u": "64-bit"}
_TAKEN = (BLACK_IS_ZERO, RGB)


class WideTiff:
    """A page of a TIFF with 64-bit samples, as an `ImageFile` of 16 bits.

    Parameters
    ----------
    file
        The TIFF.
    page
        Counted from 0.
    span
        What becomes black and white; None as long as that is not known.

    Raises
    ------
    UsageError
        If the samples are complex numbers, neither grey nor RGB, or compressed in a way that needs another package.
    """

    def __init__(self, file: ImageFile, page: int, span: Span | None) -> None:
        self._file, self._span = file, span or samples.UNIT
        self.shown, self.name, self.size = file.shown, file.name, file.size
        self._error: DinoRayError | None = None
        self._stream = file.stream()
        self._tiff = tifffile.TiffFile(self._stream)
        self._page: Any = self._tiff.pages[page]
        self._check()
        self._rows = self._strip_rows()
        self._check_memory()
        self._head = self._directory()
        self._strip: tuple[int, bytes] = (-1, b"")

    @property
    def alpha(self) -> bool:
        """Whether the last sample of a pixel is alpha."""
        return bool(self._page.samplesperpixel in (2, 4))

    @property
    def kind(self) -> str:
        """What the samples are called."""
        return _KINDS[self._page.dtype.kind]

    def bands(self) -> Generator[npt.NDArray[Any], None, None]:
        """Rows as they are, from top to bottom: (rows, columns, samples) of 64 bits."""
        for y in range(0, self._page.imagelength, self._rows):
            try:
                pixels = self._decoded(y)
            except DinoRayError:
                raise
            except Exception as error:  # every codec has errors of its own
                raise self._damaged(error) from error
            yield pixels

    def vips_source(self) -> pyvips.Source:
        """The stand-in."""
        height = self._page.imagelength
        size = len(self._head) + height * self._row_bytes
        return image_file.vips_source(image_file.Cursor(self._read_at, size), self._failed)

    def stream(self) -> BinaryIO:
        """The original."""
        return self._file.stream()

    def failure(self) -> DinoRayError | None:
        """Why bytes did not come."""
        return self._error or self._file.failure()

    def close(self) -> None:
        """Let go of the file."""
        self._tiff.close()
        self._stream.close()
        self._file.close()
        self._strip = (-1, b"")

    @property
    def _row_bytes(self) -> int:
        return int(self._page.imagewidth * self._page.samplesperpixel * _SAMPLE_BYTES)

    def _check(self) -> None:
        page = self._page
        if page.dtype is None or page.dtype.kind not in _KINDS or page.photometric not in _TAKEN:
            raise UsageError(
                f"{self.shown}: has 64-bit samples of a kind that is not taken; convert it first, for example to a "
                "16-bit TIFF"
            )
        try:
            _ = page.decode
        except ValueError as error:
            raise UsageError(
                f"{self.shown}: its compression is not known here ({error}); pip install imagecodecs, or save it "
                "without compression"
            ) from error

    def _strip_rows(self) -> int:
        page = self._page
        if page.is_tiled:
            return int(page.tilelength)
        if page.is_contiguous:  # and uncompressed: can be cut anywhere
            return max(1, min(int(page.imagelength), _STRIP_BYTES // self._row_bytes))
        return int(min(page.rowsperstrip, page.imagelength))

    def _check_memory(self) -> None:
        """Rows that cannot be cut may be many: some programs compress an image in one strip."""
        row = self._page.imagewidth * self._page.samplesperpixel * self._page.dtype.itemsize
        limits.check_fits(
            int(self._rows * row * _COPIES),
            f"{self.shown}: its strips or tiles are {self._rows:,} rows high, which must be decoded at once",
            "save it in lower strips or without compression",
        )

    def _directory(self) -> bytes:
        """Header and directory of the stand-in, whose strips follow one another behind them."""
        page, n = self._page, self._page.samplesperpixel
        starts = range(0, page.imagelength, self._rows)
        counts = [min(self._rows, page.imagelength - y) * self._row_bytes for y in starts]
        fields = [
            _numbers(Tag.IMAGE_WIDTH, LONG, page.imagewidth),
            _numbers(Tag.IMAGE_LENGTH, LONG, page.imagelength),
            _numbers(Tag.BITS_PER_SAMPLE, SHORT, *[8 * _SAMPLE_BYTES] * n),
            _numbers(Tag.COMPRESSION, SHORT, UNCOMPRESSED),
            _numbers(Tag.PHOTOMETRIC, SHORT, int(page.photometric)),
            _numbers(Tag.SAMPLES_PER_PIXEL, SHORT, n),
            _numbers(Tag.ROWS_PER_STRIP, LONG, self._rows),
            _numbers(Tag.STRIP_BYTE_COUNTS, LONG8, *counts),
            _numbers(Tag.PLANAR_CONFIGURATION, SHORT, CONTIGUOUS),
            _numbers(Tag.SAMPLE_FORMAT, SHORT, *[UNSIGNED] * n),
            *self._copied(),
        ]
        if page.extrasamples:
            fields.append(_numbers(Tag.EXTRA_SAMPLES, SHORT, *map(int, page.extrasamples)))
        # Its length does not depend on the offsets, which depend on its length.
        begin = len(BIG_TIFF_HEADER) + len(_written(fields, [0] * len(counts)))
        offsets = [begin + y * self._row_bytes for y in starts]
        return BIG_TIFF_HEADER + _written(fields, offsets)

    def _copied(self) -> Iterator[Field]:
        tags = self._page.tags
        for tag in _BLOCKS:
            value = tags.valueof(tag)
            if value is not None:
                yield field(
                    BIG_LITTLE_ENDIAN,
                    tag,
                    UNDEFINED,
                    value.encode() if isinstance(value, str) else bytes(value),
                )
        for tag in (Tag.ORIENTATION, Tag.RESOLUTION_UNIT):
            if tags.valueof(tag) is not None:
                yield _numbers(tag, SHORT, int(tags.valueof(tag)))
        for tag in (Tag.X_RESOLUTION, Tag.Y_RESOLUTION):
            if tags.valueof(tag) is not None:
                yield _numbers(tag, RATIONAL, *tags.valueof(tag))

    def _read_at(self, offset: int, length: int) -> bytes:
        if offset < len(self._head):
            return self._head[offset : offset + length]
        number, within = divmod(offset - len(self._head), self._rows * self._row_bytes)
        if self._strip[0] != number:
            pixels = samples.scaled_array(self._decoded(number * self._rows), self._span, self.alpha)
            self._strip = (number, pixels.astype("<u2").tobytes())
        return self._strip[1][within : within + length]

    def _decoded(self, y: int) -> npt.NDArray[Any]:
        """The strip's worth of rows from ``y`` on."""
        page = self._page
        rows, width, n = min(self._rows, page.imagelength - y), page.imagewidth, page.samplesperpixel
        out = np.empty((rows, width, n), page.dtype)
        planes = n if page.planarconfig == SEPARATE else 1
        for plane in range(planes):
            target = out if planes == 1 else out[..., plane : plane + 1]
            if page.is_contiguous:
                target[:] = self._plain_rows(plane, y, target.shape)
            else:
                self._decode_segments(plane, y // self._rows, target)
        return out

    def _plain_rows(self, plane: int, y: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        page = self._page
        dtype = page.dtype.newbyteorder(self._tiff.byteorder)
        row = page.imagewidth * shape[2] * dtype.itemsize
        data = self._bytes(page.dataoffsets[0] + (plane * page.imagelength + y) * row, shape[0] * row)
        return np.frombuffer(data, dtype).reshape(shape)

    def _decode_segments(self, plane: int, number: int, target: npt.NDArray[Any]) -> None:
        page = self._page
        across = -(-page.imagewidth // page.tilewidth) if page.is_tiled else 1
        down = -(-page.imagelength // self._rows)
        first = (plane * down + number) * across
        for index in range(first, first + across):
            data = self._bytes(page.dataoffsets[index], page.databytecounts[index])
            pixels, place, _ = page.decode(data, index, jpegtables=page.jpegtables)
            part = pixels[0, : target.shape[0]]
            target[: part.shape[0], place[3] : place[3] + part.shape[1]] = part[
                :, : target.shape[1] - place[3]
            ]

    def _bytes(self, offset: int, length: int) -> bytes:
        handle = self._tiff.filehandle
        handle.seek(offset)
        data: bytes = handle.read(length)
        if len(data) < length:
            raise ValueError(f"{length - len(data):,} bytes are missing")
        return data

    def _failed(self, error: Exception) -> None:
        self._error = self._error or (error if isinstance(error, DinoRayError) else self._damaged(error))

    def _damaged(self, error: Exception) -> UsageError:
        return UsageError(f"{self.shown}: is truncated or damaged ({one_line(error)}); get a whole copy")


def _numbers(tag: Tag, kind: int, *values: int) -> Field:
    return field(BIG_LITTLE_ENDIAN, tag, kind, values)


def _written(fields: list[Field], offsets: list[int]) -> bytes:
    return write_directory(
        BIG_LITTLE_ENDIAN, len(BIG_TIFF_HEADER), [*fields, _numbers(Tag.STRIP_OFFSETS, LONG8, *offsets)]
    )
