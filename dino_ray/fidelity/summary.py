"""What the records of an image's tiles come to, and where the tiles lie that they are of."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_ray.fidelity.record import ACTIONS, HEAT_SIDE, TileFidelity
from dino_ray.plan.geometry import Grid

MOST_ROWS = 10_000
"""Tiles that a summary lists one by one, some 4 MB as JSON; of more, those that were in most need of it."""

NO_ACTION = 0
"""In ``Ledger.actions``, of a tile without a record; above it, 1 + the place in ``ACTIONS``."""

SQUARES = HEAT_SIDE**2

_NUMBERS = tuple(
    field.name for field in fields(TileFidelity) if field.name not in ("tile", "action", "retries", "heat")
)
_DIGITS = {"consistency_db": 2, "colour_drift": 2, "alarm": 3}
_COSINE_DIGITS = 5
_ROW = np.dtype(
    [
        ("action", np.uint8),
        ("retries", np.uint16),
        *((name, np.float32) for name in _NUMBERS),
        ("heated", np.bool_),
        ("heat", np.uint8, SQUARES),
    ]
)


class Ledger:
    """One record of each tile, in about a hundred bytes.

    A tile that is refined again, because its pixels were lost or a copy of the call was faster, gives the same record
    again; the newest is kept.

    Parameters
    ----------
    n_tiles
        Tiles of the image, numbered from 0.
    """

    def __init__(self, n_tiles: int) -> None:
        self._rows = np.zeros(n_tiles, _ROW)

    def note(self, record: TileFidelity) -> None:
        """Take a record in.

        Raises
        ------
        ValueError
            If it is of no tile of this image, or no record at all: it may come from a file.
        """
        heat = record.heat
        if not 0 <= record.tile < len(self._rows) or record.action not in ACTIONS:
            raise ValueError(f"no record of a tile of this image: {record}")
        if len(heat) not in (0, SQUARES):
            raise ValueError(f"{len(heat)} squares of drift, not {SQUARES}")
        numbers = (
            math.nan if value is None else float(value)
            for value in (getattr(record, name) for name in _NUMBERS)
        )
        row = (1 + ACTIONS.index(record.action), record.retries, *numbers, bool(heat), heat or 0)
        self._rows[record.tile] = row

    def forget(self, tiles: Collection[int]) -> None:
        """Drop what was noted of tiles."""
        self._rows[[tile for tile in tiles if tile < len(self._rows)]] = 0

    def __len__(self) -> int:
        """How many tiles have a record."""
        return int(np.count_nonzero(self.actions))

    def __iter__(self) -> Iterator[TileFidelity]:
        """Every record, by the tile's number."""
        return map(self.of, np.flatnonzero(self.actions).tolist())

    @property
    def actions(self) -> NDArray[np.uint8]:
        """(n_tiles,): see ``NO_ACTION``."""
        actions: NDArray[np.uint8] = self._rows["action"]
        return actions

    @property
    def heat(self) -> NDArray[np.uint8]:
        """(n_tiles, HEAT_SIDE, HEAT_SIDE): drift, 0 where nothing was verified."""
        heat: NDArray[np.uint8] = self._rows["heat"]
        return heat.reshape(-1, HEAT_SIDE, HEAT_SIDE)

    def of(self, tile: int) -> TileFidelity:
        """The record of a tile that has one; its numbers rounded, since they were kept as 32 bits."""
        row = self._rows[tile]
        assert row["action"] != NO_ACTION, tile
        numbers = {name: _rounded(name, float(row[name])) for name in _NUMBERS}
        heat = tuple(row["heat"].tolist()) if row["heated"] else ()
        return TileFidelity(
            tile, ACTIONS[row["action"] - 1], **numbers, retries=int(row["retries"]), heat=heat
        )

    def values(self, name: str) -> NDArray[np.float64]:
        """A number of all tiles of which it is known."""
        known = self._rows[name][self.actions != NO_ACTION].astype(np.float64)
        values: NDArray[np.float64] = known[~np.isnan(known)]
        return values

    def drawn_near(self, tile: int) -> int | None:
        """Of the tiles that show what the model made, the one whose number is nearest; None: there is none."""
        shown = [1 + ACTIONS.index(action) for action in ("accepted", "blended", "retried")]
        tiles: list[int] = np.flatnonzero(np.isin(self.actions, shown)).tolist()
        return min(tiles, key=lambda other: (abs(other - tile), other), default=None)

    def worst(self, count: int) -> list[int]:
        """Tiles that were verified, by alarm, highest first, then by the lowest of their cosines."""
        rows = self._rows
        judged = np.flatnonzero(
            ~(np.isnan(rows["alarm"]) & np.isnan(rows["cosine_min"])) & (self.actions > 0)
        )
        return self._ranked(judged)[:count]

    def most_telling(self, count: int) -> list[int]:
        """Tiles with a record: as many of them, the ``worst`` first chosen; by their numbers."""
        return sorted(self._ranked(np.flatnonzero(self.actions))[:count])

    def _ranked(self, tiles: NDArray[np.intp]) -> list[int]:
        alarm = np.nan_to_num(self._rows["alarm"][tiles], nan=-1.0)
        lowest = np.nan_to_num(self._rows["cosine_min"][tiles], nan=2.0)
        ranked: list[int] = tiles[np.lexsort((tiles, lowest, -alarm))].tolist()
        return ranked


