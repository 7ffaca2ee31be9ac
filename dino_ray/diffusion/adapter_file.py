"""The file of a DINO adapter: what it was trained for, what may be in it, what it is refused for. No torch.

An adapter is one ``.safetensors`` file. Its header says which DINO's tokens it reads and which model's transformer it
writes for; that model is known again by its name and by a hash of the layers at the transformer's edges, where
another model, or another training of the same one, differs.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from dino_ray.diffusion.denoiser import Description
from dino_ray.errors import UsageError

FORMAT = "dino_ray.adapter/1"
SUFFIX = ".safetensors"

_EDGES = ("context_embedder.", "x_embedder.", "proj_out.")
"""What a FLUX transformer reads tokens and latents with, and writes velocities with. The rest of a large model would
take a minute to hash."""

_RETRAIN = "train one with scripts/train_adapter.py"


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter was trained with and for."""

    dino: str
    """As ``--dino`` names it."""
    channels: int
    """Of a token: a coarse feature and a fine one."""
    hidden: int
    """Width of the layer between."""
    width: int
    """Of the transformer's text tokens."""
    stride: int
    """canvas_px per token, per axis."""
    family: str
    model: str
    """As reports name it."""
    fingerprint: str
    """Of the model's transformer."""

    def metadata(self) -> dict[str, str]:
        """For the file's header."""
        return {"format": FORMAT, **{name: str(value) for name, value in asdict(self).items()}}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight that belongs into the file, by its name there."""
        return {
            "norm.weight": (self.channels,),
            "norm.bias": (self.channels,),
            "inner.weight": (self.hidden, self.channels),
            "inner.bias": (self.hidden,),
            "outer.weight": (self.width, self.hidden),
            "outer.bias": (self.width,),
        }

    def applied_to(self, description: Description) -> Description:
        """A model's description once the adapter is in its place."""
        return replace(description, dino=self.dino, dino_dim=self.channels, dino_stride=self.stride)


@dataclass(frozen=True)
class Target:
    """The model that an adapter is to be used with."""

    name: str
    family: str
    width: int
    """Of its transformer's text tokens."""
    transformer: Path | None
    """Folder of the transformer's weights; None: they are not here yet."""


def describe(path: str | Path, target: Target) -> AdapterFacts:
    """What an adapter is, from its file's header; refused unless it was trained for ``target``.

    Raises
    ------
    UsageError
        If there is no such file, it is no safetensors file of an adapter, lacks a weight or holds another, or was
        trained for another model.
    """
    option = f"--dino-adapter {path}"
    facts = _read(Path(path).expanduser(), option)
    for what, asked, given in (("family", facts.family, target.family), ("width", facts.width, target.width)):
        if asked != given:
            raise UsageError(
                f"{option}: was trained for the model {facts.model}, of {what} {asked}; {target.name} is of {what} "
                f"{given}; use it with that model, or {_RETRAIN}"
            )
    if target.transformer is not None and (found := fingerprint(target.transformer)) != facts.fingerprint:
        raise UsageError(
            f"{option}: was trained for the model {facts.model} with weights {facts.fingerprint}; {target.name} has "
            f"others ({found}); use it with that model, or {_RETRAIN}"
        )
    return facts


def _read(path: Path, option: str) -> AdapterFacts:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UsageError(f"{option}: no such file; {_RETRAIN}")
    if path.suffix != SUFFIX:
        raise UsageError(
            f"{option}: is no {SUFFIX} file, and reading other formats can run any code; {_RETRAIN}"
        )
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{option}: can't be read as safetensors ({error}); get it again") from error
    if metadata.get("format") != FORMAT:
        raise UsageError(f"{option}: is no adapter of format {FORMAT}; {_RETRAIN}")
    facts = _facts(metadata, option)
    expected = facts.shapes()
    unfit = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if unfit:
        raise UsageError(
            f"{option}: {len(unfit)} weights are missing, foreign or of another shape than its header says (first: "
            f"{unfit[0]}); get it again"
        )
    return facts


def _facts(metadata: Mapping[str, str], option: str) -> AdapterFacts:
    values: dict[str, str | int] = {}
    for field in fields(AdapterFacts):
        value = metadata.get(field.name, "")
        number = field.type == "int"
        if not value or (number and not (value.isdecimal() and int(value) > 0)):
            raise UsageError(f"{option}: its header has {field.name}={value!r}; get it again, or {_RETRAIN}")
        values[field.name] = int(value) if number else value
    return AdapterFacts(**values)  # type: ignore[arg-type]


def fingerprint(transformer: Path) -> str:
    """A hash, 16 hexadecimal digits, of the layers at the edges of the FLUX transformer saved in a folder.

    Raises
    ------
    UsageError
        If its safetensors files are missing or damaged.
    """
    digest, found = hashlib.sha256(), False
    try:
        for name, kind, content in sorted(_edges(transformer)):
            found = True
            digest.update(f"{name} {kind} {len(content)}\n".encode())
            digest.update(content)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise UsageError(
            f"{transformer}: its weights can't be read ({error}); get the model again"
        ) from error
    if not found:
        raise UsageError(f"{transformer}: holds no weights of a FLUX transformer; get the model again")
    return digest.hexdigest()[:16]


def _edges(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Name, kind and bytes of each weight of ``_EDGES``: straight from the files, since NumPy knows no bfloat16."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            for name, entry in header.items():
                if name.startswith(_EDGES):
                    start, end = entry["data_offsets"]
                    file.seek(8 + length + start)
                    yield name, f"{entry['dtype']} {entry['shape']}", file.read(end - start)
