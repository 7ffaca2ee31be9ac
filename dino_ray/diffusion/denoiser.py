"""The one shape every diffusion model is reduced to: noisy latents and a noise level in, clean latents out.

The parametrisation is that of k-diffusion (Karras et al. 2022, arXiv:2206.00364): a model predicts the
clean latents ``x0``, and sampler, guidance and schedule are written once on top of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:  # the planner reads descriptions without paying for torch
    import torch
    from torch import Tensor

Guidance = Literal["none", "embedded", "classifier-free"]

Embeddings: TypeAlias = "Mapping[str, Tensor]"
"""Of one prompt, by the family's own names; each with a batch axis first. A sequence whose length varies comes with a
mask of the same length, ``…_mask``, 1 where a token counts."""


MASK = "_mask"
"""How the names of masks end."""


@dataclass(frozen=True)
class Description:
    """What the planner must know of a model; read from its config files, without loading any weights."""

    name: str
    """As reports print it: ``bundled``, ``black-forest-labs/FLUX.1-schnell``, a folder's name."""
    family: str
    """The module in ``dino_ray.diffusion.families`` that drives it, or ``bundled``."""
    latent_scale: int
    """canvas_px per latent sample, per axis."""
    latent_channels: int
    pixel_multiple: int
    """Tile sizes and tile origins are multiples of this many canvas_px."""
    tile: int
    """Best tile side, canvas_px."""
    overlap: int
    """Overlap of neighbouring tiles that this model needs, canvas_px."""
    steps: int
    """Denoising steps unless the user names another number."""
    guidance: Guidance
    """``embedded``: takes a guidance scale as an input (FLUX.1-dev); ``classifier-free``: is asked twice a step, with
    the prompt and with the negative one (Ho and Salimans 2022, arXiv:2207.12598); ``none``: takes no scale."""
    cfg: float | None = None
    """Guidance scale unless the user names another; None where ``guidance`` is ``none``. Of classifier-free guidance,
    1 asks once, and leaves the negative prompt without effect."""
    takes_text: bool = False
    prompt: str = ""
    """What it is told unless the user says otherwise: true of every tile of every picture."""
    negative_prompt: str | None = ""
    """What it is told to keep out unless the user says otherwise, under classifier-free guidance; None: it gets no
    embeddings for that."""
    reads_picture: bool = False
    """Its text encoder looks at the picture while it reads the prompt."""
    takes_reference: bool = False
    """It attends to the tile's base beside the latents that it refines."""
    takes_control: bool = False
    """A ControlNet holds it to the tile's base."""
    denoise: float = 0.25
    """Noise level to start from unless the user names another."""
    noise_levels: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest noise level that it can start from. Equal: it only draws anew, beside its reference."""
    dino_dim: int | None = None
    """Channels of the DINO tokens it was trained to attend to; None where it takes none."""
    dino_stride: int = 0
    """canvas_px per DINO token, per axis; 0 where it takes none."""
    dino: str = "bundled"
    """The DINO model of those tokens, as ``--dino`` names it; plays no part where it takes none."""

    largest_tile: int | None = None
    """Largest tile side that it can take, canvas_px: it knows no positions beyond; None: any."""
    noise_free_to: float = 0.0
    """Started at this noise level or below, it gets no noise, and the seed plays no part."""

    def __post_init__(self) -> None:
        assert self.pixel_multiple % self.latent_scale == 0
        assert self.tile % self.pixel_multiple == 0
        assert self.largest_tile is None or self.tile <= self.largest_tile
        assert (self.guidance == "none") == (self.cfg is None)
        assert (self.dino_dim is None) == (self.dino_stride == 0)
        assert self.noise_levels[0] <= self.denoise <= self.noise_levels[1]

    @property
    def draws_anew(self) -> bool:
        """It starts from one noise level only, and what it keeps of a tile it keeps for its reference's sake."""
        least, most = self.noise_levels
        return least == most

    def within(self, denoise: float) -> float:
        """The nearest noise level that it can start from."""
        least, most = self.noise_levels
        return min(max(denoise, least), most)


@dataclass(frozen=True)
class DinoTokens:
    """DINO features of one batch of tiles, laid evenly over each tile."""

    features: Tensor
    """(B, rows, cols, dim) float32; token (r, c) is centred at ((r + 0.5) / rows, (c + 0.5) / cols) of the
    tile."""
    strength: float
    """In (0, 1]: the tokens' attention logits get ``log(strength)``. Tokens of strength 0 are not passed."""


@dataclass(frozen=True)
class Control:
    """What a ControlNet holds a batch of tiles to."""

    pixels: Tensor
    """(B, 3, H, W) in [0, 1]."""
    latents: Tensor
    """The same, encoded: (B, C, h, w)."""
    scale: float
    """Of what the ControlNet adds; 1 as it was trained."""
    levels: tuple[float, float]
    """Lowest and highest noise level at which it acts."""


