"""``dino_ray.upscale``: the whole job, from Python."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dino_ray.config import UpscaleConfig
from dino_ray.errors import UsageError
from dino_ray.plan.geometry import Rect
from dino_ray.report.run import UpscaleReport

if TYPE_CHECKING:
    import PIL.Image

    from dino_ray.engine.protocol import JobEvent, Listener
    from dino_ray.raster.canvas import Canvas
    from dino_ray.request import Image
    from dino_ray.settings import Settings

FILE_OPTIONS = ("format", "quality", "compression", "pyramid")
"""Options of what the command writes."""

SOURCE_OPTIONS = ("job_dir", "page", "to_srgb")
"""Options that only a file can honour: it can be read again, has pages, and a profile."""


class Upscaled(NamedTuple):
    """What ``upscale`` returns: it unpacks as ``image, report``."""

    image: np.ndarray | PIL.Image.Image
    report: UpscaleReport


def upscale(
    image: str | PathLike[str] | np.ndarray | PIL.Image.Image,
    *,
    config: UpscaleConfig | None = None,
    listen: Listener | None = None,
    **options: Any,
) -> Upscaled:
    """Upscale one image that fits in memory, and return it.

    Files larger than memory: use the command, which streams.

    Parameters
    ----------
    image
        A path to an image file, or its URL; a PIL image; or an array uint8 or uint16, (H, W) or (H, W, bands), bands
        1 grey, 2 grey + alpha, 3 RGB, 4 RGBA.
    config
        Options as one object; ``options`` go on top of it.
    listen
        Called with every event of ``dino_ray.engine.protocol``.
    **options
        Fields of ``UpscaleConfig`` by name, such as ``scale=2, model="bundled", address="none"``.

    Returns
    -------
    Upscaled
        ``image``: an array, of the input's depth and number of axes, if an array was given; else a PIL image, but an
        array where the source has 16-bit colour, which PIL can't hold. ``report``: what happened.

    Raises
    ------
    UsageError
        If the image can't be read or an option can't be honoured.
    JobError
        If the job fails while it runs.

    Examples
    --------
    >>> import dino_ray
    >>> image, report = dino_ray.upscale("photo.jpg", scale=2)  # doctest: +SKIP
    >>> image.save("photo-2x.png")  # doctest: +SKIP
    """
    from dino_ray.job import upscale_images
    from dino_ray.resolve import resolve

    started = time.monotonic()
    if config is not None:
        set_before = {name: getattr(config, name) for name in config.model_fields_set}
        options = set_before | options
    chosen = UpscaleConfig.parse(options)
    settings = resolve(chosen)
    job = _checked(image, chosen, settings)
    result: list[Upscaled] = []

    def finished(done: Image, canvas: Canvas | None, report: UpscaleReport) -> None:
        assert canvas is not None  # only of several images may an earlier run have finished some
        pixels = canvas.read(Rect(0, 0, canvas.width, canvas.height))
        result.append(Upscaled(_as_given(pixels, image, done.info.icc), report))

    upscale_images([job], chosen, settings, listen or _deaf, finished, started)
    return result[0]


def _checked(image: Any, config: UpscaleConfig, settings: Settings) -> Image:
    from dino_ray.request import check_array, check_file

    _refuse(config, FILE_OPTIONS, "no file is written here; leave it out, or use the command")
    if isinstance(image, str | PathLike):
        return check_file(os.fspath(image), None, config, settings)
    _refuse(config, SOURCE_OPTIONS, "needs a file as its source; give the image as a path")
    if isinstance(image, np.ndarray):
        return check_array(image, settings)
    if hasattr(image, "getbands"):
        from PIL import ImageOps

        return check_array(_pil_pixels(ImageOps.exif_transpose(image)), settings, name="PIL image")
    raise UsageError(f"image: expected a path, a PIL image or an array, not {type(image).__name__}")


def _refuse(config: UpscaleConfig, fields: Sequence[str], why: str) -> None:
    for field in fields:
        if getattr(config, field) != UpscaleConfig.model_fields[field].default:
            raise UsageError(f"{field}: {why}")


def _pil_pixels(image: PIL.Image.Image) -> np.ndarray:
    """uint8, or uint16 for PIL's one 16-bit mode."""
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return np.array(image)
    if image.mode.startswith("I;16"):
        return np.array(image).astype(np.uint16)
    if image.mode in ("1", "P", "PA"):
        has_alpha = image.has_transparency_data
        return np.array(image.convert("RGBA" if has_alpha else "RGB" if image.mode != "1" else "L"))
    raise UsageError(f"image: PIL mode {image.mode} is not supported; convert it to RGB or L first")


def _as_given(pixels: np.ndarray, given: Any, icc: bytes | None) -> np.ndarray | PIL.Image.Image:
    flat = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    if isinstance(given, np.ndarray):
        return flat if given.ndim == 2 else pixels
    if pixels.dtype == np.uint16 and flat.ndim == 3:
        return pixels
    import PIL.Image

    image = PIL.Image.fromarray(flat)
    profile = icc or getattr(given, "info", {}).get("icc_profile")
    if profile:
        image.info["icc_profile"] = profile
    return image


def _deaf(event: JobEvent) -> None:
    pass
