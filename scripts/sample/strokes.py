"""What stands in the landscape, drawn stroke by stroke: a wood, a boat, a jetty, a pine and reeds.

Every function draws onto a `Layer`; ``eye`` is the height of the camera, negative for what the water mirrors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sample.noise import Array, noise
from sample.scenery import FOCAL, HAZE, SEED, STEPS, Land, projected, toned

Point = tuple[float, float]
Colour = Sequence[float]

OVERSAMPLING = 2


class Layer:
    """A transparent sheet; points are (u, v) in heights of the picture from its left top."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._unit = height * OVERSAMPLING
        self._sheet = Image.new("RGBA", (width * OVERSAMPLING, self._unit))
        self._draw = ImageDraw.Draw(self._sheet)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self._draw.polygon(self._pixels(points), fill=_bytes(colour))

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        self._draw.line(self._pixels(points), fill=_bytes(colour), width=max(1, round(width * self._unit)))

    def text(self, at: Point, words: str, size: float, colour: Colour) -> None:
        font = ImageFont.load_default(size * self._unit)
        self._draw.text(self._pixels([at])[0], words, fill=_bytes(colour), font=font, anchor="mm")

    def over(self, image: Array) -> Array:
        """``image`` (display values) with this layer on it."""
        sheet = np.asarray(self._sheet.resize((self.width, self.height), Image.Resampling.BOX), np.float32)
        alpha = sheet[..., 3:] / 255
        return image * (1 - alpha) + sheet[..., :3] * alpha

    def place(self, x: float, height: float, z: float, eye: float) -> Point:
        """A point of the world on the sheet."""
        return x / (z * FOCAL) + self.width / self.height / 2, projected(height, z, eye)

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        return [(u * self._unit, v * self._unit) for u, v in points]


def _bytes(colour: Colour) -> tuple[int, ...]:
    return tuple(int(np.clip(value, 0, 255)) for value in colour)


def wood(layer: Layer, land: Land, eye: float) -> None:
    """Conifers on the low ground, the far ones first."""
    rng = np.random.default_rng(SEED)
    width = land.x.shape[1]
    profile = land.horizon(eye)
    steps = np.sort(rng.integers(int(0.30 * STEPS), int(0.66 * STEPS), 15000))[::-1]
    columns = (rng.random(len(steps)) * width).astype(int)
    sizes = rng.uniform(0.045, 0.085, len(steps))
    shades = rng.uniform(0.75, 1.25, len(steps))
    haze = toned(HAZE)
    for step, column, size, shade in zip(steps, columns, sizes, shades, strict=True):
        x, z, ground = (float(a[step, column]) for a in (land.x, land.z, land.ground))
        dense = noise(np.float32([1.1 * x]), np.float32([1.1 * z]), SEED + 80)[0] > 0.7 * ground - 0.12
        if not (dense and 0.008 < ground < 0.42) or projected(ground, z, eye) > profile[step, column] + 1e-4:
            continue
        far = min(0.75, 0.05 + 0.075 * (z - 3))
        lit, dark = (np.float32(c) * shade * (1 - far) + haze * far for c in ((104, 104, 44), (22, 36, 28)))
        _conifer(layer, layer.place(x, ground, z, eye), size / (z * FOCAL), lit, dark, rng)


def _conifer(
    layer: Layer, foot: Point, size: float, lit: Array, dark: Array, rng: np.random.Generator
) -> None:
    u, v = foot
    layer.line([(u, v), (u, v - size)], dark * 0.7, 0.04 * size)
    for tier in np.linspace(0.1, 0.9, 7):
        reach = 0.30 * size * (1 - tier) ** 0.8 * rng.uniform(0.7, 1.2)
        top, low = v - size * min(1.0, tier + 0.24), v - size * tier
        layer.polygon([(u, top), (u + reach, low + 0.03 * size), (u, low)], dark)
        layer.polygon([(u, top), (u - reach, low + 0.03 * size), (u + 0.15 * reach, low)], lit)


