"""The model families that can be driven: which pipelines they read, and who drives them. No torch.

A family is two modules beside this one. The first reads configuration files, and makes the planner's ``Description`` of
them. The second, named by ``Family.module``, knows torch and has two functions::

    build(parts: Mapping[str, Any], configs: Configs, description: Description) -> Denoiser
    encode_text(
        parts: TextParts, configs: Configs, prompts: Sequence[str], picture: Picture
    ) -> Mapping[str, Embeddings]
"""

from __future__ import annotations

from dino_ray.diffusion.families.family import Configs, Family, denoiser_config
from dino_ray.diffusion.families.flux2_config import FAMILY as FLUX2
from dino_ray.diffusion.families.flux_config import FAMILY as FLUX
from dino_ray.diffusion.families.flux_config import KONTEXT
from dino_ray.diffusion.families.qwen_image_config import EDIT as QWEN_IMAGE_EDIT
from dino_ray.diffusion.families.qwen_image_config import FAMILY as QWEN_IMAGE
from dino_ray.diffusion.families.stable_diffusion_3_config import FAMILY as STABLE_DIFFUSION_3
from dino_ray.diffusion.families.stable_diffusion_config import FAMILY as STABLE_DIFFUSION
from dino_ray.diffusion.families.stable_diffusion_config import XL as STABLE_DIFFUSION_XL
from dino_ray.diffusion.families.z_image_config import FAMILY as Z_IMAGE

__all__ = ["FAMILIES", "FLUX", "Configs", "Family", "denoiser_config", "family_of"]

FAMILIES: tuple[Family, ...] = (
    FLUX,
    KONTEXT,
    FLUX2,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
    STABLE_DIFFUSION_3,
    QWEN_IMAGE,
    QWEN_IMAGE_EDIT,
    Z_IMAGE,
)


def family_of(pipeline: str) -> Family | None:
    """The family that drives what a diffusers pipeline of this class is saved from; None where none does."""
    return next((family for family in FAMILIES if pipeline in family.pipelines), None)
