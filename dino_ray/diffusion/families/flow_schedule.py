"""How rectified flows (Liu et al. 2022, arXiv:2209.03003) space their noise levels. No torch.

The spacing is the shifted one of Esser et al. 2024 (arXiv:2403.03206, section 5.3.2), which FLUX, SD3, Qwen-Image and
Z-Image share; they differ in its constants, which a ``scheduler_config.json`` names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dino_ray.errors import UsageError

_REPLACING_OPTIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas")

PATCH = 2
"""Latent samples per token of these families' transformers, per axis: part of the architecture."""

Mu = Callable[[int, int], float]
"""mu of an image's tokens and of the number of steps that make it."""


@dataclass(frozen=True)
class Schedule:
    """How a model spaces its noise levels: ``shifted(t) = alpha t / (1 + (alpha - 1) t)`` over even ``t``.

    Schnell's alpha is a constant; dev's grows exponentially with the number of image tokens. The map's
    inverse is the map with ``1 / alpha``, so any noise level can be started from exactly.
    """

    shift: float = 1.0
    """alpha where ``dynamic`` is false."""
    dynamic: bool = False
    base_shift: float = 0.5
    """mu at ``base_tokens`` image tokens, where ``dynamic``; mu is linear in the tokens."""
    max_shift: float = 1.15
    """mu at ``max_tokens`` image tokens."""
    base_tokens: int = 256
    max_tokens: int = 4096
    growth: Literal["exponential", "linear"] = "exponential"
    """``exponential``: alpha = exp(mu); ``linear``: alpha = mu."""
    mu: Mu | None = None
    """Where ``dynamic``, in place of that line: a family's own rule, which no config file names."""
    terminal: float = 0.0
    """Noise level, below 1, that the last step starts at, to which the levels are stretched: Qwen-Image's
    ``shift_terminal``. 0: they are not."""

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], name: str = "scheduler", mu: Mu | None = None
    ) -> Schedule:
        """Read a ``scheduler_config.json``; ``mu``: the family's own rule for it, if it has one.

        Raises
        ------
        UsageError
            Where the config asks for a spacing other than the shifted one.
        """
        if asked := [option for option in _REPLACING_OPTIONS if config.get(option)]:
            raise UsageError(
                f"{name}: its scheduler sets {', '.join(asked)}, which this version does not follow; "
                "remove it from scheduler_config.json to use the shifted schedule that flow models are trained with"
            )
        return cls(
            shift=float(config.get("shift", 1.0)),
            dynamic=bool(config.get("use_dynamic_shifting", False)),
            base_shift=float(config.get("base_shift", 0.5)),
            max_shift=float(config.get("max_shift", 1.15)),
            base_tokens=int(config.get("base_image_seq_len", 256)),
            max_tokens=int(config.get("max_image_seq_len", 4096)),
            growth=config.get("time_shift_type", "exponential"),
            mu=mu,
            terminal=float(config.get("shift_terminal") or 0.0),
        )

    def alpha(self, tokens: int, steps: int) -> float:
        """Strength of the shift for an image of ``tokens`` tokens made in ``steps``; 1 is no shift."""
        if not self.dynamic:
            return self.shift
        mu = self._straight(tokens) if self.mu is None else self.mu(tokens, steps)
        return math.exp(mu) if self.growth == "exponential" else mu

    def _straight(self, tokens: int) -> float:
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return self.base_shift + slope * (tokens - self.base_tokens)

    def sigmas(self, denoise: float, steps: int, tokens: int) -> list[float]:
        """``steps + 1`` noise levels, spaced as the model's own, from exactly ``denoise`` in (0, 1] to 0."""
        alpha = self.alpha(tokens, steps)
        if 0 < self.terminal < denoise and steps > 1:
            return self._stretched(denoise, steps, alpha)
        start = shifted(denoise, 1 / alpha)
        between = [shifted(start * (steps - i) / steps, alpha) for i in range(1, steps)]
        return [denoise, *between, 0.0]

    def _stretched(self, denoise: float, steps: int, alpha: float) -> list[float]:
        """As ``sigmas``, for a ``denoise`` above ``terminal`` and more than one step.

        A whole schedule's signal shares, 1 - sigma, grow by one factor, so that its last level above 0 is ``terminal``.
        These levels are the last ``steps`` of the whole schedule, of ``steps / start`` even times, that passes through
        ``denoise``. At or below ``terminal`` no such schedule has a level: there, the plain shift spaces them.
        """
        start = _stretched_start(1 - denoise, 1 - self.terminal, steps, alpha - 1)
        signals = [1 - shifted(start * (steps - i) / steps, alpha) for i in range(steps)]
        factor = (1 - self.terminal) / signals[-1]
        return [denoise, *(1 - factor * signal for signal in signals[1:]), 0.0]


def _stretched_start(signal: float, last: float, steps: int, excess: float) -> float:
    """The time u in (0, 1] whose signal share is ``signal`` once that of ``u / steps`` has been stretched to ``last``.

    With ``1 - shifted(u) = (1 - u) / (1 + excess u)``, excess being alpha - 1, it solves ``last (1 - u)
    (1 + excess u / steps) = signal (1 + excess u) (1 - u / steps)``: a quadratic with one root there.
    """
    square = -excess / steps * (last - signal)
    linear = last * (excess / steps - 1) - signal * (excess - 1 / steps)
    constant = last - signal
    root = math.sqrt(linear**2 - 4 * square * constant)
    return 2 * constant / (root - linear)


def shifted(t: float, alpha: float) -> float:
    """Time ``t`` in [0, 1] shifted towards noise by ``alpha`` > 1, away from it by ``alpha`` < 1."""
    return alpha * t / (1 + (alpha - 1) * t)
