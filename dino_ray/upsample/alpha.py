"""Colours that hide in transparent pixels must not bleed into the edges of what is seen.

A linear upsampler enlarges colours premultiplied by alpha, and the enlarged alpha divides them again (Porter & Duff,
*Compositing digital images*, 1984): what it computes is the mean of the colours seen. A net is not linear: it sharpens
the edge that premultiplying puts there, and the quotient has a fringe. So a net gets straight colours in which what is
seen goes on into what is not. Neither looks farther than ``REACH`` beyond what the upsampler sees, so tiles agree.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from dino_ray.upsample.lanczos import Array

NO_ALPHA: Final = np.float32(0.5 / 65535)
"""Alpha below this is 0 in any output: it rounds to nothing in 16 bits."""

REACH = 8
"""Source_px that colours go on into what is transparent: where nets still answer to an edge (1 % at 6 px)."""

_SPREAD = REACH / 3
"""Of the Gaussian that continues them, source_px."""


def straight(premultiplied: Array, alpha: Array) -> Array:
    """Colours (h, w, c) divided by their ``alpha`` (h, w, 1), and 0 where that is nothing.

    Neither is to be clipped before: where both overshoot, the quotient is the colour.
    """
    return np.divide(premultiplied, alpha, out=np.zeros_like(premultiplied), where=alpha >= NO_ALPHA)


def continued(colours: Array, alpha: Array) -> Array:
    """Straight colours, the more of their surroundings' the less is seen of them.

    Parameters
    ----------
    colours, alpha
        (h, w, c) and (h, w, 1), straight, in [0, 1].

    Returns
    -------
    (h - 2 REACH, w - 2 REACH, c): without the border, whose surroundings are not known. Opaque pixels are unchanged.
    """
    inner = (slice(REACH, -REACH), slice(REACH, -REACH))
    surroundings = straight(_blurred(colours * alpha), _blurred(alpha))
    seen, opacity = colours[inner], alpha[inner]
    return np.where(opacity == 1, seen, seen * opacity + surroundings * (1 - opacity))


def _blurred(image: Array) -> Array:
    """A Gaussian of radius ``REACH``, without the border; summed tap by tap, so that no window changes a bit."""
    offsets = np.arange(-REACH, REACH + 1)
    taps = np.exp(-0.5 * (offsets / _SPREAD) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        length = image.shape[axis] - 2 * REACH
        total = np.zeros_like(image.take(range(length), axis=axis))
        for first, tap in enumerate(taps):
            total += tap * image.take(range(first, first + length), axis=axis)
        image = total
    return image
