"""The canvas: a store whose chunk is one merge cell. A cell is done when its chunk is there.

Coordinates are ``canvas_px``. A chunk appears whole or not at all, by renaming on disks and by one request in
object stores, so a writer may die at any moment; nothing else records progress.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dino_ray import places
from dino_ray.errors import JobError
from dino_ray.plan.geometry import Rect
from dino_ray.raster import chunks, store
from dino_ray.raster.chunks import Depth, Layout, Pixels

_BAND_BYTES = 8 * 2**20
"""Of what is read at once to go over the whole canvas: reading is as fast in larger pieces, and two are alive."""


@dataclass(frozen=True)
class Canvas:
    """A width × height image made of cells; small, picklable, opened where and when it is first used.

    Attributes
    ----------
    folder
        Where the store is: a local path, or an address for fsspec such as ``s3://bucket/job/canvas.zarr``.
    width, height
        Size in canvas_px.
    bands, dtype
        Samples of a pixel, as in `SourceInfo`.
    cell
        Height and width of a cell in canvas_px; cells at the right and bottom borders are cut off there.
    """

    folder: str
    width: int
    height: int
    bands: int
    dtype: Depth
    cell: tuple[int, int]

    @classmethod
    def create(
        cls, folder: str | Path, width: int, height: int, bands: int, dtype: Depth, cell: tuple[int, int]
    ) -> Canvas:
        """Make a canvas on which nothing is done, replacing an older one in the same folder.

        Raises
        ------
        JobError
            If the folder cannot be written or holds something else.
        """
        store.create(folder, (height, width, bands), cell, dtype)
        return cls(str(folder), width, height, bands, dtype, cell)

    @classmethod
    def open(cls, folder: str | Path) -> Canvas:
        """Find a canvas made earlier, with whatever cells are done.

        Raises
        ------
        JobError
            If the folder holds no canvas.
        """
        layout = store.open_fresh(folder).layout
        height, width, bands = layout.shape
        return cls(str(folder), width, height, bands, layout.dtype, layout.chunk)

    @classmethod
    def find(cls, folder: str | Path) -> Canvas | None:
        """The canvas in a folder, or None where there is none yet.

        Raises
        ------
        JobError
            If there is one that can't be opened.
        """
        return cls.open(folder) if store.exists(folder) else None

    @property
    def layout(self) -> Layout:
        """How the canvas is cut into chunks, which are its cells."""
        return Layout((self.height, self.width, self.bands), self.cell, self.dtype)

    @property
    def cells(self) -> tuple[int, int]:
        """Number of rows and columns of cells."""
        return self.layout.grid

    def cell_rect(self, row: int, column: int) -> Rect:
        """Window of a cell in canvas_px, cut off at the canvas's border."""
        return self.layout.rect((row, column))

    def write(self, rect: Rect, pixels: Pixels) -> None:
        """Commit a cell: after this returns it is done, and if it fails nothing has changed.

        Parameters
        ----------
        rect
            Window in canvas_px: exactly one cell, cut off at the border.
        pixels
            (rect.h, rect.w, bands) of the canvas's dtype.

        Raises
        ------
        ValueError
            If the window is not exactly one cell, or the pixels are not of its shape and dtype.
        JobError
            If the store cannot be written.
        """
        row, column = rect.y // self.cell[0], rect.x // self.cell[1]
        inside = 0 <= row < self.cells[0] and 0 <= column < self.cells[1]
        if not inside or rect != self.cell_rect(row, column):
            raise ValueError(f"{rect} is not one cell of {self}")
        if pixels.shape != (rect.h, rect.w, self.bands) or pixels.dtype != self.dtype:
            raise ValueError(f"{pixels.shape} {pixels.dtype} does not fit the cell {rect} of {self}")
        chunks.write(self.folder, self._stored_layout(), rect, pixels)

    def done(self) -> set[tuple[int, int]]:
        """Row and column of every finished cell.

        Raises
        ------
        JobError
            If the store is gone or cannot be listed.
        """
        return chunks.finished(self.folder, self._stored_layout())

    def clean(self) -> int:
        """Remove what writers that died left unfinished; call it while nobody writes.

        Returns
        -------
        int
            How many files that were.

        Raises
        ------
        JobError
            If they cannot be removed.
        """
        return store.clean(self.folder)

    def missing(self) -> list[tuple[int, int]]:
        """Row and column of every cell that is not finished, in row-major order."""
        done = self.done()
        rows, columns = self.cells
        return [(r, c) for r in range(rows) for c in range(columns) if (r, c) not in done]

    def read(self, rect: Rect) -> Pixels:
        """Pixels of a window inside the canvas; what is not done reads as zeros.

        Raises
        ------
        ValueError
            If the window is empty or sticks out of the canvas.
        JobError
            If a cell's file cannot be read or has lost bytes.
        """
        if not (0 <= rect.x < rect.x1 <= self.width and 0 <= rect.y < rect.y1 <= self.height):
            raise ValueError(f"{rect} is not within {self}")
        return chunks.read(self.folder, self._stored_layout(), rect, absent="zeros")

    def rows(self) -> Iterator[Pixels]:
        """Full-width bands from top to bottom: (height, width, bands).

        A band is a part of one row of cells: of some megabytes, so that memory does not grow with the canvas. In an
        object store it is all of the row, since there a request costs more than its bytes do.
        """
        row_bytes = self.width * self.bands * np.dtype(self.dtype).itemsize
        step = self.cell[0] if places.is_url(self.folder) else max(1, _BAND_BYTES // row_bytes)
        for top in range(0, self.height, self.cell[0]):
            bottom = min(top + self.cell[0], self.height)
            for y in range(top, bottom, step):
                yield self.read(Rect(0, y, self.width, min(step, bottom - y)))

    def sha256(self) -> str:
        """Hex digest of the pixels in row-major order, little-endian."""
        digest = hashlib.sha256()
        # One band is hashed while the next is read.
        with ThreadPoolExecutor(1, thread_name_prefix="sha256") as thread:
            hashing = None
            for band in self.rows():
                if hashing is not None:
                    hashing.result()
                hashing = thread.submit(digest.update, np.ascontiguousarray(band, f"<u{band.itemsize}").data)
        return digest.hexdigest()

    def _stored_layout(self) -> Layout:
        """`layout`, once it is known that the store has it."""
        layout = store.layout_of(self.folder, (self.height, self.width, self.bands), self.dtype)
        if layout.chunk != self.cell:
            raise JobError(
                f"{places.shown(self.folder)}: has cells of {layout.chunk}, expected {self.cell}; "
                "it was made by another job"
            )
        return layout
