"""Which DINO model takes part, and how strongly."""

from __future__ import annotations

import logging

from dino_ray.config import UpscaleConfig
from dino_ray.diffusion.denoiser import Description
from dino_ray.errors import UsageError

log = logging.getLogger(__name__)

TOKENS_STRENGTH, GUIDANCE_STRENGTH = 1.0, 0.5
"""``--dino-strength`` unless the user says otherwise: of a model that was trained on DINO's tokens at full strength,
and of one that is only guided."""

GOOD_DINO = "dinov2-base"
"""Guides and judges models that were trained with none: as large as its use on tiles allows, and no longer to load."""


def choose_dino(config: UpscaleConfig, model: Description, denoise: float) -> tuple[str | None, float]:
    """The DINO model to load and the strength to guide with; (None, 0) where nothing asks for one."""
    attends = model.dino_dim is not None
    strength = config.dino_strength
    if strength is None:
        strength = TOKENS_STRENGTH if attends else GUIDANCE_STRENGTH
    if denoise == 0:
        return None, 0.0
    if strength == 0 and config.dino_adapter is not None:
        raise UsageError("--dino-adapter: --dino-strength 0 passes it no features; leave one of them out")
    if strength == 0 and config.adaptive == 0 and config.verify is False:
        if config.dino != "auto":
            raise UsageError(
                "--dino: nothing uses it with --dino-strength 0, --adaptive 0 and --no-verify; leave one of them out"
            )
        return None, 0.0
    from dino_ray.dino import calibration, loading

    name = config.dino if config.dino != "auto" else _suitable_dino(model)
    facts = loading.describe(name)
    calibration.find(name)  # a replica reads its thresholds; that they are damaged is said before any work
    if (
        attends and strength > 0 and 2 * facts.dim != model.dino_dim
    ):  # a token is a coarse feature and a fine one
        assert model.dino_dim is not None
        raise UsageError(
            f"--dino {name}: its features have {facts.dim} channels, and "
            f"{'the adapter' if config.dino_adapter else f'the model {model.name}'} was trained on "
            f"{model.dino_dim // 2}; use the DINO model it was trained with ({model.dino}), or --dino-strength 0"
        )
    known = loading.ALIASES
    if config.dino_adapter and known.get(name, name) != known.get(model.dino, model.dino):
        log.warning(
            "--dino %s: the adapter was trained with %s; others' features may mislead it", name, model.dino
        )
    return name, strength


def _suitable_dino(model: Description) -> str:
    """The DINO model that a diffusion model was trained with; else the best one that is at hand."""
    from dino_ray.dino import loading

    if model.dino_dim is not None:
        return model.dino
    if loading.is_cached(GOOD_DINO):
        return GOOD_DINO
    log.warning(
        "DINOv2 is not in the local cache: the small bundled DINO guides and judges the tiles; "
        "--dino %s fetches a better one (0.4 GB)",
        GOOD_DINO,
    )
    return loading.BUNDLED
