"""Back-projection: a tile, reduced to the source's size, must show the source.

Irani and Peleg, "Improving resolution by image registration" (CVGIP 53, 1991): what the reduced tile lacks of the
source is enlarged and added, and that again. Not all that is lacking is added but what of it stands out of the source's
own grain, by the gain that Wiener's filter has there: neither noise nor a JPEG's blocks are worth being true to. And
since reducing, D, and enlarging, U, are linear, what the rounds do between the first D and the last U they do in
source_px: for a change r wanted of the reduced tile, x + U r + U (r - D U r) + ... is x + U q, where q is the sum of
(1 - D U)^k r.

All source pixels whose centres lie in the tile are corrected. Those at its border are made of canvas pixels beyond
it, too; there, as far as a tile can know, the picture is the source's plain enlargement. So neighbours correct alike
what they share. At the image's own borders both frames go on as their edge pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_ray.fidelity.grain import CLEAN, Grain
from dino_ray.fidelity.projection import AxisProjection, axis_projection
from dino_ray.plan.frames import Rect, Scaling
from dino_ray.upsample.lanczos import CUBIC, SUPPORT, Kernel

ROUNDS = 3
"""Of back-projection. White residuals lose 5 dB by each, and after three a photograph's is about 8-bit rounding."""

MARGIN = 2 * SUPPORT
"""Source_px that are looked at around a tile. D and U, one after the other, reach so far; and so far from what is not
opaque nothing is corrected, for alpha, enlarged by Lanczos, and a correction reach half of it each."""

_NEAR = 5
"""Source_px on a side of the window over which a residual's energy is averaged. Over three channels that is known
to 16 % then, and still belongs to its place."""


@dataclass(frozen=True, eq=False)
class SourceView:
    """What the source shows of one tile's place. The canvas must be at least as large as the source."""

    pixels: Tensor
    """(3, window.h, window.w) float32 RGB in [0, 1], on the tile's device; where alpha is, colours are straight."""
    window: Rect
    """source_px; contains `source_window` of ``rect``. Where it sticks out of the source, edges are replicated, or
    what closes in x goes on."""
    rect: Rect
    """The tile, canvas_px; may stick out of the canvas."""
    scaling: Scaling
    opacity: Tensor | None = None
    """(window.h, window.w) alpha in [0, 1]; None where all of it is opaque."""
    closed: bool = False
    """The image closes on itself in x, and has no left and right border."""
    kernel: Kernel = CUBIC
    """By which D and U resample. Of those here it loses least where the source was made by another one
    (``scripts/bench/consistency.py``), and it sees a source pixel more at a tile's border than Lanczos-3."""

    def __post_init__(self) -> None:
        assert min(self.scaling.factor_x, self.scaling.factor_y) >= 1, self.scaling
        assert self.pixels.shape == (3, self.window.h, self.window.w), self.pixels.shape
        assert self.opacity is None or self.opacity.shape == self.pixels.shape[1:], self.opacity.shape


def source_window(rect: Rect, scaling: Scaling) -> Rect:
    """What of the source, source_px, a `SourceView` of the tile ``rect``, canvas_px, must show."""
    return scaling.source_window(rect, MARGIN)


@torch.no_grad()
def reduced(tile: Tensor, view: SourceView) -> tuple[Tensor, Rect]:
    """A tile as the source would show it.

    Parameters
    ----------
    tile
        (3, view.rect.h, view.rect.w) float32, nominally in [0, 1].

    Returns
    -------
    pixels
        (3, h, w), not clipped.
    place
        Rect of (w, h), source_px: the source pixels of which the tile has all that makes them. May be empty.
    """
    across, down = _axes(view, tile.device)
    (top, bottom), (left, right) = down.whole, across.whole
    shown = down.reduce[top:bottom] @ tile @ across.reduce[left:right].T
    return shown, Rect(across.first + left, down.first + top, right - left, bottom - top)


