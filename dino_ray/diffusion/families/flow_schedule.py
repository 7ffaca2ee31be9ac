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

_REPLACING_OPTIONS = (
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
)


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
        start = shifted(denoise, 1 / alpha)
        between = [shifted(start * (steps - i) / steps, alpha) for i in range(1, steps)]
        return [denoise, *between, 0.0]


def shifted(t: float, alpha: float) -> float:
    """Time ``t`` in [0, 1] shifted towards noise by ``alpha`` > 1, away from it by ``alpha`` < 1."""
    return alpha * t / (1 + (alpha - 1) * t)
