"""One tile of the base, from a window of the source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dino_ray.plan.geometry import Rect, Scaling
from dino_ray.upsample.alpha import NO_ALPHA, REACH, continued, straight
from dino_ray.upsample.lanczos import Array, Lanczos

Read = Callable[[Rect], NDArray[Any]]
"""Reads a window (source_px; where it sticks out, edges are replicated) as (h, w, bands) uint8, uint16, or
float32 in [0, 1]."""

WITH_ALPHA = (2, 4)
"""Numbers of bands of which the last is alpha: grey and RGB with it."""


class Upsampler(Protocol):
    """A way of enlarging that looks no farther than ``halo``."""

    @property
    def linear(self) -> bool:
        """Whether it enlarges a sum of images to the sum of the enlarged ones."""
        ...

    def suited(self, worn: bool) -> Upsampler:
        """What enlarges a worn source, or a clean one; itself, where that is the same."""
        ...

    def halo(self, scaling: Scaling) -> int:
        """Source_px that a window needs on each side of ``scaling.source_window(rect)``."""
        ...

    def __call__(self, window: Array, window_rect: Rect, rect: Rect, scaling: Scaling) -> Array:
        """Enlarge a window.

        Parameters
        ----------
        window
            (h, w, c) float32 in [0, 1], c being 1 or 3: the source in ``window_rect``.
        window_rect
            source_px; contains ``scaling.source_window(rect, halo)``, and may stick out of the source.
        rect
            canvas_px, not empty; may stick out of the canvas.

        Returns
        -------
        (rect.h, rect.w, c) float32, nominally in [0, 1] and not clipped.
        """
        ...


def base_tile(read: Read, rect: Rect, scaling: Scaling, upsampler: Upsampler) -> Array:
    """The base in ``rect``: colours by ``upsampler``, alpha by Lanczos.

    What hides in transparent pixels does not bleed into what is seen (see ``alpha``); where the enlarged alpha rounds
    to nothing, colour is 0.

    Parameters
    ----------
    read
        Windows of the source with its 1 to 4 bands, alpha straight; called once.
    rect
        canvas_px, not empty. Where it sticks out of the canvas, the source goes on as its edge pixels.

    Returns
    -------
    (rect.h, rect.w, bands) float32 in [0, 1], alpha straight.
    """
    lanczos = Lanczos()
    surroundings = 0 if upsampler.linear else REACH
    halo = max(upsampler.halo(scaling) + surroundings, lanczos.halo(scaling))
    window_rect = scaling.source_window(rect, halo)
    window = unit_range(read(window_rect))
    if window.shape[2] not in WITH_ALPHA:
        return np.clip(upsampler(window, window_rect, rect, scaling), 0, 1)
    colours, alpha = window[..., :-1], window[..., -1:]
    made_alpha = lanczos(alpha, window_rect, rect, scaling)
    if upsampler.linear:
        made = straight(upsampler(colours * alpha, window_rect, rect, scaling), made_alpha)
    else:
        made = upsampler(continued(colours, alpha), window_rect.pad(-REACH), rect, scaling)
        made = np.where(made_alpha < NO_ALPHA, np.float32(0), made)
    whole: Array = np.concatenate([made, made_alpha], axis=2)
    return np.clip(whole, 0, 1)


def unit_range(pixels: NDArray[Any]) -> Array:
    """uint8 or uint16 of full range to float32 in [0, 1]; float32 as it is."""
    if pixels.dtype == np.float32:
        return pixels
    return np.asarray(pixels / np.float32(np.iinfo(pixels.dtype).max), np.float32)


def load_net(device: str = "cpu") -> Upsampler:
    """The bundled conv nets on ``device``, that for clean sources unless asked for the other; imports torch.

    Raises
    ------
    UsageError
        Weights are missing.
    """
    from dino_ray.upsample import net

    return net.load_net(device)
