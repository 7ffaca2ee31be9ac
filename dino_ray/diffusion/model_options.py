"""How a model is put together and run, beyond its name, device and precision. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelOptions:
    """One value for all that ``loading`` is asked to do with a model; the defaults are the model as it is published."""

    controlnet: str | None = None
    """A folder or a hub id."""


AS_PUBLISHED = ModelOptions()
