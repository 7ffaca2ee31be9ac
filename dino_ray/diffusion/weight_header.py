"""The header of a file of weights: names and shapes of its tensors, and what it says of itself.

No torch, but for pickles, which have no header.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from dino_ray.errors import UsageError

SAFETENSORS = (".safetensors", ".sft")
GGUF = ".gguf"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
"""Reading one can run any code."""
SUFFIXES = (*SAFETENSORS, GGUF, *PICKLES)

SCALES = (".scale_weight", ".weight_scale")
"""Of a layer kept in 8-bit floating point: what its weight is to be multiplied by, as ComfyUI names it."""

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Header:
    """Of a file of weights."""

    shapes: Shapes
    """By tensor."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What else it says."""

    def under(self, prefix: str) -> Shapes:
        """The tensors whose names begin so, without it."""
        return {
            name.removeprefix(prefix): shape for name, shape in self.shapes.items() if name.startswith(prefix)
        }


def read_header(path: Path, asked: str, allow_pickle: bool = False) -> Header:
    """Names and shapes of a file's tensors.

    Raises
    ------
    UsageError
        Where it can't be read, or is a pickle that is not allowed.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in SAFETENSORS:
            return _safetensors_header(path)
        if suffix == GGUF:
            return _gguf_header(path)
        if suffix in PICKLES:
            check_pickle(path.name, asked, allow_pickle)
            return _pickle_header(path)
    except UsageError:
        raise
    except Exception as error:  # whatever a damaged file makes of three libraries
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise UsageError(f"{asked}: can't be read ({reason}); get it again") from error
    raise UsageError(f"{asked}: is none of {', '.join(SUFFIXES)}; give a file of weights, or a folder")


def check_pickle(name: str, asked: str, allow_pickle: bool) -> None:
    """Refuse a pickle unless it is allowed.

    Raises
    ------
    UsageError
        If it is not.
    """
    if not allow_pickle:
        raise UsageError(
            f"{asked}: {name} is a pickle, and reading a pickle can run any code; give a model that has .safetensors "
            "files, or --allow-pickle if you trust who made it"
        )


def _safetensors_header(path: Path) -> Header:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return Header(shapes, file.metadata() or {})


def _gguf_header(path: Path) -> Header:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    name = reader.get_field("general.name")
    metadata = {"general.name": str(name.contents())} if name is not None else {}
    # GGUF counts axes from the innermost one.
    return Header({each.name: tuple(map(int, reversed(each.shape))) for each in reader.tensors}, metadata)


def _pickle_header(path: Path) -> Header:
    from dino_ray.diffusion import pickles

    return Header({name: tuple(value.shape) for name, value in pickles.read(path, meta=True).items()})


def spread(path: Path, name: str) -> float | None:
    """Standard deviation of a small tensor of a safetensors file; None where it is not there or of another format."""
    import numpy as np

    kinds = {"F32": np.float32, "F16": np.float16}
    if path.suffix.lower() not in SAFETENSORS:
        return None
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(length)).get(name)
        if entry is None:
            return None
        start, end = entry["data_offsets"]
        file.seek(8 + length + start)
        raw = file.read(end - start)
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return float((np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32).std())
    kind = kinds.get(entry["dtype"])
    return None if kind is None else float(np.frombuffer(raw, kind).astype(np.float64).std())
