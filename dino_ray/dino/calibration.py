"""What a DINO model makes of changes that are none: thresholds, from pairs that show the same thing.

Cosines of one model say little about another's. So each is shown benign pairs: a picture and its own reduction,
enlarged again, as a perfect refiner and its base would be; and that one sharpened, and with a little noise. What it
makes of them sets where guidance falls silent and where an alarm begins. How much a picture's patches differ from their
neighbours says what structure is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dino_ray.dino.loading import ALIASES
from dino_ray.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from dino_ray.dino.extract import FeatureModel

SHIPPED = Path(__file__).parent / "calibration.json"
"""Thresholds of known models, by ``bundled`` or hub id."""
BESIDE = "dino_ray_calibration.json"
"""A folder's own, beside its ``config.json``."""

SIDE = 256
"""px of the pictures that a model is calibrated on; larger ones are cut to it."""
LEAST_PICTURES = 4

SILENT_QUANTILE = 0.8
"""Of benign patches: so many are to lie within guidance's dead band."""
ALARM_QUANTILE = 0.98
"""Of the worst patches of benign tiles: so many are to raise no alarm."""
TILE = 128
"""px of the tiles whose worst patches are looked at: small ones, since larger ones have worse worst patches."""
STRUCTURE_QUANTILES = (0.25, 0.9)
"""Of patches, by how much they differ from their neighbours: those that are no structure yet, and those that are
nothing else."""

SHARPENED, NOISE = 0.8, 3 / 255
"""How strongly pairs are sharpened (unsharp mask over 5 px), and the noise that they get, of a range of 1."""


@dataclass(frozen=True)
class Calibration:
    """Thresholds of one DINO model."""

    dead_band: float
    """``1 - cosine`` of a patch up to which guidance leaves it alone."""
    alarm: float
    """Visible drift (see ``drift``) of a patch from which on it is flagged."""
    structure: tuple[float, float]
    """``1 - cosine`` against neighbouring patches of what counts as no structure, and as all structure."""
    pictures: int
    """How many it was made from."""

    def __post_init__(self) -> None:
        low, high = self.structure
        if not (0 <= self.dead_band < self.alarm <= 2 and 0 <= low < high < math.inf):
            raise ValueError(f"thresholds out of order: {self}")

    def to_dict(self) -> dict[str, object]:
        """As JSON takes it; four digits, no more than matter."""
        return {
            name: [round(v, 4) for v in value] if isinstance(value, tuple) else round(value, 4)
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, object]) -> Calibration:
        """What ``to_dict`` made.

        Raises
        ------
        TypeError, ValueError
            If it is none.
        """
        return cls(**{**record, "structure": tuple(record["structure"])})  # type: ignore[arg-type]


def find(name: str) -> Calibration | None:
    """The thresholds stored with a model: those that ship, or a folder's own; None where there are none.

    Raises
    ------
    UsageError
        A folder's file is damaged.
    """
    shipped = _shipped().get(ALIASES.get(name, name))
    if shipped is not None:
        return shipped
    path = Path(name).expanduser() / BESIDE
    if not path.is_file():
        return None
    try:
        return Calibration.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"--dino {name}: {path} holds no thresholds ({error}); remake it with scripts/calibrate_dino.py"
        ) from error


@cache
def _shipped() -> Mapping[str, Calibration]:
    entries = json.loads(SHIPPED.read_text(encoding="utf-8")) if SHIPPED.is_file() else {}
    return {name: Calibration.from_dict(entry) for name, entry in entries.items()}


