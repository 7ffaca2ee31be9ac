"""The lit land, the sky and the lake.

World: x to the right, z into the picture, height above the water; the unit is about a kilometre. Picture: the
fraction of its height, from the top. Light is linear until `toned`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sample.noise import Array, fractal, mixed, noise, ridges, smooth

SEED = 11

EYE = 0.16
"""Height of the camera."""
FOCAL = 0.62
"""Height of the picture at distance 1."""
HORIZON = 0.62
NEAR, FAR, STEPS = 1.6, 26.0, 2600

SUN = np.array([-0.83, 0.42, -0.36], np.float32)
"""Towards the sun: low, from the left, a little behind the camera."""
SUNLIGHT = np.array([2.3, 1.45, 0.80], np.float32)
SKYLIGHT = np.array([0.17, 0.24, 0.40], np.float32)
HAZE = np.array([0.52, 0.50, 0.58], np.float32)
ZENITH = np.array([0.06, 0.16, 0.42], np.float32)
DUSK = np.array([1.05, 0.66, 0.40], np.float32)
DEEP = np.array([0.010, 0.045, 0.060], np.float32)
EXPOSURE = 0.62


def rgb(*values: float) -> Array:
    return np.array(values, np.float32)


def toned(light: Array) -> Array:
    """Light to display values, 0 to 255, by the filmic curve of Narkowicz (2015)."""
    light = EXPOSURE * light
    return 255 * np.clip(light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14), 0, 1) ** (
        1 / 2.2
    )


def terrain(x: Array, z: Array) -> Array:
    """Height of the ground, negative below the water."""
    bend = 0.25 * noise(0.35 * x, 0.35 * z, SEED + 90)
    massif = ridges(0.17 * x + bend + 0.35, 0.17 * z + bend + 0.2, SEED, 10)
    rise = smooth(4.5, 13.0, z + 0.7 * np.abs(x - 0.4))
    hills = 0.5 + fractal(0.55 * x, 0.55 * z, SEED + 50, 9)
    shore = smooth(3.2, 6.0, z + 0.9 * noise(0.7 * x, 0.2 * z, SEED + 70) + 0.45 * np.abs(x + 0.1))
    return (1.6 * rise * massif + 0.42 * shore * hills + 0.12 * (shore - 0.35)).astype(np.float32)


@dataclass(frozen=True)
class Land:
    """The ground along the ray of each column of the picture: all arrays (STEPS, width)."""

    x: Array
    z: Array
    ground: Array
    colour: Array
    """(STEPS, width, 3) light."""

    @classmethod
    def of(cls, width: int, height: int) -> Land:
        z = np.geomspace(NEAR, FAR, STEPS, dtype=np.float32)[:, None]
        across = ((np.arange(width, dtype=np.float32) + 0.5) / width - 0.5) * (width / height) * FOCAL
        x = z * across
        z = np.broadcast_to(z, x.shape)
        ground = terrain(x, z)
        return cls(x, z, ground, _lit(x, z, ground))

    def horizon(self, eye: float) -> Array:
        """Where the ground up to each step, seen from height ``eye``, stops hiding what is behind it."""
        rows = projected(self.ground.clip(0), self.z, eye)
        if eye < 0:
            rows = np.where(self.ground > 0, rows, 2)  # seen from below, water hides nothing
        return np.minimum.accumulate(rows, axis=0)


def projected(height: Array, z: Array, eye: float) -> Array:
    return HORIZON - (height - eye) / (z * FOCAL)


def seen(land: Land, height: int, eye: float) -> tuple[Array, Array]:
    """Light of the land (height, width, 3) and which part of each pixel it covers; neither sky nor water.

    Along a ray, land hides whatever behind it projects lower: the "voxel space" of flight simulators. A
    negative ``eye`` sees what the water mirrors.
    """
    width = land.x.shape[1]
    profiles = land.horizon(eye) * height
    dry = (land.ground > 0).astype(np.float32)
    rows = np.arange(height, dtype=np.float32) + 0.5
    image, cover = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    for column in range(width):
        profile = profiles[:, column]
        step = np.searchsorted(-profile, -rows)
        hit = (step > 0) & (step < STEPS)
        behind = step[hit]
        before = behind - 1
        t = (profile[before] - rows[hit]) / np.maximum(profile[before] - profile[behind], 1e-6)
        image[hit, column] = mixed(land.colour[before, column], land.colour[behind, column], t)
        cover[hit, column] = dry[behind, column]
        crest = int(profile[-1])
        if 0 <= crest < height - 1:
            cover[crest, column] = crest + 1 - profile[-1]
            image[crest, column] = image[crest + 1, column]
    return image, cover


def _lit(x: Array, z: Array, ground: Array) -> Array:
    dx = np.gradient(ground, axis=1) / np.gradient(x, axis=1)
    dz = (np.gradient(ground, axis=0) - dx * np.gradient(x, axis=0)) / np.gradient(z, axis=0)
    level = 1 / np.sqrt(1 + dx**2 + dz**2)
    facing = ((SUN[1] - SUN[0] * dx - SUN[2] * dz) * level).clip(0)

    # The sun stands sideways, so that what shades a point lies in its own row: shadows are running maxima.
    slant = ground - x * (SUN[1] / SUN[0])
    sunlit = np.exp(-(np.maximum.accumulate(slant, axis=1) - slant) / (0.012 * z))

    grain = fractal(9 * x, 9 * z, SEED + 20, 7)
    strata = np.sin(34 * ground + 5 * grain + 3 * noise(2 * x, 2 * z, SEED + 30))
    rock = mixed(rgb(0.19, 0.16, 0.15), rgb(0.36, 0.31, 0.27), 0.5 + 0.25 * strata + 0.5 * grain)
    meadow = mixed(rgb(0.045, 0.085, 0.022), rgb(0.19, 0.17, 0.045), 0.5 + grain)
    snow = rgb(0.86, 0.88, 0.93) + 0.05 * grain[..., None]
    green = smooth(0.58, 0.86, level + 0.25 * grain) * smooth(1.0, 0.45, ground + 0.5 * grain)
    white = smooth(0.30, 0.52, level + 0.25 * grain) * smooth(0.85, 1.35, ground + 0.7 * grain)
    albedo = mixed(mixed(rock, meadow, green), snow, white)
    beach = smooth(0.012, 0.0, ground)
    albedo = mixed(albedo, rgb(0.33, 0.27, 0.20), beach)

    light = (facing * sunlit)[..., None] * SUNLIGHT + (0.4 + 0.6 * level)[..., None] * SKYLIGHT
    mist = 0.30 * np.exp(-ground.clip(0) / 0.2) * smooth(4.0, 9.0, z)
    return mixed(albedo * light, HAZE, np.maximum(0.7 * (1 - np.exp(-z / 42)), mist).astype(np.float32))


def sky(width: int, height: int) -> Array:
    v, u = np.mgrid[0:height, 0:width].astype(np.float32) / height
    up = (HORIZON - v).clip(0) / HORIZON
    image = mixed(DUSK * 1.1, ZENITH * 1.25, smooth(0.0, 1.0, up) ** 0.6)
    image = mixed(image, DUSK * 1.5, 0.6 * np.exp(-np.square((u - 0.1) / 0.5) - np.square(up / 0.35)))
    plane = 1 / (up + 0.16)  # clouds lie on a ceiling, so they narrow towards the horizon
    billow = fractal(1.1 * (u - 0.75) * plane + 7.4, 1.9 * plane + 0.35, SEED + 40, 9)
    lining = (
        rgb(1.25, 0.86, 0.62) * (0.8 + 0.6 * (smooth(0, 0.3, billow) - smooth(0.15, 0.6, billow)))[..., None]
    )
    cloud = mixed(lining, rgb(0.46, 0.38, 0.46), smooth(0.3, 0.8, billow))
    return mixed(image, cloud, 0.85 * smooth(-0.02, 0.5, billow) * smooth(0.05, 0.3, up))


def lake(mirrored: Array) -> Array:
    """The picture with water in it: ``mirrored`` is what an eye below would see; both in display values.

    Rows above the horizon are left as they are.
    """
    height, width, _ = mirrored.shape
    top = int(HORIZON * height) + 1
    v, u = np.mgrid[top:height, 0:width].astype(np.float32)
    z = EYE / (((v + 0.5) / height - HORIZON) * FOCAL)
    x = z * ((u + 0.5) / width - 0.5) * (width / height) * FOCAL
    breeze = 0.25 + 0.9 * smooth(-0.1, 0.5, noise(1.3 * x, 2.2 * z, SEED + 61))
    tilt = breeze * (fractal(26 * x, 60 * z, SEED + 60, 4) + 0.5 * fractal(9 * x, 19 * z, SEED + 66, 3))
    sway = breeze * fractal(22 * x, 40 * z, SEED + 63, 3)
    bounced_v = 2 * HORIZON * height - v - tilt * height * 0.016 - np.abs(tilt) * height * 0.008
    bounced_u = u + sway * height * 0.004
    rows = np.clip(np.rint(bounced_v), 0, height - 1).astype(int)
    columns = np.clip(np.rint(bounced_u), 0, width - 1).astype(int)
    grazing = EYE / np.sqrt(EYE**2 + z**2 + x**2)
    mirror = 0.30 + 0.62 * (1 - np.clip(grazing * 4.2 + 0.55 * tilt, 0, 1)) ** 2
    out = mirrored.copy()
    out[top:] = mixed(np.broadcast_to(toned(DEEP), (*u.shape, 3)), mirrored[rows, columns], mirror)
    return out
