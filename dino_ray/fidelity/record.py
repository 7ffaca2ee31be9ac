"""What is known of one refined tile's faithfulness; small, so that it can travel and be kept for every tile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Action = Literal["accepted", "blended", "retried", "kept", "skipped"]
"""What was done with a tile.

``accepted``: as the model made it. ``blended``: back to the base where it had drifted. ``retried``: made again, at a
lower noise level and with more guidance, and accepted or blended then. ``kept``: the base stands in its place.
``skipped``: flat; the model was not asked.
"""
ACTIONS: tuple[Action, ...] = ("accepted", "blended", "retried", "kept", "skipped")

HEAT_SIDE = 8
"""A tile's drift is told for so many squares a side."""

HEAT_ALARM = 128
"""The drift at which a square is flagged, as a level of 255."""


@dataclass(frozen=True)
class TileFidelity:
    """How faithful one tile of the result is to its source, and what was done for it.

    Cosines are those of DINO's patch tokens of the tile against the same crop of the base, on lattices that guidance
    does not use; None where nothing was verified.
    """

    tile: int
    action: Action
    cosine_mean: float | None = None
    cosine_p10: float | None = None
    """10th percentile over the tile's patches."""
    cosine_min: float | None = None
    consistency_db: float | None = None
    """PSNR of the tile, reduced to the source's size, against the source; dB, at most 99. None where it
    can't be told: too small a tile at a large scale, or nothing opaque."""
    colour_drift: float | None = None
    """Largest difference of low-frequency colour against the base; levels of 255."""
    alarm: float | None = None
    """Of what the model made first, the largest drift over the threshold: an alarm from 1 on."""
    retries: int = 0
    heat: tuple[int, ...] = ()
    """Drift of the tile as it is now, over ``HEAT_SIDE`` squares a side, row-major; levels of 255, flagged from
    ``HEAT_ALARM`` on. Empty where nothing was verified."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; ``heat`` as two hexadecimal digits a square."""
        return {**asdict(self), "heat": bytes(self.heat).hex()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TileFidelity:
        """What ``to_dict`` made, also after a way through JSON."""
        return cls(**{**record, "heat": tuple(bytes.fromhex(record["heat"]))})
