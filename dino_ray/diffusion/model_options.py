"""How a model is put together and run, beyond its name, device and precision. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dino_ray.diffusion.lora_file import Lora

if TYPE_CHECKING:
    from dino_ray.diffusion.image_prompt_file import ImagePrompt


@dataclass(frozen=True)
class ModelOptions:
    """One value for all that ``loading`` is asked to do with a model; the defaults are the model as it is published."""

    loras: tuple[Lora, ...] = ()
    """What is added to its weights."""
    image_prompt: ImagePrompt | None = None
    """What lets a picture speak beside the prompt."""
    controlnet: str | None = None
    """A folder or a hub id."""


AS_PUBLISHED = ModelOptions()
