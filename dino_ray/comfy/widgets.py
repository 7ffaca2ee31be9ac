"""Inputs of nodes, from the options' own definitions: ranges, defaults and what they mean are written once."""

from __future__ import annotations

import re
from typing import Any, get_args

from dino_ray.config import UpscaleConfig, Wrap

MOST_SCALE = 8.0
"""Of a node, whose image and result lie in memory; the command goes farther."""

OPEN = -1.0
"""Of a number with decimals, for options that suit the model unless they are named."""
OPEN_COUNT = 0
"""The same of a whole number that can't be 0."""

NAMES = {"scale": "scale_factor", "sampler": "sampler_name"}
"""Options that a node calls otherwise, as ComfyUI's own nodes do."""

STEP = 0.05
"""Of numbers with decimals, by the arrows of a widget."""

TILE_STEP = 64
"""Of a tile's side: what all models' tiles are multiples of."""


def bounds(field: str) -> tuple[float | None, float | None]:
    """Least and greatest value of an option."""
    low = high = None
    for limit in UpscaleConfig.model_fields[field].metadata:
        low = getattr(limit, "ge", getattr(limit, "gt", low))
        high = getattr(limit, "le", high)
        if (below := getattr(limit, "lt", None)) is not None:
            high = below - 1  # of whole numbers
    return low, high


def number(field: str, **over: Any) -> tuple[str, dict[str, Any]]:
    """A number's widget; ``over`` says what is particular to a node."""
    info = UpscaleConfig.model_fields[field]
    kinds = get_args(info.annotation) or (info.annotation,)
    whole = int in kinds
    low, high = bounds(field)
    options: dict[str, Any] = {
        "default": info.default,
        "min": low,
        "max": high,
        "tooltip": info.description,
        **({} if whole else {"step": STEP, "round": False}),
        **over,
    }
    return "INT" if whole else "FLOAT", options


def open_number(field: str, **over: Any) -> tuple[str, dict[str, Any]]:
    """A number's widget whose lowest value says: what suits the model."""
    kind, options = number(field, **over)
    nothing = (
        OPEN_COUNT
        if kind == "INT" and options["min"] > OPEN_COUNT
        else OPEN
        if kind == "FLOAT"
        else int(OPEN)
    )
    said = f"{options['tooltip']} {nothing:g}: what suits the model."
    return kind, {**options, "default": nothing, "min": nothing, "tooltip": said}


def text(field: str, **over: Any) -> tuple[str, dict[str, Any]]:
    """A text's widget."""
    info = UpscaleConfig.model_fields[field]
    return "STRING", {"default": info.default or "", "tooltip": info.description, **over}


def choice(field: str) -> tuple[list[str], dict[str, Any]]:
    """A choice's widget."""
    info = UpscaleConfig.model_fields[field]
    values = list(get_args(get_args(Wrap)[0])) if field == "wrap" else list(get_args(info.annotation))
    return values, {"default": info.default, "tooltip": info.description}


def switch(what: str, default: bool = True) -> tuple[str, dict[str, Any]]:
    """An on-off widget."""
    return "BOOLEAN", {"default": default, "tooltip": what}


def as_on_node(message: str) -> str:
    """A message about options of the command, by the names that a node has for them."""
    message = message.replace("--no-verify", "dino_enabled off")

    def name(match: re.Match[str]) -> str:
        field = match[1].replace("-", "_")
        return NAMES.get(field, field)

    return re.sub(r"--([a-z][a-z-]*)", name, message)
