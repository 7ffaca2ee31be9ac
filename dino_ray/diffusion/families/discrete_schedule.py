"""The noise levels of models that were trained on discrete timesteps: Stable Diffusion 1, 2 and XL. No torch.

They were trained on ``a x0 + s noise`` with ``a² + s² = 1`` (Ho et al. 2020, arXiv:2006.11239), for ratios ``s / a``
that grow with the timestep. Up to a factor that is ``(1 - sigma) x0 + sigma noise``, ``sigma / (1 - sigma) = s / a``:
the mix that all noise levels of this package speak of. Euler's step along either is the same, that of DDIM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from dino_ray.errors import UsageError

_REPLACING_OPTIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "trained_betas")

SMALLEST_ALPHA = 2.0**-24
"""What diffusers takes for the signal's share of power in the last step where that would be 0."""


@dataclass(frozen=True)
class DiscreteSchedule:
    """Timesteps, noise levels, and what the network predicts."""

    betas: tuple[float, ...]
    """Of each training step."""
    prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    """The noise; Salimans and Ho's velocity ``a noise - s x0`` (2022, arXiv:2202.00512); or x0."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str = "scheduler") -> DiscreteSchedule:
        """Read a ``scheduler_config.json``, of whatever scheduler of diffusers.

        Raises
        ------
        UsageError
            Where it asks for what this does not follow.
        """
        if asked := [option for option in _REPLACING_OPTIONS if config.get(option)]:
            raise UsageError(
                f"{name}: its scheduler sets {', '.join(asked)}, which this version does not follow; remove it from "
                "scheduler_config.json to space noise levels evenly in the model's timesteps"
            )
        count = int(config.get("num_train_timesteps", 1000))
        start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
        # In single precision, as diffusers makes them and models were trained with.
        kind = config.get("beta_schedule", "linear")
        if kind == "linear":
            betas = np.linspace(start, end, count, dtype=np.float32)
        elif kind == "scaled_linear":
            betas = np.linspace(start**0.5, end**0.5, count, dtype=np.float32) ** 2
        else:
            raise UsageError(
                f"{name}: its scheduler has beta_schedule {kind!r}; linear and scaled_linear are understood"
            )
        if config.get("rescale_betas_zero_snr"):
            betas = _without_signal_at_the_end(betas)
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise UsageError(
                f"{name}: its scheduler has prediction_type {prediction!r}; "
                "epsilon, v_prediction and sample are understood"
            )
        return cls(tuple(betas.tolist()), prediction)

    @cached_property
    def _log_ratios(self) -> np.ndarray:
        """log(s / a) of each timestep."""
        alphas = np.cumprod(1 - np.array(self.betas, np.float32), dtype=np.float32)
        alphas = np.maximum(alphas, SMALLEST_ALPHA).astype(np.float64)
        return np.asarray(0.5 * np.log((1 - alphas) / alphas))

    @property
    def noisiest(self) -> float:
        """Highest noise level that it was trained on, below 1."""
        ratio = float(np.exp(self._log_ratios[-1]))
        return ratio / (1 + ratio)

    def timestep(self, sigma: float) -> float:
        """The timestep, between two of training's where need be, of a noise level in (0, ``noisiest``]."""
        log_ratio = np.log(max(sigma, 1e-10)) - np.log(max(1 - sigma, 1e-10))
        return float(np.interp(log_ratio, self._log_ratios, np.arange(len(self.betas))))

    def level(self, timestep: float) -> float:
        """The noise level of a timestep; the inverse of ``timestep``."""
        ratio = float(np.exp(np.interp(timestep, np.arange(len(self.betas)), self._log_ratios)))
        return ratio / (1 + ratio)

    def sigmas(self, denoise: float, steps: int) -> list[float]:
        """``steps + 1`` noise levels from exactly ``denoise`` to 0: evenly spaced timesteps, and a last step to 0."""
        start = (
            self.timestep(denoise) + 1
        )  # step k is the k + 1st of its training's, and 0 is no noise at all
        between = [self.level(start * (steps - i) / steps - 1) for i in range(1, steps)]
        return [denoise, *between, 0.0]


def _without_signal_at_the_end(betas: np.ndarray) -> np.ndarray:
    """Betas that leave nothing of the signal in the last step (Lin et al. 2023, arXiv:2305.08891, algorithm 1)."""
    roots = np.sqrt(np.cumprod(1 - betas, dtype=np.float32))
    first, last = roots[0], roots[-1]
    roots = (roots - last) * (first / (first - last))
    alphas = roots**2
    return np.asarray(1 - np.concatenate([alphas[:1], alphas[1:] / alphas[:-1]]))