@torch.no_grad()
def back_project(tile: Tensor, view: SourceView, grain: Grain, rounds: int = ROUNDS) -> Tensor:
    """A tile, changed so that it shows the source when it is reduced.

    Where ``view.opacity`` is below 1, nothing changes. Within 3 source_px of the tile's border, but for the image's
    own, what is beyond it is a guess, and so is the change.

    Parameters
    ----------
    tile
        (3, view.rect.h, view.rect.w) float32, nominally in [0, 1].
    grain
        How far it may be from the source without being wrong.
    rounds
        At least 1.

    Returns
    -------
    Tensor
        As ``tile``, not clipped. It depends on nothing but the arguments.
    """
    assert rounds >= 1
    across, down = _axes(view, tile.device)
    place = Rect(across.first, down.first, across.n, down.n)
    if not place.area:
        return tile
    opaque = _opaque(view, place)
    shown = down.reduce @ tile @ across.reduce.T + _beyond(view, across, down)
    missing = (_crop(view.pixels, view, place) - shown) * opaque
    wanted = missing * _gain(missing, opaque, grain)
    change = wanted
    for _ in range(rounds - 1):
        change = change + (wanted - down.there_and_back @ change @ across.there_and_back.T) * opaque
    return tile + down.enlarge @ change @ across.enlarge.T


@torch.no_grad()
def hold_to_base(tile: Tensor, base: Tensor, view: SourceView) -> Tensor:
    """A tile, changed so that it shows, reduced, what its base shows.

    For sources so worn that their base shows them better than they do themselves: noise, blocks and blur that the base
    net took out must not come back.

    Parameters
    ----------
    tile, base
        (3, view.rect.h, view.rect.w) float32, nominally in [0, 1].

    Returns
    -------
    Tensor
        As ``tile``, not clipped. Beyond the tile, as far as it can know, nothing differs from the base.
    """
    nothing = replace(view, pixels=torch.zeros_like(view.pixels))
    return base + back_project(tile - base, nothing, CLEAN)


@torch.no_grad()
def consistency_psnr(tile: Tensor, view: SourceView) -> float | None:
    """How well a tile, reduced, shows the source: PSNR in dB over RGB, where it can be said and all is opaque.

    Returns
    -------
    float or None
        Infinite where nothing differs; None where nothing can be said: of a tile that is smaller than what a source
        pixel is made of, or transparent.
    """
    shown, place = reduced(tile, view)
    opaque = _opaque(view, place)
    counted = 3 * float(opaque.sum())
    if not counted:
        return None
    squares = float(((_crop(view.pixels, view, place) - shown) * opaque).double().square().sum())
    return 10 * math.log10(counted / squares) if squares > 0 else math.inf


def _axes(view: SourceView, device: torch.device) -> tuple[AxisProjection, AxisProjection]:
    """Of x and of y."""
    rect, scaling = view.rect, view.scaling
    return (
        axis_projection(
            rect.x, rect.x1, scaling.source_w, scaling.canvas_w, view.kernel, device, closed=view.closed
        ),
        axis_projection(rect.y, rect.y1, scaling.source_h, scaling.canvas_h, view.kernel, device),
    )


def _beyond(view: SourceView, across: AxisProjection, down: AxisProjection) -> Tensor:
    """What the source's plain enlargement, where the tile is not, adds to the reduced tile.

    That is no product of axes, but all of the enlargement less what of it lies in the tile is.
    """
    seen = Rect(across.seen[0], down.seen[0], across.seen[1], down.seen[1])
    pixels = _crop(view.pixels, view, seen)
    everywhere = down.everywhere @ pixels @ across.everywhere.T
    return everywhere - down.in_tile @ pixels @ across.in_tile.T


def _gain(missing: Tensor, opaque: Tensor, grain: Grain) -> Tensor:
    """(1, h, w) in [0, 1]: which share of a residual (3, h, w) is the picture's, and not the source's grain."""
    tiny = torch.finfo(torch.float32).tiny
    energy = _near(missing.square().mean(0, keepdim=True)) / _near(opaque).clamp_min(tiny)
    return (energy - grain.sigma**2).clamp_min(0) / energy.clamp_min(tiny)


def _near(plane: Tensor) -> Tensor:
    """Means over a pixel's surroundings, of what there is of them."""
    return F.avg_pool2d(plane, _NEAR, stride=1, padding=_NEAR // 2, count_include_pad=False)


def _opaque(view: SourceView, place: Rect) -> Tensor:
    """(1, place.h, place.w): 1 where nothing transparent is near, else 0."""
    if view.opacity is None:
        return view.pixels.new_ones(1, place.h, place.w)
    least = -F.max_pool2d(-view.opacity[None], 2 * MARGIN + 1, stride=1, padding=MARGIN)
    return (_crop(least, view, place) >= 1).float()


def _crop(planes: Tensor, view: SourceView, place: Rect) -> Tensor:
    rows, columns = place.shift(-view.window.x, -view.window.y).slices
    assert min(rows.start, columns.start) >= 0, "the window starts too late"
    cut = planes[:, rows, columns]
    assert cut.shape[1:] == (place.h, place.w), "the window ends too early"
    return cut
