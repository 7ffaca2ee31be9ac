"""After the model: a tile is brought back to its source, judged, and mended where it drifted. One tile at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dino_ray.engine.protocol import Guide, ImageTask
from dino_ray.engine.transfer import Arriving, fetch, put
from dino_ray.fidelity.record import HEAT_ALARM, HEAT_SIDE, Action, TileFidelity
from dino_ray.plan.geometry import Rect

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dino_ray.dino.drift import Drift, Reference
    from dino_ray.dino.loading import Dino
    from dino_ray.engine.refining import Effort
    from dino_ray.fidelity.consistency import SourceView

log = logging.getLogger(__name__)

RETRIES = 2
"""How often a tile that has drifted as a whole is made again."""
TOO_LARGE = 0.4
"""Drifted share of a tile from which on it is made again, rather than mended in place."""
HOPELESS = 0.75
"""Drifted share from which on nothing but the base is left to show."""
MENDINGS = 8
"""Rounds of mending, each of which finds the area too small; one is enough as a rule. What does not come to rest by
then is not worth the looks of DINO that it takes."""
FARTHEST = 10.0
"""What a pixel, nominally in [0, 1], may come to in absolute value. Beyond it, or where it is no number, a model's
arithmetic has failed, and what is made of such a tile would spread over all of it."""
MOST_DB = 99.0
"""What a consistency that is perfect is reported as."""


@dataclass(frozen=True)
class Tile:
    """What is to be refined."""

    number: int
    rect: Rect
    """canvas_px."""
    base: np.ndarray
    """(h, w, 3) float32 in [0, 1]."""
    source: np.ndarray
    """(window.h, window.w, 3 or 4) float32 in [0, 1]: the source around it, alpha last if there is any."""
    window: Rect
    """source_px; ``consistency.source_window`` of ``rect``."""
    flat: bool = False
    """There is nothing on it to refine: it is left to the base."""


@dataclass(frozen=True)
class Draft:
    """What the model made of a tile."""

    pixels: Tensor
    """(3, h, w), nominally in [0, 1]."""
    effort: Effort


@dataclass(frozen=True)
class Refined:
    """A tile, done."""

    pixels: Arriving
    """(h, w, 3) float32, nominally in [0, 1]."""
    fidelity: TileFidelity


Redo = Callable[[Tile, "Effort"], Draft | None]
"""Has the model make a tile again, with a gentler effort than that; None: it knows none."""


def verified(
    tile: Tile, draft: Draft | None, redo: Redo, dino: Dino | None, task: ImageTask, guide: Guide
) -> Refined:
    """A tile as it goes into the result.

    It gets its base's colours; what has drifted becomes base again, or the whole tile is made anew with less noise and
    more guidance; and reduced, it shows the source. Nothing here depends on other tiles.

    Parameters
    ----------
    draft
        None: the model was not asked; the base is all there is.
    """
    import torch

    from dino_ray.fidelity.colour import colour_drift, lock_colour
    from dino_ray.fidelity.consistency import back_project, consistency_psnr, hold_to_base

    device = draft.pixels.device if draft is not None else torch.device("cpu")
    base = put(tile.base, device).permute(2, 0, 1).contiguous()
    view = _view(tile, task, device)
    reference, alarm = _reference(dino if draft is not None and task.verify else None, base, guide)

    def finish(pixels: Tensor, action: Action, found: float | None, retries: int) -> Refined:
        if task.consistency > 0 and guide.grain is not None:
            projected = (
                hold_to_base(pixels, base, view) if guide.worn else back_project(pixels, view, guide.grain)
            )
            pixels = pixels + task.consistency * (projected - pixels)
        shown = consistency_psnr(pixels.clamp(0, 1), view)
        record = TileFidelity(
            tile.number,
            action,
            consistency_db=None if shown is None else round(min(MOST_DB, shown), 2),
            colour_drift=round(colour_drift(pixels, base), 3),
            alarm=found,
            retries=retries,
        )
        if reference is not None:
            record = _with_cosines(record, reference.drift(pixels, alarm))
        return Refined(fetch(pixels.permute(1, 2, 0).contiguous()), record)

    if draft is None:
        return finish(base, "skipped", None, 0)
    first: float | None = None
    for retries in range(RETRIES + 1):
        if not bool((draft.pixels.abs() <= FARTHEST).all()):  # nor does it hold where it is no number
            log.warning(
                "tile %d: what the model made of it is no picture; the base stands in its place", tile.number
            )
            return finish(base, "kept", first, retries)
        pixels = lock_colour(draft.pixels, base, task.color_lock)
        if reference is None:
            return finish(pixels, "accepted", None, 0)
        drift = reference.drift(pixels, alarm)
        first = round(drift.worst, 3) if first is None else first
        if drift.worst < 1:
            return finish(pixels, "retried" if retries else "accepted", first, retries)
        if float(drift.drifted().mean()) < TOO_LARGE or retries == RETRIES:
            break
        again = redo(tile, draft.effort)
        if again is None:
            break
        draft = again
    assert reference is not None
    mended = _mended(pixels, base, reference, drift, alarm)
    if mended is None:
        return finish(base, "kept", first, retries)
    return finish(mended, "retried" if retries else "blended", first, retries)


def _mended(pixels: Tensor, base: Tensor, reference: Reference, drift: Drift, alarm: float) -> Tensor | None:
    """The tile with its base where it has drifted; None where too little of it would be left."""
    import torch

    from dino_ray.fidelity.mend import blend, mask_around

    area = drift.drifted()
    for _ in range(MENDINGS):
        if float(area.mean()) > HOPELESS:
            return None
        mended = blend(pixels, base, mask_around(area))
        # What was drawn can reach beyond the patches that told of it; what is left of it tells by itself.
        left = reference.drift(mended, alarm)
        if left.worst < 1:
            return mended
        wider = torch.maximum(area, left.drifted())
        if bool((wider == area).all()):
            return None
        area = wider
    return None


def _reference(dino: Dino | None, base: Tensor, guide: Guide) -> tuple[Reference | None, float]:
    from dino_ray.dino.drift import Reference

    if dino is None or guide.calibration is None:
        return None, math.inf
    return Reference.of(dino, base), guide.calibration.alarm


def _view(tile: Tile, task: ImageTask, device: torch.device) -> SourceView:
    from dino_ray.fidelity.consistency import SourceView

    planes = put(tile.source, device).permute(2, 0, 1).contiguous()
    return SourceView(
        pixels=planes[:3],
        window=tile.window,
        rect=tile.rect,
        scaling=task.scaling,
        opacity=planes[3] if len(planes) > 3 else None,
        closed=task.grid.wrap,
    )


def _with_cosines(record: TileFidelity, drift: Drift) -> TileFidelity:
    import torch
    import torch.nn.functional as F

    cosines = drift.cosines.float().cpu()
    heat = F.adaptive_max_pool2d(drift.over_pixels()[None], HEAT_SIDE)[0] * HEAT_ALARM
    return replace(
        record,
        cosine_mean=round(float(cosines.mean()), 5),
        cosine_p10=round(float(torch.quantile(cosines, 0.1)), 5),
        cosine_min=round(float(cosines.min()), 5),
        heat=tuple(int(v) for v in heat.clamp(0, 255).round().flatten()),
    )
