"""What the rectified flows among the families have in common: their spacing of noise levels."""

from __future__ import annotations

from typing import Any

from dino_ray.diffusion.denoiser import Description
from dino_ray.diffusion.families.flow_schedule import PATCH, Schedule
from dino_ray.diffusion.families.latent_denoiser import LatentDenoiser
from dino_ray.diffusion.vae import Place, TinyDecoder, Vae

class FlowDenoiser(LatentDenoiser):
    """A transformer that predicts the velocity ``noise - x0`` over tokens of 2 by 2 latent samples.

    Parameters
    ----------
    core, vae, place, description, tiny
        As `LatentDenoiser` takes them.
    schedule : Schedule
    """

    def __init__(
        self,
        core: Any,
        vae: Vae,
        place: Place,
        schedule: Schedule,
        description: Description,
        tiny: TinyDecoder | None = None,
    ) -> None:
        super().__init__(core, vae, place, description, tiny)
        self._schedule = schedule

    def _levels(self, denoise: float, steps: int, size: tuple[int, int]) -> list[float]:
        h, w = size
        return self._schedule.sigmas(denoise, steps, tokens=(h // PATCH) * (w // PATCH))
