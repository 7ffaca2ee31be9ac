"""What a FLUX.1 model's configuration files say, read without torch.

Black Forest Labs' FLUX.1 is a rectified flow (Liu et al. 2022, arXiv:2209.03003) whose noise levels are
spaced by the shifted schedule of Esser et al. 2024 (arXiv:2403.03206, section 5.3.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dino_ray.diffusion.denoiser import Description
from dino_ray.errors import UsageError

PATCH = 2
"""Latent samples per transformer token, per axis: part of the architecture, in no config."""

TILE = 1024
"""canvas_px. FLUX.1 was trained around one megapixel: smaller tiles see less context, larger ones drift from
what it knows and pay attention's quadratic cost."""

OVERLAP = 128
"""canvas_px, 8 tokens: half is blended, and a quarter either side is context that hides what the VAE's
convolutions do to a tile's border. Costs a factor (1024 / 896)² = 1.3 in tiles."""

DISTILLED_NATIVE_STEPS, GUIDED_NATIVE_STEPS = 4, 28
"""Steps from pure noise that step-distilled (schnell) and guidance-distilled (dev) models are meant for."""

DISTILLED_STEPS, GUIDED_STEPS = 2, 8
"""Default steps of a refiner, which starts far below pure noise. Up to a denoise of 0.5 they are no coarser
than the native steps: schnell crosses [0.25, 0] in one native step and [0.5, 0] in two; dev, whose schedule
at 1024² spends most of its steps near pure noise, in under 3 and under 7 of its 28."""

GUIDANCE_SCALE = 3.5
"""Black Forest Labs' recommendation for FLUX.1-dev."""

DISTILLED_TEXT_TOKENS, GUIDED_TEXT_TOKENS = 256, 512
"""T5 sequence lengths the two kinds were trained with."""

_REPLACING_OPTIONS = (
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
)


@dataclass(frozen=True)
class Schedule:
    """How a model spaces its noise levels: ``shifted(t) = alpha t / (1 + (alpha - 1) t)`` over even ``t``.

    Schnell's alpha is a constant; dev's grows exponentially with the number of image tokens. The map's
    inverse is the map with ``1 / alpha``, so any noise level can be started from exactly.
    """

    shift: float = 1.0
    """alpha where ``dynamic`` is false."""
    dynamic: bool = False
    base_shift: float = 0.5
    """mu at ``base_tokens`` image tokens, where ``dynamic``; mu is linear in the tokens."""
    max_shift: float = 1.15
    """mu at ``max_tokens`` image tokens."""
    base_tokens: int = 256
    max_tokens: int = 4096
    growth: Literal["exponential", "linear"] = "exponential"
    """``exponential``: alpha = exp(mu); ``linear``: alpha = mu."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str = "scheduler") -> Schedule:
        """Read a ``scheduler_config.json``.

        Raises
        ------
        UsageError
            Where the config asks for a spacing other than the shifted one.
        """
        if asked := [option for option in _REPLACING_OPTIONS if config.get(option)]:
            raise UsageError(
                f"{name}: its scheduler sets {', '.join(asked)}, which this version does not follow; "
                "remove it from scheduler_config.json to use the shifted schedule FLUX.1 was trained with"
            )
        return cls(
            shift=float(config.get("shift", 1.0)),
            dynamic=bool(config.get("use_dynamic_shifting", False)),
            base_shift=float(config.get("base_shift", 0.5)),
            max_shift=float(config.get("max_shift", 1.15)),
            base_tokens=int(config.get("base_image_seq_len", 256)),
            max_tokens=int(config.get("max_image_seq_len", 4096)),
            growth=config.get("time_shift_type", "exponential"),
        )

    def alpha(self, tokens: int) -> float:
        """Strength of the shift for an image of ``tokens`` tokens; 1 is no shift."""
        if not self.dynamic:
            return self.shift
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        mu = self.base_shift + slope * (tokens - self.base_tokens)
        return math.exp(mu) if self.growth == "exponential" else mu

    def sigmas(self, denoise: float, steps: int, tokens: int) -> list[float]:
        """``steps + 1`` noise levels, spaced as the model's own, from exactly ``denoise`` in (0, 1] to 0."""
        alpha = self.alpha(tokens)
        start = shifted(denoise, 1 / alpha)
        between = [shifted(start * (steps - i) / steps, alpha) for i in range(1, steps)]
        return [denoise, *between, 0.0]


def shifted(t: float, alpha: float) -> float:
    """Time ``t`` in [0, 1] shifted towards noise by ``alpha`` > 1, away from it by ``alpha`` < 1."""
    return alpha * t / (1 + (alpha - 1) * t)


def describe(
    name: str, transformer: Mapping[str, Any], vae: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> Description:
    """A FLUX.1 model's description from its three configs.

    Raises
    ------
    UsageError
        Where the configs are not those of a FLUX.1 text-to-image model.
    """
    if (kind := transformer.get("_class_name")) != "FluxTransformer2DModel":
        raise UsageError(
            f"{name}: its transformer is a {kind}, FLUX.1's is a FluxTransformer2DModel; give a FLUX.1 model"
        )
    channels = int(vae.get("latent_channels", 4))
    if (inputs := transformer.get("in_channels", 64)) != PATCH**2 * channels:
        raise UsageError(
            f"{name}: its transformer takes {inputs} channels where plain FLUX.1 with this VAE takes "
            f"{PATCH**2 * channels}; control, fill and editing variants are not supported yet"
        )
    Schedule.from_config(scheduler, name)
    guided = bool(transformer.get("guidance_embeds", False))
    latent_scale = 2 ** (len(vae["block_out_channels"]) - 1)
    return Description(
        name=name,
        family="flux",
        latent_scale=latent_scale,
        latent_channels=channels,
        pixel_multiple=PATCH * latent_scale,
        tile=TILE,
        overlap=OVERLAP,
        steps=GUIDED_STEPS if guided else DISTILLED_STEPS,
        guidance="embedded" if guided else "none",
        cfg=GUIDANCE_SCALE if guided else None,
        takes_text=True,
    )


def text_tokens(transformer: Mapping[str, Any]) -> int:
    """Length of the T5 sequence that a transformer of this config was trained with."""
    return GUIDED_TEXT_TOKENS if transformer.get("guidance_embeds", False) else DISTILLED_TEXT_TOKENS


def text_width(transformer: Mapping[str, Any]) -> int:
    """Channels of the text tokens that a transformer of this config takes; FLUX.1's are T5's."""
    return int(transformer.get("joint_attention_dim", 4096))
