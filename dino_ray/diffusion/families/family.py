"""What the rest of the package must know of a model family, and no more. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dino_ray.diffusion.denoiser import Description
from dino_ray.diffusion.lora_file import LoraLayers

if TYPE_CHECKING:
    import numpy as np

Configs: TypeAlias = Mapping[str, Mapping[str, Any]]
"""A model's configuration files, read: its ``index`` (model_index.json), and by component ``transformer`` or ``unet``,
``vae`` and ``scheduler``."""

Picture: TypeAlias = "Callable[[int], np.ndarray]"
"""The source, reduced to at most so many px on its longer side: (h, w, 3) float32 in [0, 1]."""

ImagePromptKind = Literal["redux", "ip-adapter", "ip-adapter-plus"]
"""Kinds of models that let a picture speak beside the prompt; ``plus`` looks at CLIP's patches."""


def no_picture(side: int) -> np.ndarray:
    """Where there is none to look at."""
    raise ValueError("this model's text encoder looks at the picture: give it one")


@dataclass(frozen=True)
class Family:
    """Models that one ``Denoiser`` drives."""

    name: str
    """As reports, the catalogue and DINO adapters name it."""
    title: str
    """For people."""
    pipelines: frozenset[str]
    """Classes of diffusers pipelines that are saved from just these components; the others of a family that take a mask
    or a control as more channels are other models."""
    core: str
    """The component that predicts: ``transformer`` or ``unet``."""
    text: tuple[str, ...]
    """Components that read prompts: models with weights."""
    tokenizers: tuple[str, ...]
    """Components that come with them and have no weights of their own: tokenizers, processors."""
    module: str
    """Name of the module that knows torch."""
    describe: Callable[[str, Configs], Description] = field(repr=False)
    """A model's name and its configs to its description; raises ``UsageError`` where they are of another kind."""
    attention: Literal["own", "masked", "plain"] = "own"
    """``own``: in a way that can't be given to another kernel; ``masked``: by diffusers' dispatcher, with a mask;
    ``plain``: by the dispatcher, with none."""
    step_cache: bool = False
    """diffusers' first-block cache works with its blocks."""
    optional: frozenset[str] = frozenset()
    """Those of ``text`` that a model may do without, where its index leaves them empty."""
    lora: LoraLayers | None = None
    """By what a LoRA for its core is known; None: it takes none."""
    image_prompts: Mapping[ImagePromptKind, Callable[[Mapping[str, Any]], int]] = field(default_factory=dict)
    """Kinds of image prompts that it takes, with the core's config to the channels of the tokens that it reads."""
    controlnet: str | None = None
    """Class, in diffusers, of the ControlNets that it takes."""
    tiny_vae: str | None = None
    """On the hub: an ``AutoencoderTiny`` of its latents, for guidance to look through."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Components that a replica holds."""
        return (self.core, "vae")

    def text_parts(self, index: Mapping[str, Any]) -> tuple[str, ...]:
        """Text encoders that a model of this index has, or has to have."""
        return tuple(
            part for part in self.text if part not in self.optional or class_of(index, part) is not None
        )


def class_of(index: Mapping[str, Any], part: str) -> tuple[str, str] | None:
    """Library and class of a component, as model_index.json names them; None where there is none."""
    named = index.get(part)
    if not isinstance(named, list) or len(named) != 2 or not all(isinstance(name, str) for name in named):
        return None
    return named[0], named[1]


def denoiser_config(configs: Configs) -> Mapping[str, Any]:
    """The config of whatever predicts: a transformer's or a UNet's."""
    return configs["transformer"] if "transformer" in configs else configs["unet"]
