"""A model's components and what each takes, from its configuration files. No torch, where they are known ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dino_ray.diffusion import controlnet_files, footprint, model_files
from dino_ray.diffusion.families import Family
from dino_ray.diffusion.families.family import class_of
from dino_ray.diffusion.footprint import Part
from dino_ray.diffusion.model_files import ModelRef
from dino_ray.diffusion.storage import SMALL_ENCODERS


@dataclass(frozen=True)
class Sizes:
    """Of a model with the layout of a diffusers pipeline."""

    family: Family
    core: Part
    vae: Part
    text: Mapping[str, Part]
    """Text encoders by component."""
    beside: tuple[Part, ...]
    """What else a replica holds: a ControlNet."""
    quantized: bool
    """Its files are quantised already: how many bytes they take, their configs do not say."""

    @property
    def encoders(self) -> tuple[tuple[footprint.Count, bool], ...]:
        """What text encoders take, and whether each is large enough to be quantised."""
        return tuple((part.count, part.cls not in SMALL_ENCODERS) for part in self.text.values())


def sizes(ref: ModelRef, controlnet: str | None = None) -> Sizes:
    """What the components of a model take; one that no published model has is counted now, which takes seconds.

    Parameters
    ----------
    controlnet : str, optional
        A folder or a hub id, of what goes with it.

    Raises
    ------
    UsageError
        Where a configuration file is missing or damaged.
    """
    family, configs = model_files.family_and_configs(ref)
    index = configs["index"]

    def counted(part: str) -> Part:
        config = configs[part] if part in configs else model_files.part_config(ref, part)
        library, cls = class_of(index, part) or ("diffusers", str(config.get("_class_name")))
        return footprint.part(library, cls, config)

    return Sizes(
        family=family,
        core=counted(family.core),
        vae=counted("vae"),
        text={part: counted(part) for part in family.text_parts(index)},
        beside=() if controlnet is None else (_controlnet(controlnet),),
        quantized="quantization_config" in configs[family.core],
    )


def is_known(ref: ModelRef) -> bool:
    """Whether ``sizes`` can say at once what a model takes."""
    family, configs = model_files.family_and_configs(ref)
    return all(
        footprint.is_known(str(configs[part].get("_class_name")), configs[part]) for part in family.parts
    )


def _controlnet(name: str) -> Part:
    config = controlnet_files.config(name)
    return footprint.part("diffusers", str(config.get("_class_name")), config)
