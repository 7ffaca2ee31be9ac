"""Thin things in procedural pictures: hair, grass, wires, cracks, and lines of made-up letters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.surfaces import Array, Style, colour


def paint_bundle(rng: np.random.Generator, canvas: Array, style: Style) -> None:
    """Many strokes of one direction, straight or bent all alike: hair, grass, wires, cracks."""
    size = len(canvas)
    centre, spread = rng.uniform(0, size, 2), rng.uniform(0.05, 0.3) * size
    angle, wander = rng.uniform(0, np.pi), rng.uniform(0.02, 0.5)
    length = np.exp(rng.uniform(np.log(10), np.log(size * 0.6)))
    width = np.exp(rng.uniform(np.log(0.6), np.log(3.5)))
    bend = rng.normal(0, 0.5) if rng.random() < 0.6 else 0.0
    tone = colour(rng, style)
    for _ in range(int(np.exp(rng.uniform(np.log(3), np.log(120))))):
        direction = angle + rng.normal(0, wander)
        middle = centre + rng.normal(0, spread, 2)
        shade = tone + np.float32(rng.normal(0, 0.08))
        curl = bend + rng.normal(0, 0.15)
        pieces = 1 if abs(curl) < 0.1 else 4
        step = length * rng.uniform(0.5, 1) / pieces
        place = middle - 0.5 * pieces * step * np.array([np.sin(direction), np.cos(direction)])
        for piece in range(pieces):
            heading = direction + curl * (piece - (pieces - 1) / 2)
            end = place + step * np.array([np.sin(heading), np.cos(heading)])
            paint_stroke(canvas, place, end, width, style.edge_px, shade)
            place = end


def paint_stroke(
    canvas: Array,
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    width: float,
    edge: float,
    tone: Array,
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
    patch += alpha * (tone - patch)


def paint_lettering(rng: np.random.Generator, canvas: Array, style: Style) -> None:
    """Lines of made-up letters: two to four strokes between the nine corners of each letter's box."""
    size = len(canvas)
    height = np.exp(rng.uniform(np.log(6), np.log(48)))
    width, gap = height * rng.uniform(0.08, 0.2), height * rng.uniform(0.75, 1.0)
    origin = rng.uniform(0, size * 0.8, 2)
    tilt = rng.normal(0, 0.3) if rng.random() < 0.5 else 0.0
    down = np.array([np.cos(tilt), -np.sin(tilt)])
    right = np.array([np.sin(tilt), np.cos(tilt)])
    tone = np.clip(colour(rng, style) + np.float32(rng.choice([-0.4, 0.4])), 0, 1)
    alphabet = [rng.integers(0, 3, (int(rng.integers(2, 5)), 2, 2)) / 2 for _ in range(12)]
    for line in range(int(rng.integers(1, 5))):
        for column in range(int(rng.integers(2, 16))):
            corner = origin + line * height * 1.6 * down + column * gap * right
            for a, b in alphabet[rng.integers(len(alphabet))]:
                ends = [corner + height * (p[0] * down + 0.6 * p[1] * right) for p in (a, b)]
                paint_stroke(canvas, ends[0], ends[1], max(width, 0.8), min(style.edge_px, 1.3), tone)
