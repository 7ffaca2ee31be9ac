"""The thresholds by which a source's tiles are guided and judged: the model's own, or such as the source gives."""

from __future__ import annotations

import logging

import numpy as np

from dino_ray.dino.calibration import LEAST_PICTURES, SIDE, Calibration, calibrate, find
from dino_ray.dino.extract import FeatureModel
from dino_ray.dino.resample import Read
from dino_ray.plan.geometry import Rect

log = logging.getLogger(__name__)

WINDOWS = 5
"""Windows of the source a side that a model without thresholds is calibrated on."""


def of(dino: FeatureModel, read: Read, width: int, height: int) -> Calibration:
    """Thresholds stored with the model, or such as the source's own windows give.

    A source smaller than some windows gives the same one several times.

    Parameters
    ----------
    read
        Windows of the source; sticks out of none.
    width, height
        Of the source, source_px.
    """
    stored = find(dino.name)
    if stored is not None:
        return stored
    log.warning(
        "no thresholds are stored for the DINO model %s; this image's own windows stand in for them "
        "(scripts/calibrate_dino.py makes better ones)",
        dino.name,
    )
    return calibrate(dino, windows(read, width, height))


def windows(read: Read, width: int, height: int) -> list[np.ndarray]:
    """Windows spread evenly over the source, (h, w, 3) each."""
    count = max(LEAST_PICTURES, WINDOWS * WINDOWS)
    w, h = min(SIDE, width), min(SIDE, height)
    places = [divmod(i, WINDOWS) for i in range(count)]
    return [
        read(Rect((width - w) * col // (WINDOWS - 1), (height - h) * row // (WINDOWS - 1), w, h))
        for row, col in places
    ]
