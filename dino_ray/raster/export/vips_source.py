"""The canvas as an image that libvips pulls from top to bottom, so that it is never whole in memory.

libvips reads files, not chunk stores. So the canvas is served to it as a file that exists nowhere: an
uncompressed BigTIFF whose header is made up here and whose pixel data, one row after another, is cut
out of bands as libvips asks for it. A band is a number of full-width rows; two are alive at a time, the one being
served and the next, and every row is read once as long as rows are asked for in order.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyvips

from dino_ray.plan.geometry import Rect
from dino_ray.raster.canvas import Canvas
from dino_ray.raster.export import ifd
from dino_ray.raster.export.ifd import field
from dino_ray.raster.tiff import tags
from dino_ray.raster.tiff.directory import LONG, LONG8, SHORT
from dino_ray.raster.tiff.tags import Tag
from dino_ray.raster.vips import VipsImage

# Rows are handed over in strips of about this size: large enough that a call from libvips into Python costs
# nothing beside the copy, small enough that strips add nothing to memory.
_STRIP_BYTES = 2**20
# A band is no higher than a cell, and of very wide canvases lower, so that it stays within this.
_BAND_BYTES = 16 * 2**20


def pull(canvas: Canvas, consume: Callable[[VipsImage], None]) -> None:
    """Have ``consume`` read the whole canvas, once and in order, as a libvips image.

    It runs in a thread of its own, for a call into libvips cannot be interrupted: this way Ctrl-C reaches the
    caller, the image's bytes end, and ``consume`` fails at once.

    Raises
    ------
    Exception
        What reading the canvas raised, in place of libvips' account of it; else what ``consume`` raised.
    """

    def run(file: _CanvasFile) -> None:
        source = pyvips.SourceCustom()
        source.on_read(file.read)
        source.on_seek(file.seek)
        consume(pyvips.Image.new_from_source(source, "", access="sequential", fail_on="error"))

    with _CanvasFile(canvas) as file, ThreadPoolExecutor(1, thread_name_prefix="export") as thread:
        running = thread.submit(run, file)
        try:
            running.result()
        except pyvips.Error as error:
            raise (file.failure or error) from error
        except BaseException as error:
            file.failure = error
            raise


def bigtiff_header(width: int, height: int, bands: int, bits: int, rows_per_strip: int) -> bytes:
    """Header of an uncompressed BigTIFF whose pixels, row-major and little-endian, follow it at once.

    Parameters
    ----------
    width, height
        Size in pixels.
    bands
        1 grey, 2 grey + alpha, 3 RGB, 4 RGBA.
    bits
        Per sample, 8 or 16.
    rows_per_strip
        Rows that a reader fetches at once.
    """
    strip_bytes = rows_per_strip * width * bands * bits // 8
    pixel_bytes = height * width * bands * bits // 8
    n_strips = -(-height // rows_per_strip)

    def laid_out(first: int) -> bytes:
        offsets = [first + i * strip_bytes for i in range(n_strips)]
        counts = [min(strip_bytes, pixel_bytes - i * strip_bytes) for i in range(n_strips)]
        fields = [
            field(Tag.IMAGE_WIDTH, LONG, [width]),
            field(Tag.IMAGE_LENGTH, LONG, [height]),
            field(Tag.COMPRESSION, SHORT, [tags.UNCOMPRESSED]),
            field(Tag.PHOTOMETRIC, SHORT, [tags.BLACK_IS_ZERO if bands <= 2 else tags.RGB]),
            field(Tag.STRIP_OFFSETS, LONG8, offsets),
            field(Tag.ROWS_PER_STRIP, LONG, [rows_per_strip]),
            field(Tag.STRIP_BYTE_COUNTS, LONG8, counts),
            *ifd.sample_fields(bands, bits),
        ]
        return ifd.header([fields], big=True)

    # Lay it out once to learn where pixels begin.
    return laid_out(len(laid_out(0)))


class _CanvasFile:
    """The made-up file: `read` and `seek` over header and pixels, with the next band read ahead."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self._row_bytes = canvas.width * canvas.bands * np.dtype(canvas.dtype).itemsize
        rows_per_strip = max(1, min(canvas.height, _STRIP_BYTES // self._row_bytes))
        bits = 8 * np.dtype(canvas.dtype).itemsize
        self._header = bigtiff_header(canvas.width, canvas.height, canvas.bands, bits, rows_per_strip)
        self._size = len(self._header) + canvas.height * self._row_bytes
        self._band_rows = max(1, min(canvas.cell[0], _BAND_BYTES // self._row_bytes))
        self._position = 0
        self._index, self._band = -1, memoryview(b"")
        self._ahead: tuple[int, Future[memoryview]] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="export-read")
        self.failure: BaseException | None = None

    def __enter__(self) -> _CanvasFile:
        return self

    def __exit__(self, *_: object) -> None:
        # pyvips keeps callbacks, and so this object, as long as the process lives: drop what is large.
        self._reader.shutdown(cancel_futures=True)
        self._band, self._ahead = memoryview(b""), None

    def seek(self, offset: int, whence: int) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, length: int) -> bytes | memoryview | None:
        """Up to ``length`` bytes from the position on; None at the end, and once something has failed."""
        if self.failure is not None:
            return None
        try:
            data = self._at(self._position, length)
        except BaseException as error:  # An exception would end inside libvips' C code: keep it for later.
            self.failure = error
            return None
        self._position += len(data)
        return data or None

    def _at(self, position: int, length: int) -> bytes | memoryview:
        if position >= self._size:
            return b""
        if position < len(self._header):
            return self._header[position : position + length]
        index, start = divmod(position - len(self._header), self._band_rows * self._row_bytes)
        return self._bytes_of(index)[start : start + length]

    def _bytes_of(self, index: int) -> memoryview:
        """The band of that index, from memory if it was read ahead; the next one starts being read."""
        if index != self._index:
            ahead, self._ahead = self._ahead, None
            self._band = memoryview(b"")
            self._band = ahead[1].result() if ahead and ahead[0] == index else self._read_band(index)
            self._index = index
            if (index + 1) * self._band_rows < self._canvas.height:
                self._ahead = (index + 1, self._reader.submit(self._read_band, index + 1))
        return self._band

    def _read_band(self, index: int) -> memoryview:
        canvas, y = self._canvas, index * self._band_rows
        band = canvas.read(Rect(0, y, canvas.width, min(self._band_rows, canvas.height - y)))
        return np.ascontiguousarray(band, band.dtype.newbyteorder("<")).data.cast("B")
