"""Procedural pictures: dead leaves with textured, shaded, blurred shapes, strokes and lettering, as a camera saw them.

The dead leaves model (Lee, Mumford and Huang 2001, doi:10.1023/A:1011109015675) has the occlusions and the
scale invariance of photographs; shapes of power-law size are painted over one another from the back. That networks
trained on such pictures alone serve photographs, the more so the more of texture, depth and camera there is in them,
was shown by Achddou, Gousseau and Ladjal (2021, arXiv:2011.05014). Each picture is a pure function of (seed, index);
no photograph is read anywhere.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.camera import blur, develop
from training.strokes import paint_bundle, paint_lettering
from training.surfaces import Array, Style, draw_style, surface

SMALLEST_RADIUS_PX = 2.5
SIZE_EXPONENT = 2.3
"""Number density of radii falls as r**-this; 3 is scale invariance, less gives large shapes their share."""
FINER = (1.25, 2.2)
"""Most pictures are painted with so many times the pixels a side and reduced, as photographs on screens were."""
FINER_SHARE = 0.6
DEPTH_SHARE = 0.35
"""Of pictures whose background lies out of focus."""


def picture(seed: int, index: int, size: int) -> NDArray[np.uint8]:
    """Paint picture ``index`` of the series ``seed``: uint8 (size, size, 3) RGB."""
    rng = np.random.default_rng((seed, index))
    painted = int(size * rng.uniform(*FINER)) if rng.random() < FINER_SHARE else size
    return develop(rng, _paint(rng, painted), size)


def _paint(rng: np.random.Generator, size: int) -> Array:
    style = draw_style(rng, size)
    canvas = _background(rng, style, size)
    largest = size * rng.uniform(0.15, 0.5)
    # Counted by area in px, so that what is painted finer, and reduced, is denser as well.
    count = int(np.exp(rng.uniform(np.log(0.0005), np.log(0.0035))) * size * size)
    radii = _power_law(rng, count, SMALLEST_RADIUS_PX, largest)
    # Half in order of size, half shuffled: small things lie on large ones more often than behind them.
    order = np.argsort(-radii * np.exp(rng.normal(0, 1.0, count)))
    large = size * rng.uniform(0.06, 0.4, int(rng.integers(4, 30)))
    leaves = [*large, *radii[order]]
    focused = int(rng.uniform(0.02, 0.7) * len(leaves)) if rng.random() < DEPTH_SHARE else 0
    for number, radius in enumerate(leaves):
        if number == focused and focused:
            canvas = blur(canvas, float(np.exp(rng.uniform(np.log(0.7), np.log(6)))))
        _paint_leaf(rng, canvas, style, float(radius))
    for _ in range(rng.poisson(3.0)):
        paint_bundle(rng, canvas, style)
    for _ in range(rng.poisson(1.0)):
        paint_lettering(rng, canvas, style)
    if rng.random() < DEPTH_SHARE / 2:  # things too near to be in focus
        near = replace(style, edge_px=float(rng.uniform(4, 16)), texture=0.2 * style.texture)
        for _ in range(int(rng.integers(1, 5))):
            _paint_leaf(rng, canvas, near, size * float(rng.uniform(0.05, 0.3)))
    return canvas


def _power_law(rng: np.random.Generator, n: int, low: float, high: float) -> NDArray[np.float64]:
    k = 1 - SIZE_EXPONENT
    u = rng.random(n)
    return np.asarray((low**k + u * (high**k - low**k)) ** (1 / k))


def _background(rng: np.random.Generator, style: Style, size: int) -> Array:
    yy, xx = np.mgrid[0:size, 0:size].astype(np.float32)
    return surface(rng, style, yy, xx, size * 0.7)


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
    made = surface(rng, style, yy, xx, radius)
    if rng.random() < 0.15:  # a rim
        rim = np.exp(-((distance / rng.uniform(0.8, 3)) ** 2))[..., None]
        made += rim * np.float32(rng.normal(0, 0.25))
    opacity = 1.0 if rng.random() < 0.93 else rng.uniform(0.3, 0.9)
    alpha = (opacity * np.clip(0.5 - distance / edge, 0, 1))[..., None].astype(np.float32)
    patch += alpha * (made - patch)


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
