"""In what floating-point type each of a model's components is kept: ``--dtype``. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

Compute: TypeAlias = Literal["fp32", "fp16", "bf16"]
"""Types that are computed in."""

TORCH: Mapping[Compute, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Their names in torch, which are understood as well."""

FP8 = "fp8"
"""Weights alone are kept so, in ``torch.float8_e4m3fn``; each layer computes in another type."""

AUTO = "auto"

DEFAULT_PART = "default"
"""Stands for all components that are not named."""

_SHORT: Mapping[str, str] = {
    **{long: short for short, long in TORCH.items()},
    **{name: name for name in (AUTO, *TORCH, FP8)},
}


@dataclass(frozen=True)
class Dtypes:
    """What was asked for, by component: ``auto``, ``fp32``, ``fp16``, ``bf16`` or ``fp8`` each."""

    SYNTAX: ClassVar[str] = "auto|fp32|fp16|bf16|fp8|PART=…,PART=…"
    """What to type."""

    default: str = AUTO
    parts: tuple[tuple[str, str], ...] = ()
    """Components that are named, in the order of their names."""

    @classmethod
    def parse(cls, value: Any) -> Dtypes:
        """``"bf16"``, ``"transformer=fp8,vae=fp32"``, ``"default=bf16,vae=fp32"``, or a mapping of the same.

        Raises
        ------
        ValueError
            If it is none of these, or names a component twice.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            value = ",".join(f"{part}={dtype}" for part, dtype in value.items())
        entries = [entry.strip() for entry in str(value).split(",")]
        if len(entries) == 1 and "=" not in entries[0]:
            return cls(_dtype(entries[0]))
        parts: dict[str, str] = {}
        for entry in entries:
            part, _, dtype = (word.strip() for word in entry.partition("="))
            if not part or not dtype:
                raise ValueError(f"{entry!r} is no PART=TYPE such as vae=fp32")
            if part in parts:
                raise ValueError(f"{part} is named twice")
            parts[part] = _dtype(dtype)
        return cls(parts.pop(DEFAULT_PART, AUTO), tuple(sorted(parts.items())))

    def of(self, part: str) -> str:
        """What is asked for of a component, named or not."""
        return dict(self.parts).get(part, self.default)

    def names(self, part: str) -> bool:
        """Whether the component was named: what suits it less is then to be done nevertheless."""
        return part in dict(self.parts)

    def __str__(self) -> str:
        """As `parse` takes it: what files of options hold."""
        if not self.parts:
            return self.default
        named = [(DEFAULT_PART, self.default)] if self.default != AUTO else []
        return ",".join(f"{part}={dtype}" for part, dtype in (*named, *self.parts))


def _dtype(name: str) -> str:
    if name not in _SHORT:
        raise ValueError(f"{name!r} is none of {', '.join((AUTO, *TORCH, FP8))}")
    return _SHORT[name]