def boat(layer: Layer, eye: float) -> None:
    x, z = 0.20, 2.35

    def at(dx: float, height: float) -> Point:
        return layer.place(x + dx, height, z, eye)

    main = [(-0.004, 0.045), (-0.105, 0.052), (-0.075, 0.12), (-0.042, 0.20), (-0.004, 0.298)]
    jib = [(0.006, 0.262), (0.03, 0.17), (0.055, 0.10), (0.086, 0.042), (0.012, 0.05)]
    for outline, light in ((main, np.float32([250, 226, 190])), (jib, np.float32([232, 200, 166]))):
        layer.polygon([at(*p) for p in outline], light)
        luff = outline[0] if outline is jib else (-0.004, 0.298)
        fold = [(p[0] * 0.55, p[1]) for p in outline]
        layer.polygon([at(*luff), *(at(*p) for p in fold)], light * 0.93)
    for height in (0.10, 0.15, 0.20, 0.245):
        reach = 0.105 * (1 - (height - 0.045) / 0.262)
        layer.line([at(-reach, height + 0.004), at(-0.004, height)], (176, 150, 128), 0.0009)
    layer.text(at(-0.036, 0.132), "DR", 0.020, (150, 34, 30))
    layer.text(at(-0.040, 0.105), "42", 0.020, (150, 34, 30))
    layer.line([at(0, 0.02), at(0, 0.315)], (74, 52, 40), 0.0024)
    for foot, head in (((0.09, 0.03), (0, 0.27)), ((-0.11, 0.034), (0, 0.312)), ((-0.11, 0.048), (0, 0.045))):
        layer.line([at(*foot), at(*head)], (58, 48, 46), 0.0010)
    hull = [
        (-0.118, 0.034),
        (0.104, 0.038),
        (0.078, 0.004),
        (0.06, -0.004),
        (-0.088, -0.004),
        (-0.108, 0.006),
    ]
    layer.polygon([at(*p) for p in hull], (122, 26, 24))
    layer.polygon(
        [at(*p) for p in ((-0.118, 0.034), (0.104, 0.038), (0.100, 0.031), (-0.116, 0.027))], (240, 226, 206)
    )
    layer.polygon(
        [at(*p) for p in ((0.06, -0.004), (0.078, 0.004), (-0.107, 0.003), (-0.088, -0.004))], (60, 16, 20)
    )
    layer.polygon(
        [at(*p) for p in ((-0.082, 0.03), (-0.076, 0.066), (-0.062, 0.066), (-0.056, 0.03))], (38, 64, 92)
    )
    u, v = at(-0.069, 0.075)
    layer.polygon(
        [(u + 0.0055 * np.cos(a), v + 0.0065 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 17)],
        (214, 160, 124),
    )
    layer.polygon([at(0, 0.315), at(-0.03, 0.309), at(0, 0.303)], (222, 150, 40))


def jetty(layer: Layer, eye: float) -> None:
    """Planks that become a grating finer than a pixel towards the end, on posts."""
    rng = np.random.default_rng(SEED + 1)
    deck, half, depth = 0.036, 0.052, 0.024

    def at(dx: float, height: float, z: float) -> Point:
        return layer.place(0.335 - 0.12 * (z - 0.6) + dx, height, z, eye)

    far_end, near_end = 1.62, 0.55
    posts = np.arange(far_end - 0.01, near_end, -0.19)
    for z in posts:
        _post(layer, [at(dx, 0.074, z) for dx in (half, half + 0.016)], at(half, -0.01, z)[1])
    for z in np.arange(far_end, near_end, -depth):
        wood_colour = (
            np.float32([150, 118, 90]) * rng.uniform(0.72, 1.12) * np.float32([1, rng.uniform(0.95, 1.05), 1])
        )
        close = z - 0.80 * depth
        left, right = -half - rng.uniform(0, 0.006), half + rng.uniform(0, 0.006)
        layer.polygon(
            [at(left, deck, z), at(right, deck, z), at(right, deck, close), at(left, deck, close)],
            wood_colour,
        )
        for _ in range(5):
            grain, start = rng.uniform(close, z), rng.uniform(left, right)
            end = min(right, start + rng.uniform(0.02, 0.07))
            layer.line(
                [at(start, deck, grain), at(end, deck, grain)], wood_colour * rng.uniform(0.6, 0.85), 0.0007
            )
        layer.polygon(
            [
                at(left, deck, close),
                at(right, deck, close),
                at(right, deck - 0.007, close),
                at(left, deck - 0.007, close),
            ],
            wood_colour * 0.38,
        )
        for dx in (-0.8 * half, 0.8 * half):
            layer.line(
                [at(dx, deck, close + 0.3 * depth), at(dx + 0.002, deck, close + 0.3 * depth)],
                (40, 30, 26),
                0.0012,
            )
    for z in posts:
        _post(layer, [at(-dx, 0.074, z) for dx in (half + 0.016, half)], at(-half, -0.01, z)[1])


