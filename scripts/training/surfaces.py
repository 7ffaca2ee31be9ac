"""What the shapes of procedural pictures are covered with: colour, shading, texture, stripes, weave and fur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Rows map (luma, amber-blue, magenta-green) to RGB. As in photographs (Ruderman, Cronin and Chiao 1998,
# doi:10.1364/JOSAA.15.002036) luma varies most and magenta-green least.
OPPONENT_TO_RGB = np.array([[1, 1, 1], [0.8, 0.1, -0.9], [0.5, -0.6, 0.3]], np.float32)

FIELDS = 6
"""Textures per picture; the shapes cut their own pieces out of them."""
FUR_SHARE = 0.3
"""Of fields that flow like fur, hair and water rather than lie like cloud and stone."""


@dataclass(frozen=True)
class Style:
    """What the shapes of one picture have in common."""

    palette: Array
    """(k, 3) RGB anchors in [0, 1]."""
    fields: Array
    """(n, size, size) wrapping textures of unit deviation; the last is smooth, to bend what is straight."""
    edge_px: float
    """Usual width of an edge's ramp: the picture's focus."""
    texture: float
    """Usual amplitude of texture in [0, 1] of full range."""


def draw_style(rng: np.random.Generator, size: int) -> Style:
    """The style of a picture of ``size`` px a side."""
    n_colours = int(rng.integers(3, 9))
    luma = rng.normal(rng.uniform(0.3, 0.6), 0.22, n_colours)
    chroma = rng.normal(0, [1.0, 0.5], (n_colours, 2)) * np.exp(rng.normal(np.log(0.08), 0.6))
    mix = np.column_stack([luma, chroma]).astype(np.float32)
    palette = np.clip(mix @ OPPONENT_TO_RGB, 0.01, 0.99)
    fields = [fur(rng, size) if rng.random() < FUR_SHARE else fractal(rng, size) for _ in range(FIELDS)]
    fields.append(smooth(rng, size))
    focus = rng.uniform(0.7, 1.3) if rng.random() < 0.75 else np.exp(rng.uniform(np.log(1.3), np.log(5)))
    amplitude = min(np.exp(rng.normal(np.log(0.05), 0.6)), 0.15)
    return Style(palette, np.stack(fields), float(focus), float(amplitude))


def fractal(rng: np.random.Generator, size: int) -> Array:
    """Wrapping noise of spectrum f**-beta, possibly combed in one direction as fur and wood grain are."""
    fy = np.fft.fftfreq(size)[:, None]
    fx = np.fft.rfftfreq(size)[None, :]
    angle, stretch = rng.uniform(0, np.pi), 1.0
    if rng.random() < 0.5:
        stretch = np.exp(rng.uniform(0, np.log(12)))
    u = fx * np.cos(angle) + fy * np.sin(angle)
    v = (-fx * np.sin(angle) + fy * np.cos(angle)) * stretch
    f = np.sqrt(u * u + v * v)
    beta = rng.uniform(0.3, 1.9)
    amplitude = 1 / np.maximum(f, 1.5 / size) ** beta
    amplitude *= np.exp(-((f / rng.uniform(0.15, 0.6)) ** 2))  # no texture is white up to the last frequency
    amplitude[0, 0] = 0
    field = _from_spectrum(rng, amplitude, size)
    if rng.random() < 0.3:  # blotches and cracks rather than haze
        field = np.tanh(2 * field) if rng.random() < 0.5 else 1.2 - 1.9 * np.abs(np.tanh(field))
    return np.asarray(field, np.float32)


def smooth(rng: np.random.Generator, size: int) -> Array:
    """Wrapping noise of few waves per picture."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    f = np.hypot(fy, fx) * size
    return _from_spectrum(rng, np.exp(-((f / rng.uniform(2, 6)) ** 2)) * (f > 0), size)


def _from_spectrum(rng: np.random.Generator, amplitude: NDArray[np.float64], size: int) -> Array:
    phase = rng.normal(size=amplitude.shape) + 1j * rng.normal(size=amplitude.shape)
    field = np.fft.irfft2(amplitude * phase, s=(size, size))
    return np.asarray(field / field.std(), np.float32)


