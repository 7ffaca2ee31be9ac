"""Getting a model's files ahead of its use. No torch."""

from __future__ import annotations

from dino_ray.diffusion import controlnet_files, model_files
from dino_ray.diffusion.families.family import class_of
from dino_ray.diffusion.finding import resolve
from dino_ray.diffusion.model_options import AS_PUBLISHED, ModelOptions


def download(model: str, options: ModelOptions = AS_PUBLISHED) -> None:
    """Fetch all of a model's files that are not on this machine, text encoders included.

    Raises
    ------
    UsageError, JobError
        Where there is no such model, or a download is refused or breaks off.
    """
    ref = resolve(model, options)
    if ref.kind in ("none", "bundled"):
        return
    family, configs = model_files.family_and_configs(ref)
    parts = (*family.parts, *family.text, *family.tokenizers)
    model_files.fetch(ref, [part for part in parts if class_of(configs["index"], part) is not None])
    if options.controlnet is not None:
        controlnet_files.fetch(options.controlnet)