def calibrate(dino: FeatureModel, pictures: Sequence[np.ndarray]) -> Calibration:
    """Thresholds from pictures, of which nothing need be known.

    Parameters
    ----------
    pictures
        Each (h, w, 3) in [0, 1]; at least ``LEAST_PICTURES``, of which all together should show what images do.
    """
    import torch

    from dino_ray.dino.drift import Reference

    assert len(pictures) >= LEAST_PICTURES, "too few to tell"
    patches, worst, structure = [], [], []
    generator = torch.Generator().manual_seed(0)
    for picture in pictures:
        sharp = torch.from_numpy(np.ascontiguousarray(picture[:SIDE, :SIDE].transpose(2, 0, 1))).float()
        soft, *changed = _benign(sharp, generator)
        for top in range(0, max(1, sharp.shape[1] - TILE // 2), TILE):
            for left in range(0, max(1, sharp.shape[2] - TILE // 2), TILE):
                window = (slice(None), slice(top, top + TILE), slice(left, left + TILE))
                reference = Reference.of(dino, soft[window])
                for other in (sharp, *changed):
                    drift = reference.drift(other[window], alarm=1.0)
                    worst.append(drift.worst)
                    if other is sharp:
                        patches.append(1 - drift.cosines.cpu().numpy())
        structure.append(difference_from_neighbours(_tokens(dino, soft)).ravel())
    return _summary(np.concatenate(patches), np.array(worst), np.concatenate(structure), len(pictures))


def _summary(patches: np.ndarray, worst: np.ndarray, structure: np.ndarray, pictures: int) -> Calibration:
    low, high = (float(q) for q in np.quantile(structure, STRUCTURE_QUANTILES))
    dead_band = max(0.0, float(np.quantile(patches, SILENT_QUANTILE)))
    alarm = float(np.quantile(worst, ALARM_QUANTILE))
    # Pictures that all show nothing would put thresholds on top of one another.
    return Calibration(
        dead_band, min(2.0, max(alarm, 2 * dead_band, 0.01)), (low, max(high, low + 0.01)), pictures
    )


def _benign(sharp: Tensor, generator: object) -> tuple[Tensor, Tensor, Tensor]:
    """A base for a picture; and the same, changed as a faithful refiner might."""
    import torch
    from torch.nn import functional

    h, w = sharp.shape[1:]
    small = functional.interpolate(sharp[None], ((h + 1) // 2, (w + 1) // 2), mode="bicubic", antialias=True)
    soft = functional.interpolate(small, (h, w), mode="bicubic").clamp(0, 1)
    mean = functional.avg_pool2d(functional.pad(soft, (2, 2, 2, 2), mode="replicate"), 5, 1)
    sharpened = (soft + SHARPENED * (soft - mean)).clamp(0, 1)
    noisy = soft + NOISE * torch.randn(soft.shape, generator=generator)  # type: ignore[call-overload]
    return soft[0], sharpened[0], noisy.clamp(0, 1)[0]


def _tokens(dino: FeatureModel, pixels: Tensor) -> np.ndarray:
    import torch

    from dino_ray.dino.lattice import over

    with torch.no_grad():
        return over(pixels, dino.patch, ((0, 0),))[0].tokens(dino, pixels[None])[0].cpu().numpy()


def difference_from_neighbours(tokens: np.ndarray, closed: bool = False) -> np.ndarray:
    """How much each patch differs from those beside it: 1 less the mean cosine.

    Parameters
    ----------
    tokens
        (rows, cols, dim), of unit root mean square.
    closed
        The first column lies beside the last one.

    Returns
    -------
    (rows, cols) float32; 0 for a single patch.
    """
    rows, cols, dim = tokens.shape
    total = np.zeros((rows, cols), np.float32)
    count = np.zeros((rows, cols), np.float32)
    steps = [(0, 1), (1, 0)]
    for dy, dx in steps:
        here, there = tokens[: rows - dy, : cols - dx], tokens[dy:, dx:]
        difference = 1 - np.einsum("rcd,rcd->rc", here, there, dtype=np.float32) / dim
        for part in ((slice(0, rows - dy), slice(0, cols - dx)), (slice(dy, rows), slice(dx, cols))):
            total[part] += difference
            count[part] += 1
    if closed and cols > 2:
        difference = 1 - np.einsum("rd,rd->r", tokens[:, 0], tokens[:, -1], dtype=np.float32) / dim
        for column in (0, -1):
            total[:, column] += difference
            count[:, column] += 1
    return total / np.maximum(count, 1)