def fur(rng: np.random.Generator, size: int) -> Array:
    """White noise averaged along a winding flow: line integral convolution (Cabral and Leedom 1993,
    doi:10.1145/166117.166151)."""
    angle = rng.uniform(0, np.pi) + rng.uniform(0.3, 1.5) * smooth(rng, size)
    down, across = np.sin(angle).ravel(), np.cos(angle).ravel()
    strand = rng.normal(size=size * size).astype(np.float32)
    if rng.random() < 0.5:  # few bright hairs among many dull ones
        strand = np.exp(0.8 * strand)
    index = np.arange(size * size)
    total = strand.copy()
    rows, cols = index // size, index % size
    y, x = rows.astype(np.float32), cols.astype(np.float32)
    for _ in range(int(rng.integers(6, 24))):
        y, x = y + down[index], x + across[index]
        index = (np.rint(y).astype(np.int32) % size) * size + np.rint(x).astype(np.int32) % size
        total += strand[index]
    field = total.reshape(size, size)
    side = np.float32(rng.uniform(0.05, 0.25))  # strands have a width
    for axis in (0, 1):
        field = (1 - 2 * side) * field + side * (np.roll(field, 1, axis) + np.roll(field, -1, axis))
    field = field - field.mean()
    return np.asarray(field / field.std() + rng.uniform(0, 0.8) * smooth(rng, size), np.float32)


def colour(rng: np.random.Generator, style: Style) -> Array:
    """(3,) RGB near one of the palette's."""
    anchor = style.palette[rng.integers(len(style.palette))]
    jitter = rng.normal(0, [0.08, 0.02, 0.02]).astype(np.float32) @ OPPONENT_TO_RGB
    return np.asarray(anchor + jitter, np.float32)


def surface(rng: np.random.Generator, style: Style, yy: Array, xx: Array, radius: float) -> Array:
    """Colour (h, w, 3) of a shaded, textured surface at pixel offsets (yy, xx) from its centre."""
    slope = rng.normal(0, 0.15, 2) / max(radius, 8)
    light = 1 + slope[0] * yy + slope[1] * xx
    if rng.random() < 0.3:  # roundness
        light = light * (1.15 - 0.4 * np.minimum((yy * yy + xx * xx) / radius**2, 1.5))
    made = colour(rng, style) * light[..., None].astype(np.float32)
    kind = rng.random()
    amplitude = min(style.texture * np.exp(rng.normal(0, 0.6)), 0.2)
    if kind < 0.6:
        made += (amplitude * _field_crop(rng, style, yy.shape))[..., None] * _tint(rng)
    elif kind < 0.74:
        made += (1.5 * amplitude * _grating(rng, style, yy, xx))[..., None] * _tint(rng)
    elif kind < 0.8:  # two materials in patches
        mask = np.clip(0.5 + 2 * _field_crop(rng, style, yy.shape), 0, 1)[..., None]
        made += mask * (colour(rng, style) - made)
    if rng.random() < 0.15:  # worn, or dappled by light
        made *= 1 + 0.15 * _field_crop(rng, style, yy.shape)[..., None]
    return made.astype(np.float32)


def _tint(rng: np.random.Generator) -> Array:
    return (np.float32([1, *rng.normal(0, 0.12, 2)]) @ OPPONENT_TO_RGB).astype(np.float32)


def _field_crop(
    rng: np.random.Generator, style: Style, shape: tuple[int, ...], which: int | None = None
) -> Array:
    field = style.fields[rng.integers(len(style.fields)) if which is None else which]
    size = len(field)
    y, x = rng.integers(size, size=2)
    rows = np.arange(y, y + shape[0]) % size
    cols = np.arange(x, x + shape[1]) % size
    return field[rows[:, None], cols[None, :]]


def _grating(rng: np.random.Generator, style: Style, yy: Array, xx: Array) -> Array:
    """Stripes, weave or brickwork of a period that the reduced picture can just or not quite hold."""
    period = np.exp(rng.uniform(np.log(3.2), np.log(30)))
    angle = rng.uniform(0, np.pi)
    u = (xx * np.cos(angle) + yy * np.sin(angle)) * (2 * np.pi / period)
    v = (-xx * np.sin(angle) + yy * np.cos(angle)) * (2 * np.pi / (period * rng.uniform(0.6, 2.5)))
    if rng.random() < 0.5:  # cloth hangs, and walls are seen at a slant
        bend = _field_crop(rng, style, yy.shape, which=-1)
        u = u + rng.uniform(0.5, 5) * bend
        v = v + rng.uniform(0.5, 5) * bend
    sharpness = np.exp(rng.uniform(0, np.log(min(period / 2.5, 6) + 1e-3))) if period > 2.6 else 1.0
    stripes = np.tanh(sharpness * np.sin(u)) / np.tanh(sharpness)
    kind = rng.random()
    if kind < 0.5:
        return np.asarray(stripes, np.float32)
    across = np.tanh(sharpness * np.sin(v)) / np.tanh(sharpness)
    return np.asarray(stripes * across if kind < 0.75 else np.maximum(stripes, across), np.float32)
