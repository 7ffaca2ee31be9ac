"""Samples that are no 8 or 16 unsigned bits, brought to 16: which values became 0 and 65,535, and how that is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dino_ray.errors import UsageError
from dino_ray.raster.vips import VipsImage

_TOP = 65_535


@dataclass(frozen=True)
class Span:
    """What becomes 0 and what becomes 65,535, of the colour bands and of alpha."""

    low: float
    high: float
    alpha_low: float = 0.0
    alpha_high: float = 1.0


UNIT = Span(0.0, 1.0)
"""0 to 1, as most floating-point images have it."""


def measure(bands: Iterable[npt.NDArray[Any]], alpha: bool, shown: str) -> Span:
    """The span of an image's samples, from bands of rows (rows, columns, samples).

    Floating-point samples that all lie in 0 to 1 are taken as such; all others span from their least to
    their greatest value. All colour bands share one span, so that hues stay. Alpha starts at 0.

    Raises
    ------
    UsageError
        If samples are NaN or infinite; says how many.
    """
    strange = count = 0
    colour, veil = (np.inf, -np.inf), (0.0, -np.inf)
    floating = False
    for pixels in bands:
        floating = pixels.dtype.kind == "f"
        count += pixels.size
        if floating:
            strange += pixels.size - int(np.count_nonzero(np.isfinite(pixels)))
        if strange:
            continue
        split = pixels.shape[2] - alpha
        colour = _widened(colour, pixels[..., :split])
        veil = _widened(veil, pixels[..., split:]) if alpha else veil
    if strange:
        raise UsageError(
            f"{shown}: {strange:,} of its {count:,} samples are NaN or infinite; replace them first, for "
            "example with numpy.nan_to_num"
        )
    low, high = _taken_as_such(colour) if floating else colour
    alpha_low, alpha_high = (_taken_as_such(veil) if floating else veil) if alpha else (0.0, 1.0)
    return Span(low, high, alpha_low, alpha_high)


def scaled(image: VipsImage, span: Span, alpha: bool) -> VipsImage:
    """An image of 16 unsigned bits, by one straight line per band, rounded to the nearest."""
    colours = image.bands - alpha
    lines = [_line(span.low, span.high)] * colours + [_line(span.alpha_low, span.alpha_high)] * alpha
    # In double precision, for 32-bit integers and small differences between large values.
    straight = image.cast("double").linear([a for a, _ in lines], [b for _, b in lines])
    return straight.rint().cast("ushort").copy(interpretation="grey16" if colours == 1 else "rgb16")


def scaled_array(pixels: npt.NDArray[Any], span: Span, alpha: bool) -> npt.NDArray[np.uint16]:
    """`scaled` for rows in memory, (rows, columns, samples)."""
    colours = pixels.shape[2] - alpha
    lines = [_line(span.low, span.high)] * colours + [_line(span.alpha_low, span.alpha_high)] * alpha
    slopes, starts = np.array(lines).T
    straight = pixels.astype(np.float64) * slopes + starts
    rounded: npt.NDArray[np.uint16] = np.clip(np.rint(straight), 0, _TOP).astype(np.uint16)
    return rounded


def described(span: Span, kind: str) -> str:
    """What was done, for a note."""
    if (span.low, span.high) == (0.0, 1.0) and kind == "floating-point":
        return "has floating-point samples within 0 to 1; 1 became 65,535 of 16 bits"
    return (
        f"has {kind} samples from {span.low:,.6g} to {span.high:,.6g}; scaled to 16 bits so that these "
        "became 0 and 65,535"
    )


def _widened(limits: tuple[float, float], pixels: npt.NDArray[Any]) -> tuple[float, float]:
    return min(limits[0], float(pixels.min())), max(limits[1], float(pixels.max()))


def _taken_as_such(limits: tuple[float, float]) -> tuple[float, float]:
    return (0.0, 1.0) if limits[0] >= 0 and limits[1] <= 1 else limits


def _line(low: float, high: float) -> tuple[float, float]:
    """Slope and start that take low to 0 and high to 65,535; of a constant, everything to 0."""
    slope = _TOP / (high - low) if high > low else 0.0
    return slope, -low * slope
