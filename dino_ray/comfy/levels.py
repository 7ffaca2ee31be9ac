"""Between the noise levels of this package, the noise's share in the mix, and ComfyUI's sigmas and schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dino_ray.errors import UsageError

MOST_STEPS = 10_000
"""Of a whole schedule, of which the end is taken: discrete ones have 1,000 sigmas, and finer ones repeat them."""


@dataclass(frozen=True)
class Levels:
    """What a model's sigmas mean.

    Flows mix ``(1 - sigma) x0 + sigma noise`` themselves. All others add: ``x0 + sigma noise``, which divided by
    ``1 + sigma`` is the same mix, of level ``sigma / (1 + sigma)``.
    """

    flow: bool
    most: float
    """The model's highest sigma."""

    @classmethod
    def of(cls, model_sampling: Any) -> Levels:
        """Read them off a ``model_sampling`` of ComfyUI."""
        import comfy.model_sampling

        return cls(isinstance(model_sampling, comfy.model_sampling.CONST), float(model_sampling.sigma_max))

    @property
    def highest(self) -> float:
        """The highest noise level."""
        return self.level(self.most)

    def level(self, sigma: float) -> float:
        """The noise level of a sigma."""
        return min(1.0, sigma) if self.flow else sigma / (1 + sigma)

    def sigma(self, level: float) -> float:
        """The sigma of a noise level in [0, 1)."""
        return level if self.flow else level / (1 - level)

    def scale(self, level: float) -> float:
        """By what a mix of that level is to be multiplied to be what the model knows at its sigma."""
        return 1.0 if self.flow else 1 / (1 - level)


def tail(schedule: Callable[[int], Sequence[float]], steps: int, start: float) -> list[float]:
    """The end of a schedule: ``steps`` steps from ``start`` exactly.

    As ComfyUI's own ``denoise``, which takes the last ``steps`` steps of a longer schedule; but how long that has to be
    is found from where it is to start.

    Parameters
    ----------
    schedule
        A number of steps to the sigmas from pure noise down to 0.
    start
        Sigma, above 0.

    Returns
    -------
    list of float
        ``steps + 1`` sigmas, strictly decreasing, of which the last is 0.

    Raises
    ------
    UsageError
        Where the schedule has no so many different ones.
    """

    def end(length: int) -> list[float]:
        return list(schedule(length))[-(steps + 1) :]

    def low_enough(length: int) -> bool:
        found = end(length)
        return len(found) == steps + 1 and found[0] <= start

    short, long = steps - 1, steps
    while not low_enough(long) and long < MOST_STEPS:
        short, long = long, min(2 * long, MOST_STEPS)
    while long - short > 1:
        middle = (short + long) // 2
        short, long = (short, middle) if low_enough(middle) else (middle, long)
    sigmas = [start, *end(long)[1:]]
    falls = all(before > after for before, after in pairwise(sigmas))
    if len(sigmas) != steps + 1 or not falls or sigmas[-1] != 0:
        raise UsageError(
            f"scheduler: has no {steps} different steps from this denoise down to 0; use fewer steps, a higher denoise "
            "or another scheduler"
        )
    return sigmas
