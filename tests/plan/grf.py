"""A diffusion model whose exact answer is known: the posterior mean of a Gaussian random field.

The clean image is a stationary Gaussian random field of known power spectrum S, where white noise has 1. Seen
at noise level sigma as ``x = (1 - sigma) x0 + sigma noise``, its posterior mean is the Wiener filter
``(1 - sigma) S / ((1 - sigma)² S + sigma²)`` of x, taken in the Fourier domain. A window is continued by its
mirror image on all sides: this model's guess at the world beyond its tile. (That of a whole panorama goes on
around it instead.)

With it seams can be measured rather than looked at: tile by tile and merged, against one pass over the whole
image. It needs torch, numpy and ``dino_ray`` alone, so any test may use it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dino_ray.diffusion.denoiser import Conditioning, Description
from dino_ray.plan.geometry import Axis, Grid

AMPLITUDE = 0.1
"""Pixel values, of 1, per standard deviation: mid-grey is five of them from black and from white."""


@dataclass(frozen=True)
class Spectrum:
    """Power of the field against frequency in cycles per pixel: large shapes and a fine texture."""

    large_scale: float = 200.0
    """Pixels; shapes up to this size, larger than a tile, have power falling as ``frequency ** -slope``."""
    slope: float = 3.0
    texture_frequency: float = 0.25
    texture_width: float = 0.06
    texture_variance: float = 0.01
    """Of a total of about 1. Faint beside the noise, as texture is to a model that is to make it anew."""

    def __call__(self, frequency: Tensor) -> Tensor:
        corner = 1 / self.large_scale
        # Each part integrates over the plane of frequencies to its variance.
        steep = self.slope / 2
        large = (steep - 1) / np.pi * corner ** (self.slope - 2) * (frequency**2 + corner**2) ** -steep
        ring = torch.exp(-0.5 * ((frequency - self.texture_frequency) / self.texture_width) ** 2)
        ring_area = (2 * np.pi) ** 1.5 * self.texture_frequency * self.texture_width
        power: Tensor = large * (1 - self.texture_variance) + ring * (self.texture_variance / ring_area)
        return power


def frequencies(h: int, w: int) -> Tensor:
    """(h, w // 2 + 1): radial frequency of each bin of ``rfft2``."""
    return torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(w)[None, :])


def make_field(size: int, seed: int, spectrum: Spectrum = Spectrum(), *, closed: bool = False) -> np.ndarray:
    """A sample of the field as an image: uint16 (size, size, 3), its channels independent.

    ``closed``: its left edge goes on where its right one ends.
    """
    # Drawn on a torus of twice the size, so that opposite borders of the image have nothing in common.
    h, w = 2 * size, size if closed else 2 * size
    white = np.random.default_rng(seed).standard_normal((3, h, w), np.float32)
    power = spectrum(frequencies(h, w))
    torus = torch.fft.irfft2(torch.fft.rfft2(torch.from_numpy(white)) * power.sqrt(), s=(h, w))
    return to_uint16(torus[:, :size, :size] * AMPLITUDE + 0.5)


def to_uint16(pixels: Tensor) -> np.ndarray:
    """Pixels (3, H, W) in [0, 1] as uint16 (H, W, 3)."""
    return (pixels.clamp(0, 1) * 65535).round().to(torch.int32).numpy().astype(np.uint16).transpose(1, 2, 0)


def from_uint16(pixels: np.ndarray) -> Tensor:
    """uint16 (H, W, 3) as pixels (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / 65535).permute(2, 0, 1)[None]


@dataclass(frozen=True)
class GrfDenoiser:
    """The field's exact model, as a ``Denoiser``: latents are pixels, scaled to unit variance."""

    tile: int = 128
    overlap: int = 16
    noise_per_tile: bool = False
    """Start from noise of the tile's own instead of the noise that it is given: what seams come from."""
    closed: bool = False
    """Windows close on themselves in x, as the whole of a closed image does."""
    spectrum: Spectrum = field(default_factory=Spectrum)

    @property
    def description(self) -> Description:
        return Description(
            name="grf",
            family="grf",
            latent_scale=1,
            latent_channels=3,
            pixel_multiple=16,
            tile=self.tile,
            overlap=self.overlap,
            steps=8,
            guidance="none",
        )

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def encode(self, pixels: Tensor) -> Tensor:
        return (pixels - 0.5) / AMPLITUDE

    def decode(self, latents: Tensor) -> Tensor:
        return latents * AMPLITUDE + 0.5

    def sigmas(self, denoise: float, steps: int, size: tuple[int, int]) -> Tensor:
        return torch.linspace(denoise, 0, steps + 1)

    def save_memory(self) -> None:
        return None

    def noised(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        if self.noise_per_tile:
            digest = hashlib.sha256(noise.numpy().tobytes() + latents.numpy().tobytes()).digest()
            own = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
            noise = torch.randn(noise.shape, generator=own)
        return (1 - sigma) * latents + sigma * noise

    def sampling(self) -> AbstractContextManager[None]:
        return nullcontext()

    def predict(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        h, w = x.shape[-2:]
        continued = torch.cat([x, x.flip(-2)], -2)
        if not self.closed:
            continued = torch.cat([continued, continued.flip(-1)], -1)
        size = continued.shape[-2:]
        power = self.spectrum(frequencies(*size))
        gain = (1 - sigma) * power / ((1 - sigma) ** 2 * power + sigma**2)
        filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(continued) * gain, s=size)
        return filtered[..., :h, :w]


def high_pass_energy(image: np.ndarray, *, closed: bool = False) -> np.ndarray:
    """The squared Laplacian of (H, W, C), summed over channels; (H, W), zero on the outermost pixels.

    ``closed``: there are no outermost columns.
    """
    x = image.astype(np.float64)
    if closed:
        x = np.concatenate([x[:, -1:], x, x[:, :1]], axis=1)
    energy = np.zeros(x.shape[:2])
    laplacian = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]
    energy[1:-1, 1:-1] = (laplacian**2).sum(-1)
    return energy[:, 1:-1] if closed else energy


def seam_mask(grid: Grid) -> np.ndarray:
    """Boolean (height, width): the middle half of every ramp, where both tiles have their say."""
    across, down = (_bands(axis, range(len(axis.ramps))) for axis in (grid.xs, grid.ys))
    mask: np.ndarray = across[None, :] | down[:, None]
    return mask


def meridian_mask(grid: Grid, seam: int) -> np.ndarray:
    """Boolean (height, width): the part of ``seam_mask`` along one vertical seam."""
    return np.broadcast_to(_bands(grid.xs, [seam]), (grid.height, grid.width))


def _bands(axis: Axis, seams: Iterable[int]) -> np.ndarray:
    inside = np.zeros(axis.length, bool)
    for start, stop in map(axis.ramp, seams):
        quarter = (stop - start) // 4
        inside[np.arange(start + quarter, stop - quarter) % axis.length] = True
    return inside


def seam_energy_ratio(
    mosaic: np.ndarray, whole: np.ndarray, grid: Grid, mask: np.ndarray | None = None
) -> float:
    """High-pass energy of ``mosaic`` over that of ``whole``, along the seams of ``grid`` or within ``mask``."""
    mask = seam_mask(grid) if mask is None else mask
    of_mosaic, of_whole = (high_pass_energy(image, closed=grid.wrap)[mask] for image in (mosaic, whole))
    return float(of_mosaic.sum() / of_whole.sum())
