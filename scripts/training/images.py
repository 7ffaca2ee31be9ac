"""Procedural pictures: dead leaves with textured, shaded, blurred shapes, strokes and lettering.

The dead leaves model (Lee, Mumford and Huang 2001, doi:10.1023/A:1011109015675) has the occlusions and the
scale invariance of photographs; shapes of power-law size are painted over one another from the back. Each
picture is a pure function of (seed, index); no photograph is read anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Rows map (luma, amber-blue, magenta-green) to RGB. As in photographs (Ruderman, Cronin and Chiao 1998,
# doi:10.1364/JOSAA.15.002036) luma varies most and magenta-green least.
OPPONENT_TO_RGB = np.array([[1, 1, 1], [0.8, 0.1, -0.9], [0.5, -0.6, 0.3]], np.float32)

SMALLEST_RADIUS_PX = 2.5
SIZE_EXPONENT = 2.3
"""Number density of radii falls as r**-this; 3 is scale invariance, less gives large shapes their share."""


@dataclass(frozen=True)
class Style:
    """What the shapes of one picture have in common."""

    palette: Array
    """(k, 3) RGB anchors in [0, 1]."""
    fields: Array
    """(n, size, size) wrapping textures of unit deviation."""
    edge_px: float
    """Usual width of an edge's ramp: the picture's focus."""
    texture: float
    """Usual amplitude of texture in [0, 1] of full range."""


def picture(seed: int, index: int, size: int) -> NDArray[np.uint8]:
    """Paint picture ``index`` of the series ``seed``: uint8 (size, size, 3) RGB."""
    rng = np.random.default_rng((seed, index))
    style = _style(rng, size)
    canvas = _background(rng, style, size)
    largest = size * rng.uniform(0.15, 0.5)
    count = int(np.exp(rng.uniform(np.log(0.0005), np.log(0.0035))) * size * size)
    radii = _power_law(rng, count, SMALLEST_RADIUS_PX, largest)
    # Half in order of size, half shuffled: small things lie on large ones more often than behind them.
    order = np.argsort(-radii * np.exp(rng.normal(0, 1.0, count)))
    large = size * rng.uniform(0.06, 0.4, int(rng.integers(4, 30)))
    for radius in [*large, *radii[order]]:
        _paint_leaf(rng, canvas, style, float(radius))
    for _ in range(rng.poisson(2.0)):
        _paint_bundle(rng, canvas, style)
    for _ in range(rng.poisson(1.0)):
        _paint_lettering(rng, canvas, style)
    return _develop(rng, canvas)


def _style(rng: np.random.Generator, size: int) -> Style:
    n_colours = int(rng.integers(3, 9))
    luma = rng.normal(rng.uniform(0.3, 0.6), 0.22, n_colours)
    chroma = rng.normal(0, [1.0, 0.5], (n_colours, 2)) * np.exp(rng.normal(np.log(0.08), 0.6))
    mix = np.column_stack([luma, chroma]).astype(np.float32)
    palette = np.clip(mix @ OPPONENT_TO_RGB, 0.01, 0.99)
    fields = np.stack([_fractal(rng, size) for _ in range(6)])
    focus = rng.uniform(0.7, 1.3) if rng.random() < 0.75 else np.exp(rng.uniform(np.log(1.3), np.log(5)))
    return Style(palette, fields, float(focus), float(min(np.exp(rng.normal(np.log(0.05), 0.6)), 0.15)))


def _fractal(rng: np.random.Generator, size: int) -> Array:
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
    phase = rng.normal(size=amplitude.shape) + 1j * rng.normal(size=amplitude.shape)
    field = np.fft.irfft2(amplitude * phase, s=(size, size))
    field /= field.std()
    if rng.random() < 0.3:  # blotches and cracks rather than haze
        field = np.tanh(2 * field) if rng.random() < 0.5 else 1.2 - 1.9 * np.abs(np.tanh(field))
    return np.asarray(field, np.float32)


def _power_law(rng: np.random.Generator, n: int, low: float, high: float) -> NDArray[np.float64]:
    k = 1 - SIZE_EXPONENT
    u = rng.random(n)
    return np.asarray((low**k + u * (high**k - low**k)) ** (1 / k))


def _background(rng: np.random.Generator, style: Style, size: int) -> Array:
    yy, xx = np.mgrid[0:size, 0:size].astype(np.float32)
    return _surface(rng, style, yy, xx, size * 0.7)


def _colour(rng: np.random.Generator, style: Style) -> Array:
    anchor = style.palette[rng.integers(len(style.palette))]
    jitter = rng.normal(0, [0.08, 0.02, 0.02]).astype(np.float32) @ OPPONENT_TO_RGB
    return np.asarray(anchor + jitter, np.float32)


def _surface(rng: np.random.Generator, style: Style, yy: Array, xx: Array, radius: float) -> Array:
    """Colour (h, w, 3) of a shaded, textured surface at pixel offsets (yy, xx) from its centre."""
    slope = rng.normal(0, 0.15, 2) / max(radius, 8)
    light = 1 + slope[0] * yy + slope[1] * xx
    if rng.random() < 0.3:  # roundness
        light = light * (1.15 - 0.4 * np.minimum((yy * yy + xx * xx) / radius**2, 1.5))
    surface = _colour(rng, style) * light[..., None].astype(np.float32)
    kind = rng.random()
    amplitude = min(style.texture * np.exp(rng.normal(0, 0.6)), 0.2)
    if kind < 0.55:
        surface += (amplitude * _field_crop(rng, style, yy.shape))[..., None] * _tint(rng)
    elif kind < 0.72:
        surface += (1.5 * amplitude * _grating(rng, yy, xx))[..., None] * _tint(rng)
    elif kind < 0.78:  # two materials in patches
        mask = np.clip(0.5 + 2 * _field_crop(rng, style, yy.shape), 0, 1)[..., None]
        surface += mask * (_colour(rng, style) - surface)
    return surface.astype(np.float32)


def _tint(rng: np.random.Generator) -> Array:
    return (np.float32([1, *rng.normal(0, 0.12, 2)]) @ OPPONENT_TO_RGB).astype(np.float32)


def _field_crop(rng: np.random.Generator, style: Style, shape: tuple[int, ...]) -> Array:
    field = style.fields[rng.integers(len(style.fields))]
    size = len(field)
    y, x = rng.integers(size, size=2)
    rows = np.arange(y, y + shape[0]) % size
    cols = np.arange(x, x + shape[1]) % size
    return field[rows[:, None], cols[None, :]]


def _grating(rng: np.random.Generator, yy: Array, xx: Array) -> Array:
    """Stripes, weave or brickwork of a period that the reduced picture can just or not quite hold."""
    period = np.exp(rng.uniform(np.log(3.2), np.log(30)))
    angle = rng.uniform(0, np.pi)
    u = (xx * np.cos(angle) + yy * np.sin(angle)) * (2 * np.pi / period)
    v = (-xx * np.sin(angle) + yy * np.cos(angle)) * (2 * np.pi / (period * rng.uniform(0.6, 2.5)))
    sharpness = np.exp(rng.uniform(0, np.log(min(period / 2.5, 6) + 1e-3))) if period > 2.6 else 1.0
    stripes = np.tanh(sharpness * np.sin(u)) / np.tanh(sharpness)
    kind = rng.random()
    if kind < 0.5:
        return np.asarray(stripes, np.float32)
    across = np.tanh(sharpness * np.sin(v)) / np.tanh(sharpness)
    return np.asarray(stripes * across if kind < 0.75 else np.maximum(stripes, across), np.float32)


def _paint_leaf(rng: np.random.Generator, canvas: Array, style: Style, radius: float) -> None:
    size = len(canvas)
    cy, cx = rng.uniform(-radius / 2, size + radius / 2, 2)
    edge = style.edge_px * np.exp(rng.normal(0, 0.25))
    reach = radius * 1.5 + 2 * edge + 1
    window = _window(cy, cx, reach, size)
    if window is None:
        return
    rows, cols = window
    yy = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(cy)
    xx = np.arange(cols.start, cols.stop, dtype=np.float32)[None, :] - np.float32(cx)
    yy, xx = np.broadcast_arrays(yy, xx)
    distance = _outline(rng, yy, xx, radius)
    patch = canvas[rows, cols]
    if rng.random() < 0.25:  # the shadow that it throws on what lies behind
        depth = rng.uniform(2, 0.3 * radius + 3)
        patch *= 1 - rng.uniform(0.2, 0.6) * np.clip(0.6 - distance / depth, 0, 1)[..., None]
    surface = _surface(rng, style, yy, xx, radius)
    if rng.random() < 0.15:  # a rim
        rim = np.exp(-((distance / rng.uniform(0.8, 3)) ** 2))[..., None]
        surface += rim * (rng.normal(0, 0.25) + 0 * surface)
    opacity = 1.0 if rng.random() < 0.93 else rng.uniform(0.3, 0.9)
    alpha = (opacity * np.clip(0.5 - distance / edge, 0, 1))[..., None].astype(np.float32)
    patch += alpha * (surface - patch)


def _window(cy: float, cx: float, reach: float, size: int) -> tuple[slice, slice] | None:
    y0, y1 = max(int(cy - reach), 0), min(int(cy + reach) + 1, size)
    x0, x1 = max(int(cx - reach), 0), min(int(cx + reach) + 1, size)
    return (slice(y0, y1), slice(x0, x1)) if y0 < y1 and x0 < x1 else None


def _outline(rng: np.random.Generator, yy: Array, xx: Array, radius: float) -> Array:
    """Signed distance in px, negative inside, of a random ellipse, polygon, bar or lobed blob."""
    angle, aspect = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(0.25), 0))
    u = xx * np.cos(angle) + yy * np.sin(angle)
    v = -xx * np.sin(angle) + yy * np.cos(angle)
    kind = rng.random()
    if kind < 0.4:  # ellipse; the gradient's length turns the level into a distance near the edge
        ratio = np.sqrt((u / radius) ** 2 + (v / (radius * aspect)) ** 2) + 1e-6
        slope = np.sqrt((u / radius**2) ** 2 + (v / (radius * aspect) ** 2) ** 2) / ratio + 1e-6
        return np.asarray((ratio - 1) / slope, np.float32)
    if kind < 0.6:  # bar
        return np.asarray(np.maximum(np.abs(u) - radius, np.abs(v) - radius * aspect), np.float32)
    if kind < 0.8:  # convex polygon: the farthest of its half-planes
        sides = int(rng.integers(3, 8))
        theta = 2 * np.pi * (np.arange(sides) + rng.uniform(0.2, 0.8, sides)) / sides
        distance = np.full(yy.shape, -np.inf, np.float32)
        for t, r in zip(theta, rng.uniform(0.5, 0.9, sides) * radius, strict=True):
            np.maximum(distance, u * np.cos(t) + v * np.sin(t) - r, out=distance, casting="same_kind")
        return np.maximum(distance, np.hypot(u, v) - 1.4 * radius)
    theta, rho = np.arctan2(v, u), np.hypot(u, v)
    edge = np.full(yy.shape, 0.85, np.float32)
    for k in range(2, 6):
        edge = edge + rng.normal(0, 0.25) / k * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
    return np.asarray(rho - radius * np.maximum(edge, 0.1), np.float32)


def _paint_bundle(rng: np.random.Generator, canvas: Array, style: Style) -> None:
    """Many strokes of one direction: hair, grass, wires, cracks."""
    size = len(canvas)
    centre, spread = rng.uniform(0, size, 2), rng.uniform(0.05, 0.3) * size
    angle, wander = rng.uniform(0, np.pi), rng.uniform(0.02, 0.5)
    length = np.exp(rng.uniform(np.log(10), np.log(size * 0.6)))
    width = np.exp(rng.uniform(np.log(0.7), np.log(3.5)))
    colour = _colour(rng, style)
    for _ in range(int(rng.integers(3, 60))):
        direction = angle + rng.normal(0, wander)
        step = 0.5 * length * rng.uniform(0.5, 1) * np.array([np.sin(direction), np.cos(direction)])
        middle = centre + rng.normal(0, spread, 2)
        tone = colour + np.float32(rng.normal(0, 0.08))
        _paint_stroke(rng, canvas, middle - step, middle + step, width, style.edge_px, tone)


def _paint_stroke(
    rng: np.random.Generator,
    canvas: Array,
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    width: float,
    edge: float,
    colour: Array,
) -> None:
    centre, half = (start + end) / 2, (end - start) / 2
    size = len(canvas)
    pad = width + edge + 1
    y0, y1 = max(int(centre[0] - abs(half[0]) - pad), 0), min(int(centre[0] + abs(half[0]) + pad) + 1, size)
    x0, x1 = max(int(centre[1] - abs(half[1]) - pad), 0), min(int(centre[1] + abs(half[1]) + pad) + 1, size)
    if y0 >= y1 or x0 >= x1:
        return
    yy = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(centre[0])
    xx = np.arange(x0, x1, dtype=np.float32)[None, :] - np.float32(centre[1])
    along = np.clip((yy * half[0] + xx * half[1]) / (half @ half + 1e-6), -1, 1)
    distance = np.hypot(yy - along * half[0], xx - along * half[1]) - width / 2
    patch = canvas[y0:y1, x0:x1]
    alpha = np.clip(0.5 - distance / edge, 0, 1)[..., None].astype(np.float32)
    patch += alpha * (colour - patch)


def _paint_lettering(rng: np.random.Generator, canvas: Array, style: Style) -> None:
    """Lines of made-up letters: two to four strokes between the nine corners of each letter's box."""
    size = len(canvas)
    height = np.exp(rng.uniform(np.log(6), np.log(48)))
    width, gap = height * rng.uniform(0.08, 0.2), height * rng.uniform(0.75, 1.0)
    origin = rng.uniform(0, size * 0.8, 2)
    tilt = rng.normal(0, 0.3) if rng.random() < 0.5 else 0.0
    down = np.array([np.cos(tilt), -np.sin(tilt)])
    right = np.array([np.sin(tilt), np.cos(tilt)])
    colour = np.clip(_colour(rng, style) + np.float32(rng.choice([-0.4, 0.4])), 0, 1)
    alphabet = [rng.integers(0, 3, (int(rng.integers(2, 5)), 2, 2)) / 2 for _ in range(12)]
    for line in range(int(rng.integers(1, 5))):
        for column in range(int(rng.integers(2, 16))):
            corner = origin + line * height * 1.6 * down + column * gap * right
            for a, b in alphabet[rng.integers(len(alphabet))]:
                ends = [corner + height * (p[0] * down + 0.6 * p[1] * right) for p in (a, b)]
                _paint_stroke(rng, canvas, ends[0], ends[1], max(width, 0.8), min(style.edge_px, 1.3), colour)


def _develop(rng: np.random.Generator, canvas: Array) -> NDArray[np.uint8]:
    """Exposure, a lens's last trace of blur, and 8 bits."""
    exposed = np.clip(canvas, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.15)))
    side = np.float32(rng.uniform(0, 0.16))
    for axis in (0, 1):
        exposed = (1 - 2 * side) * exposed + side * (np.roll(exposed, 1, axis) + np.roll(exposed, -1, axis))
    if rng.random() < 0.25:
        exposed = exposed + rng.normal(0, rng.uniform(0, 0.012), exposed.shape).astype(np.float32)
    return np.asarray(np.rint(np.clip(exposed, 0, 1) * 255), np.uint8)
