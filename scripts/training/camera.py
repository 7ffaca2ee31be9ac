"""What a camera and its software make of a scene: exposure, lens, reduction, sharpening, grain, a first JPEG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.surfaces import Array

REDUCERS = (
    Image.Resampling.LANCZOS,
    Image.Resampling.BICUBIC,
    Image.Resampling.BOX,
    Image.Resampling.HAMMING,
    Image.Resampling.BILINEAR,
)
"""How pictures are made smaller, the sharpest first."""


def develop(rng: np.random.Generator, canvas: Array, size: int) -> NDArray[np.uint8]:
    """A scene of any side as a picture of ``size``: uint8 (size, size, 3)."""
    exposed = np.clip(canvas, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.15)))
    side = np.float32(rng.uniform(0, 0.16))  # a lens's last trace of blur
    for axis in (0, 1):
        exposed = (1 - 2 * side) * exposed + side * (np.roll(exposed, 1, axis) + np.roll(exposed, -1, axis))
    if len(canvas) != size:
        exposed = resized(exposed, (size, size), REDUCERS[rng.integers(len(REDUCERS))])
    if rng.random() < 0.25:
        exposed = sharpened(exposed, rng.uniform(0.5, 1.2), rng.uniform(0.1, 0.8))
    if rng.random() < 0.4:
        exposed = exposed + grain(rng, exposed, np.exp(rng.uniform(np.log(0.001), np.log(0.015))))
    pixels = np.asarray(np.rint(np.clip(exposed, 0, 1) * 255), np.uint8)
    if rng.random() < 0.3:
        pixels = jpeg(pixels, int(rng.integers(82, 99)), int(rng.choice([0, 2])))
    return pixels


def resized(image: Array, size: tuple[int, int], kernel: Image.Resampling) -> Array:
    """(h, w, 3) float32 to ``size``, (width, height), unclipped."""
    planes = [Image.fromarray(np.ascontiguousarray(image[..., c])).resize(size, kernel) for c in range(3)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def blur(image: Array, sigma: float | tuple[float, float], angle: float = 0.0) -> Array:
    """A Gaussian of ``sigma`` px, or of two along axes turned by ``angle``, wrapping at the borders."""
    along, across = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    fy = np.fft.fftfreq(image.shape[0])[:, None].astype(np.float32)
    fx = np.fft.rfftfreq(image.shape[1])[None, :].astype(np.float32)
    u, v = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    transfer = np.exp(-2 * np.pi**2 * ((along * u) ** 2 + (across * v) ** 2))
    spectrum = np.fft.rfft2(image, axes=(0, 1)) * transfer[..., None]
    return np.asarray(np.fft.irfft2(spectrum, s=image.shape[:2], axes=(0, 1)), np.float32)


def sharpened(image: Array, sigma: float, amount: float) -> Array:
    """Unsharp masking, with the halos that it gives."""
    return np.asarray(image + np.float32(amount) * (image - blur(image, sigma)), np.float32)


def grain(rng: np.random.Generator, image: Array, sigma: float) -> Array:
    """Noise of a sensor: more of it where there is more light, and often smeared or partly grey by denoising."""
    noise = rng.normal(0, 1, image.shape).astype(np.float32)
    if rng.random() < 0.4:
        noise = noise + noise.mean(-1, keepdims=True) * np.float32(rng.uniform(0.5, 2))
    if rng.random() < 0.4:
        noise = blur(noise, float(rng.uniform(0.4, 1)))
    light = 1.0 if rng.random() < 0.5 else np.sqrt(0.1 + 1.4 * np.clip(image, 0, 1))
    return np.asarray(noise * (sigma / noise.std()) * light, np.float32)


def jpeg(pixels: NDArray[np.uint8], quality: int, subsampling: int) -> NDArray[np.uint8]:
    """Saved and opened again; ``subsampling`` 0 keeps colours whole, 2 halves them on both axes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(buffer))