def summary(ledger: Ledger, grid: Grid, given_up: int = 0) -> dict[str, Any]:
    """What a report says of its image's fidelity.

    Parameters
    ----------
    ledger
        Without tiles that were given up.
    given_up
        How many those are.

    Returns
    -------
    dict
        Numbers are None where no tile was verified.

        ``cosine_mean``: mean over tiles. ``cosine_p10``: the 10th percentile over tiles of their own 10th percentiles,
        so that of nine tiles in ten, nine patches in ten are above it. ``cosine_min``: of the worst patch of all.
        ``consistency_db``: from the mean over tiles of the squared error. ``colour_drift_max``, ``colour_drift_mean``:
        over tiles, levels of 255. ``actions``: how many tiles each was done with. ``caught``: tiles whose first result
        raised an alarm. ``unrecorded``: tiles of which nothing is known. ``tiles``: the records, with ``rect``, (x, y,
        width, height) in canvas_px; of more than ``MOST_ROWS`` the worst, and ``tiles_left_out`` are not there.
        ``files``: empty; pictures are named there once they are drawn.
    """
    listed = ledger.most_telling(MOST_ROWS)
    cosines, p10 = ledger.values("cosine_mean"), ledger.values("cosine_p10")
    drift = ledger.values("colour_drift")
    return {
        "cosine_mean": _of("cosine_mean", cosines, np.mean),
        "cosine_p10": _of("cosine_p10", p10, lambda values: np.percentile(values, 10)),
        "cosine_min": _of("cosine_min", ledger.values("cosine_min"), np.min),
        "consistency_db": _of("consistency_db", ledger.values("consistency_db"), _mean_db),
        "colour_drift_max": _of("colour_drift", drift, np.max),
        "colour_drift_mean": _of("colour_drift", drift, np.mean),
        "actions": dict(zip(ACTIONS, _counts(ledger), strict=True)),
        "caught": int(np.count_nonzero(ledger.values("alarm") >= 1)),
        "unrecorded": max(0, grid.n_tiles - len(ledger) - given_up),
        "tiles": [_row(ledger.of(tile), grid) for tile in listed],
        "tiles_left_out": len(ledger) - len(listed),
        "files": {},
    }


def _counts(ledger: Ledger) -> list[int]:
    counts: list[int] = np.bincount(ledger.actions, minlength=1 + len(ACTIONS))[1:].tolist()
    return counts


def _mean_db(values: NDArray[np.float64]) -> float:
    """PSNR of the mean of the squared errors behind several."""
    return float(-10 * np.log10(np.mean(10 ** (-values / 10))))


def _row(record: TileFidelity, grid: Grid) -> dict[str, Any]:
    rect = grid.tile_rect(record.tile)
    return {**record.to_dict(), "rect": [rect.x, rect.y, rect.w, rect.h]}


def _of(name: str, values: NDArray[np.float64], sum_up: Any) -> float | None:
    return _rounded(name, float(sum_up(values))) if values.size else None


def _rounded(name: str, value: float) -> float | None:
    return round(value, _DIGITS.get(name, _COSINE_DIGITS)) if math.isfinite(value) else None
