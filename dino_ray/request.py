"""What is asked for: images and where their results go, looked at before any work."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from dino_ray import places
from dino_ray.config import UpscaleConfig
from dino_ray.jobfolder import default_place
from dino_ray.plan.geometry import Grid, Scaling
from dino_ray.raster.export import check_output, output_dtype
from dino_ray.raster.source import SourceInfo, describe_array, probe
from dino_ray.raster.store import Depth
from dino_ray.settings import Settings


@dataclass(frozen=True)
class Image:
    """One input, laid out, and where its result goes; checked, nothing read but its header."""

    source: str | np.ndarray
    """A local path, a URL, or pixels."""
    info: SourceInfo
    output: str | None
    """A local path or an address; None: the result is read from the canvas, no file is written."""
    scaling: Scaling
    grid: Grid
    dtype: Depth
    """Of the canvas."""
    place: str | None
    """Its job folder; None for a temporary one, which nothing resumes."""

    @property
    def name(self) -> str:
        """For messages and reports: without what a URL holds of passwords and signatures."""
        return places.shown(self.source) if isinstance(self.source, str) else self.info.name

    @property
    def output_name(self) -> str:
        """The output for messages and reports, as `name`; empty if there is none."""
        return places.shown(self.output or "")

    @property
    def canvas_bytes(self) -> int:
        """Disk that its canvas takes: border cells are stored whole."""
        cell = self.grid.xs.cell * self.grid.ys.cell
        return self.grid.n_cells * cell * self.info.bands * np.dtype(self.dtype).itemsize


def check_file(
    source: str, output: str | None, config: UpscaleConfig, settings: Settings, *, several: bool = False
) -> Image:
    """Look at a file's header and at its output's place, before any work.

    Parameters
    ----------
    output
        None: the result is read from the canvas.
    several
        Whether ``config.job_dir`` is to hold the folders of several jobs, rather than this one's files.

    Raises
    ------
    UsageError
        If the source can't be read, or the output can't be written or can't hold the result.
    """
    info = probe(source, settings.read)
    scaling, grid = settings.layout(info)
    dtype = _dtype(info, settings)
    if output is not None:
        size = (grid.width, grid.height, info.bands)
        check_output(output, *size, info.dtype, source, settings.export)
        dtype = output_dtype(output, info.dtype, settings.export)
    return Image(source, info, output, scaling, grid, dtype, _place(config.job_dir, output, several))


def check_array(pixels: np.ndarray, settings: Settings, name: str = "array") -> Image:
    """An array as a source: uint8 or uint16, (H, W) or (H, W, 1 to 4 bands), the last of 2 or 4 alpha."""
    info = describe_array(pixels, name)
    scaling, grid = settings.layout(info)
    return Image(pixels, info, None, scaling, grid, _dtype(info, settings), None)


def _dtype(info: SourceInfo, settings: Settings) -> Depth:
    """Depth of a canvas that no file format limits."""
    named: dict[int | None, Depth] = {8: "uint8", 16: "uint16"}
    return named.get(settings.export.depth, info.dtype)


def _place(job_dir: str | None, output: str | None, several: bool) -> str | None:
    """A job's folder."""
    beside = default_place(output) if output is not None else None
    if job_dir is None:
        return beside
    named = job_dir if places.is_url(job_dir) else os.path.abspath(job_dir)
    return places.join(named, places.base_name(beside)) if several and beside is not None else named