def _post(layer: Layer, top: Sequence[Point], foot: float) -> None:
    (left, v), (right, _) = top
    for t in np.linspace(0, 1, 12, endpoint=False):
        light = 0.35 + 0.75 * np.sin(np.pi * (0.92 - 0.85 * t)) ** 2
        a, b = left + t * (right - left), left + (t + 1 / 12) * (right - left)
        layer.polygon([(a, v), (b, v), (b, foot), (a, foot)], np.float32([150, 112, 82]) * light)
    middle, radius = (left + right) / 2, (right - left) / 2
    rim = [(middle + radius * np.cos(a), v + 0.3 * radius * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 25)]
    layer.polygon(rim, (206, 168, 128))


def pine(layer: Layer) -> None:
    """A near tree whose needles are about as fine as the picture resolves."""
    rng = np.random.default_rng(SEED + 2)
    foot, top, u = 1.06, 0.045, 0.17
    height = foot - top
    bark = np.float32([58, 40, 32])
    for t in np.linspace(-1, 1, 9):
        spread = 0.012 * (t + 0.12 * np.array([-1, 1]))
        layer.polygon([(u + spread[0], foot), (u + spread[1], foot), (u, top)], bark * (1.1 - 0.7 * t))
    for level in np.sort(rng.random(430)):
        v = foot - height * (0.10 + 0.90 * level)
        side = rng.choice((-1.0, 1.0))
        reach = (0.010 + 0.29 * (1 - level) ** 0.85) * rng.uniform(0.55, 1.05) * side
        droop = abs(reach) * rng.uniform(0.12, 0.42)
        t = np.linspace(0, 1, 9)
        us, vs = u + reach * t, v + droop * t**1.6 - 0.06 * abs(reach) * np.sin(np.pi * t)
        layer.line(list(zip(us, vs, strict=True)), bark * 0.8, 0.0018)
        for _ in range(int(500 * abs(reach)) + 14):
            s = rng.uniform(-0.12, 1.03)
            a, b = np.interp(s, t, us), np.interp(s, t, vs)
            turn = rng.normal(0, 0.9) + (0.35 if side > 0 else np.pi - 0.35)
            length = rng.uniform(0.008, 0.021)
            glow = np.clip(0.35 - 0.5 * side * s + rng.normal(0, 0.22) - 0.3 * np.sin(turn), 0, 1)
            colour = np.float32([16, 27, 21]) * (1 - glow) + np.float32([122, 112, 46]) * glow
            tip = (a + length * np.cos(turn), b + 0.7 * length * np.sin(turn) + 0.003)
            layer.line([(a, b), tip], colour, 0.0011)


def reeds(layer: Layer) -> None:
    rng = np.random.default_rng(SEED + 3)
    for _ in range(620):
        u = rng.beta(1.0, 2.6) * 0.62
        height = rng.uniform(0.05, 0.20) * (1.0 - 1.2 * u)
        lean = rng.normal(0.25, 0.30) * height
        t = np.linspace(0, 1, 8)
        blade = list(zip(u + lean * t**2, 1.02 - height * t, strict=True))
        colour = np.float32([38, 46, 22]) + np.float32([120, 92, 30]) * rng.random() ** 1.6
        layer.line(blade, colour, 0.0016)
