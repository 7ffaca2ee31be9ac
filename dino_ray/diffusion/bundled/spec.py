"""``model.json`` of a bundled-format model: all that is not in the transformer's own config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_ray.errors import UsageError

if TYPE_CHECKING:
    from dino_ray.diffusion.denoiser import Description

FOLDER = Path(__file__).parent / "weights"
FORMAT = "dino_ray.bundled/1"
FILE = "model.json"
COLOURS = 3


@dataclass(frozen=True)
class Spec:
    """The facts of one model; what training decides and inference obeys."""

    folder: Path
    sigma0: float
    """Noise level that stands for the base as it is: from here the model restores, and no noise is added."""
    latent_scale: int
    """Side of the transform's blocks, canvas_px."""
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    """Per latent channel, over the training pictures."""
    tile: int
    overlap: int
    pixel_multiple: int
    """All three canvas_px."""
    steps: int
    dino_dim: int
    dino_stride: int
    """canvas_px per DINO token."""

    def __post_init__(self) -> None:
        assert 0 < self.sigma0 <= 1
        assert len(self.latent_mean) == len(self.latent_std) == self.latent_channels
        assert min(self.latent_std) > 0

    @property
    def name(self) -> str:
        return "bundled" if self.folder == FOLDER else self.folder.name

    @property
    def transformer(self) -> Path:
        """Where diffusers finds the transformer."""
        return self.folder / "transformer"

    @property
    def latent_channels(self) -> int:
        return COLOURS * self.latent_scale**2

    def description(self) -> Description:
        from dino_ray.diffusion.denoiser import Description

        return Description(
            name=self.name,
            family="bundled",
            latent_scale=self.latent_scale,
            latent_channels=self.latent_channels,
            pixel_multiple=self.pixel_multiple,
            tile=self.tile,
            overlap=self.overlap,
            steps=self.steps,
            guidance="none",
            dino_dim=self.dino_dim,
            dino_stride=self.dino_stride,
            noise_free_to=self.sigma0,
        )

    def write(self) -> None:
        """Write ``model.json`` into the folder."""
        facts = {name: value for name, value in asdict(self).items() if name != "folder"}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / FILE).write_text(json.dumps({"format": FORMAT, **facts}, indent=2) + "\n")


def is_bundled(folder: Path | str) -> bool:
    """Whether ``folder`` looks like a model of this format; it may yet be broken."""
    return (Path(folder) / FILE).is_file()


def read_spec(folder: Path | str | None = None) -> Spec:
    """Read ``model.json`` of ``folder`` (None: the model that ships).

    Raises
    ------
    UsageError
        The folder holds no model of this format.
    """
    path = (FOLDER if folder is None else Path(folder)) / FILE
    remake = "make one with scripts/train_bundled.py"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--model {path.parent}: no readable {FILE} ({error}); {remake}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UsageError(f"--model {path.parent}: {FILE} is not of format {FORMAT}; {remake}")
    try:
        return Spec(folder=path.parent, **_typed(content))
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(
            f"--model {path.parent}: {FILE} does not hold together ({error}); {remake}"
        ) from None


def _typed(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON lists as the tuples that the fields are."""
    known = {field.name for field in fields(Spec)}
    if unknown := set(content) - known:
        raise ValueError(f"unknown {', '.join(sorted(unknown))}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
