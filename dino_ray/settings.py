"""A config with nothing left open, and the canvas and tiles that it gives a source."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dino_ray.diffusion.dtypes import Dtypes
from dino_ray.diffusion.model_options import AS_PUBLISHED, ModelOptions
from dino_ray.errors import UsageError
from dino_ray.plan.geometry import Grid, Scaling, make_grid
from dino_ray.prompts import Region
from dino_ray.raster.export import ExportOptions
from dino_ray.raster.metadata import panorama
from dino_ray.raster.source import ReadOptions, SourceInfo

if TYPE_CHECKING:
    from dino_ray.diffusion.denoiser import Description

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """A config with nothing left open; the defaults are those without a diffusion model."""

    scale: float
    model: Description | None
    """None: the base alone."""
    base: Literal["net", "lanczos"]
    net: Literal["auto", "clean", "worn"] | None
    """None: the base is no net's, or as large as the source."""
    tile: int
    overlap: int
    multiple: int
    wrap: Literal["auto", "on", "off"]
    read: ReadOptions
    export: ExportOptions
    shared: bool
    """Every node of the cluster sees the job directory under the same name."""

    denoise: float = 0.0
    steps: int = 0
    sampler: Literal["euler", "heun"] = "euler"
    prompt: str = ""
    regions: tuple[Region, ...] = ()
    """Where tiles are told something else."""
    captioner: str | None = None
    negative_prompt: str | None = None
    control_scale: float = 0.0
    control_range: tuple[float, float] = (0.0, 1.0)
    """Part of the steps in which a ControlNet acts."""
    text_sees_source: bool = False
    """The model's text encoder looks at the source."""
    cfg: float | None = None
    dino: str | None = None
    """None: no DINO model takes part."""
    dino_tokens: bool = False
    """The diffusion model attends to DINO features of the source."""
    dino_strength: float = 0.0
    dino_adapter: str | None = None
    sketch: str | None = None
    """The small decoder that guidance looks through; None: the model's own."""
    adaptive: float = 0.0
    verify: bool = False
    consistency: float = 0.0
    color_lock: Literal["wavelet", "adain", "off"] = "off"
    seed: int = 0
    model_place: str = "none"
    """What the replicas load: ``--model`` as it was found here, an absolute path or a hub id."""
    dtype: Dtypes = field(default_factory=Dtypes)
    model_options: ModelOptions = AS_PUBLISHED
    fit: str | None = None
    """What was decided of how the model is kept, and why; None: nothing was."""
    gpu_bytes: Mapping[str, float] = field(default_factory=dict)
    """That a GPU is to have for a ``replica``, and for the ``text`` encoders on one of them; empty: not known."""
    host_bytes: float | None = None
    """That a replica on a CPU takes; None: not known."""
    batch: int = 1
    """Tiles that a replica refines at once; 1 without a model."""

    @property
    def image_prompt(self) -> Literal["image", "tile"] | None:
        """What an image prompt looks at; None: there is none."""
        prompt = self.model_options.image_prompt
        return prompt.of if prompt is not None and self.model is not None else None

    @property
    def fitted(self) -> dict[str, Any]:
        """What ``--fit`` has settled, as options; empty where it has not."""
        if self.fit is None:
            return {}
        kept = self.model_options
        return {
            "fit": "off",
            "dtype": str(self.dtype),
            "quantize": kept.quantize,
            "offload": kept.offload,
            "vae_tile": kept.vae_tile,
        }

    def layout(self, info: SourceInfo) -> tuple[Scaling, Grid]:
        """Canvas and tiles for a source.

        Raises
        ------
        UsageError
            If its edges are to meet, and can't.
        """
        scaling, grid = self._layout(info)
        self._check_prompts(info, grid)
        return scaling, grid

    def _layout(self, info: SourceInfo) -> tuple[Scaling, Grid]:
        scaling = Scaling.from_factor(info.width, info.height, self.scale)
        if self.wrap == "off" or (self.wrap == "auto" and not _is_panorama(info)):
            return scaling, self._grid(scaling, wrap=False)
        try:
            return scaling, self._grid(scaling, wrap=True)
        except UsageError as error:
            if self.wrap == "on":
                raise
            log.warning("%s: is a 360° panorama, whose edges will not quite meet: %s", info.name, error)
            return scaling, self._grid(scaling, wrap=False)

    def _check_prompts(self, info: SourceInfo, grid: Grid) -> None:
        """Warn of what is told to tiles that do not show it."""
        if self.model is not None and grid.n_tiles > 1 and self.prompt not in ("", self.model.prompt):
            log.warning(
                "--prompt is told to each of the %s tiles of %s, and what only a part of the picture shows may be "
                "drawn into all of them: name style and quality, or give regions their own with --prompts",
                *(f"{grid.n_tiles:,}", info.name),
            )
        for region in self.regions:
            if not region.touches(info.width, info.height):
                log.warning(
                    "--prompts: the region of %r lies outside %s, which has %d × %d px",
                    *(region.prompt, info.name, info.width, info.height),
                )

    def _grid(self, scaling: Scaling, *, wrap: bool) -> Grid:
        # Only a model's latents tie the circle to a lattice.
        multiple = 1 if wrap and self.model is None and scaling.canvas_w % self.multiple else self.multiple
        if wrap:
            scaling.check_closes(multiple)
        size = (scaling.canvas_w, scaling.canvas_h)
        return make_grid(*size, tile=self.tile, overlap=self.overlap, multiple=multiple, wrap=wrap)


def _is_panorama(info: SourceInfo) -> bool:
    found = panorama(info.metadata)
    return found is not None and found.closes
