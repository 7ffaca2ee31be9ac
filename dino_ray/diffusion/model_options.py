"""How a model is put together and run, beyond its name, device and precision. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelOptions:
    """One value for all that ``loading`` is asked to do with a model; the defaults are the model as it is published."""

    components: str | None = None
    """Where what a single file of weights lacks comes from: an alias, a hub id or a diffusers folder. None: the
    published model of its kind."""
    vae: str | None = None
    """A file, folder or hub id whose VAE takes the place of the model's."""
    allow_pickle: bool = False
    """Read weights from pickles too, which can run any code."""
    controlnet: str | None = None
    """A folder or a hub id."""


AS_PUBLISHED = ModelOptions()
