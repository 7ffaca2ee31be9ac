"""What the rectified flows among the families have in common: their spacing of noise levels, and how they are built."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from dino_ray.diffusion.denoiser import Description
from dino_ray.diffusion.families.family import Configs
from dino_ray.diffusion.families.flow_schedule import PATCH, Mu, Schedule
from dino_ray.diffusion.families.latent_denoiser import ControlNet, LatentDenoiser, Loaded
from dino_ray.diffusion.vae import KlVae, Place, QwenImageVae, TinyDecoder, Vae


class FlowDenoiser(LatentDenoiser):
    """A transformer that predicts the velocity ``noise - x0`` over tokens of 2 by 2 latent samples.

    Parameters
    ----------
    core, vae, place, description, tiny, controlnet
        As `LatentDenoiser` takes them.
    schedule : Schedule
    """

    vae_class: ClassVar[type[KlVae | QwenImageVae]] = KlVae

    def __init__(
        self,
        core: Any,
        vae: Vae,
        place: Place,
        schedule: Schedule,
        description: Description,
        tiny: TinyDecoder | None = None,
        controlnet: ControlNet | None = None,
    ) -> None:
        super().__init__(core, vae, place, description, tiny, controlnet)
        self._schedule = schedule

    @classmethod
    def of(cls, loaded: Loaded, configs: Configs, description: Description, mu: Mu | None = None) -> Self:
        """A model of its loaded parts; ``mu``: the family's own rule for its schedule's shift, if it has one."""
        return cls(
            loaded.models["transformer"],
            cls.vae_class(loaded.models["vae"], loaded.places["vae"]),
            loaded.places["transformer"],
            Schedule.from_config(configs["scheduler"], description.name, mu),
            description,
            loaded.tiny(),
            loaded.controlnet(),
        )

    def _levels(self, denoise: float, steps: int, size: tuple[int, int]) -> list[float]:
        h, w = size
        return self._schedule.sigmas(denoise, steps, tokens=(h // PATCH) * (w // PATCH))
