"""Reading prompts as diffusers' own pipelines do."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dino_ray.diffusion.components import TextParts
from dino_ray.diffusion.families.family import Configs


@contextmanager
def stock_pipeline(parts: TextParts, configs: Configs) -> Iterator[Any]:
    """A model's own pipeline, of its text encoders alone: ``encode_prompt`` works, and nothing else.

    Raises
    ------
    JobError
        Where a part can't be loaded.
    """
    with parts.loaded(*parts.files) as loaded:
        yield bare_pipeline(configs, dict(zip(parts.files, loaded, strict=True)))


def bare_pipeline(configs: Configs, parts: Mapping[str, Any]) -> Any:
    """A model's own pipeline, of these components alone."""
    import diffusers

    cls = getattr(diffusers, configs["index"]["_class_name"])
    wanted = [
        name
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if name != "self" and parameter.default is inspect.Parameter.empty
    ]
    with quiet():
        return cls(**dict.fromkeys(wanted) | dict(parts))


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what diffusers has to say of a pipeline without a safety checker, or an image encoder."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
