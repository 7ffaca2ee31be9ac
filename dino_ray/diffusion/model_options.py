"""How a model is put together and run, beyond its name, device and precision. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from dino_ray.diffusion.lora_file import Lora

if TYPE_CHECKING:
    from dino_ray.diffusion.image_prompt_file import ImagePrompt

Quantizer: TypeAlias = Literal["nf4", "int8", "torchao-int8", "torchao-fp8"]
"""How weights are quantised: the first two by bitsandbytes (Dettmers et al. 2023, arXiv:2305.14314, and 2022,
arXiv:2208.07339), the others by torchao, a scale for each row."""

Offload: TypeAlias = Literal["none", "model", "group", "sequential"]
"""What waits in host memory until it is used: nothing, whole components, their blocks, or single layers."""


@dataclass(frozen=True)
class ModelOptions:
    """One value for all that ``loading`` is asked to do with a model; the defaults are the model as it is published."""

    loras: tuple[Lora, ...] = ()
    """What is added to its weights."""
    image_prompt: ImagePrompt | None = None
    """What lets a picture speak beside the prompt."""
    components: str | None = None
    """Where what a single file of weights lacks comes from: an alias, a hub id or a diffusers folder. None: the
    published model of its kind."""
    vae: str | None = None
    """A file, folder or hub id whose VAE takes the place of the model's."""
    allow_pickle: bool = False
    """Read weights from pickles too, which can run any code."""
    compile: bool = False
    """The blocks of the network that predicts are compiled."""
    attention: str = "auto"
    """Which kernels compute its attention: one of ``speed.KERNELS``; ``auto``: torch's own choice."""
    step_cache: float = 0.0
    """How far the first block's answer may change, in its own size, for a step to take the others' over; 0: never."""
    controlnet: str | None = None
    """A folder or a hub id."""
    quantize: Quantizer | None = None
    """Of what predicts, and of large text encoders."""
    offload: Offload = "none"
    vae_tile: int | None = None
    """canvas_px: side of the windows that the VAE works in from the start; None: whole tiles."""


AS_PUBLISHED = ModelOptions()
