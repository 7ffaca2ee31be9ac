"""How a model is put together and run, beyond its name, device and precision. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelOptions:
    """One value for all that ``loading`` is asked to do with a model; the defaults are the model as it is published."""

    compile: bool = False
    """The blocks of the network that predicts are compiled."""
    attention: str = "auto"
    """Which kernels compute its attention: one of ``speed.KERNELS``; ``auto``: torch's own choice."""
    step_cache: float = 0.0
    """How far the first block's answer may change, in its own size, for a step to take the others' over; 0: never."""
    controlnet: str | None = None
    """A folder or a hub id."""


AS_PUBLISHED = ModelOptions()