@dataclass(frozen=True)
class Conditioning:
    """All that steers a prediction besides the latents."""

    text: Embeddings = field(default_factory=dict)
    """Of the prompt, with a batch axis of 1 for all tiles, or of B for each its own; empty where it takes none."""
    negative: Embeddings = field(default_factory=dict)
    """Of the negative prompt, likewise; empty where classifier-free guidance is off, or nothing is named that some
    families tell from an empty text."""
    cfg: float | None = None
    """None: what the description says."""
    image: Embeddings = field(default_factory=dict)
    """Of an image prompt, likewise, as ``image_prompt.ImageEncoder`` makes them; empty where there is none."""
    reference: Tensor | None = None
    """(B, C, h, w): latents of the base, where the description asks for them."""
    dino: DinoTokens | None = None
    control: Control | None = None


class Denoiser(Protocol):
    """A loaded model. Stateless between calls, so that any step of any tile can run on any replica; one with a step
    cache is not, within ``sampling``.

    Every method takes tiles of one size in batches (B); what it makes of one does not depend on the others, but for the
    last bits, which may depend on how many there are.
    """

    @property
    def description(self) -> Description: ...

    @property
    def device(self) -> torch.device: ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to latents (B, C, h, w), both float32."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to pixels (B, 3, H, W), nominally in [0, 1] and not clipped."""
        ...

    def sketch(self, latents: Tensor) -> Tensor:
        """As ``decode``, or nearly so, as cheap as can be, and with a gradient for the latents where one is asked for.

        Guidance looks through it.
        """
        ...

    def sigmas(self, denoise: float, steps: int, size: tuple[int, int]) -> Tensor:
        """Noise levels, float32 (steps + 1,), from ``denoise`` exactly down to 0; ``size``: latent (h, w)."""
        ...

    def noised(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Where sampling starts: clean ``latents`` at noise level ``sigma`` in (0, 1], by unit ``noise``."""
        ...

    def sampling(self) -> AbstractContextManager[None]:
        """Entered around the steps of one batch from its first noise level to its last.

        Whatever a model keeps from one step for the next, such as a step cache, it keeps within: none is left from an
        earlier batch at its start, and none at its end, however that comes. Most keep nothing.
        """
        ...

    def predict(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """The clean latents x0 that the model sees in ``x`` at noise level ``sigma``; same shape, float32."""
        ...

    def save_memory(self) -> str | None:
        """Take a measure, from now on, by which a single tile needs less of the device's memory.

        Such a measure may change the last bits of a result, or a little more than those.

        Returns
        -------
        str or None
            What it was, in words that a report can print, such as ``VAE tiling of 512 px``; None: there is none left.
        """
        ...


@dataclass(frozen=True)
class Sampling:
    """The steps of one batch of tiles, as a host gets to know them."""

    base: Tensor
    """(B, C, h, w): latents of the base."""
    noise: Tensor
    """The same shape: the tiles' own windows of the noise field."""
    start: Tensor
    """Both, mixed at the first noise level."""
    levels: Sequence[float]
    """Noise levels, from the first down to 0."""
    places: Sequence[tuple[float, float, float, float]]
    """Of each tile (x, y, w, h), as parts of the canvas; may reach beyond 1, and before 0 where the canvas closes."""
    closed: bool
    """Whether the canvas's left and right edge meet."""
    seed: int
    cfg: float | None
    before_step: Callable[[int], None]
    """To be told of each step before it runs; raises to stop."""


@runtime_checkable
class Host(Protocol):
    """What a ``Denoiser`` is besides, whose predictions can only be had within a frame that another program sets up
    around the steps: its memory management, its patches, its conditioning.
    """

    def host(self, sampling: Sampling, follow: Callable[[], Tensor]) -> Tensor:
        """Set up the frame, and take the steps in it: by ``follow``, or by a sampler of the program's own.

        Returns
        -------
        Tensor
            Clean latents, (B, C, h, w) float32.
        """
        ...


def stacked(prompts: Sequence[Embeddings]) -> Embeddings:
    """Embeddings of several prompts as those of one batch, for each tile its own: (B, …).

    Where sequences differ in length, the shorter ones are filled up with zeros, which their masks do not count.

    Raises
    ------
    ValueError
        Where they differ in length, and have no mask.
    """
    import torch
    import torch.nn.functional as F

    made = {}
    for name in prompts[0]:
        values = [embeddings[name] for embeddings in prompts]
        longest = max(value.shape[1] for value in values)
        if any(value.shape[1] != longest for value in values):
            if not any(
                name.startswith(mask.removesuffix(MASK)) for mask in prompts[0] if mask.endswith(MASK)
            ):
                raise ValueError(
                    f"the embeddings {name!r} differ in length from prompt to prompt, and have no mask"
                )
            behind = (0, 0) * (values[0].dim() - 2)
            values = [F.pad(value, (*behind, 0, longest - value.shape[1])) for value in values]
        made[name] = torch.cat(values)
    return made
