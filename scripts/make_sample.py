"""Paint the sample photograph: a mountain lake in the evening, made of nothing but noise, light and strokes.

It is rendered at four times its size and then reduced, so that it holds detail at the limit of its pixels,
as a photograph does, and so that an enlargement can be compared with the truth:

    python scripts/make_sample.py docs/sample.jpg --truth truth.png
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image
from sample import scenery, strokes
from sample.noise import Array, mixed

WIDTH, HEIGHT = 480, 320
SCALE = 4
"""Truth px per sample px and side."""
QUALITY = 92


def picture(width: int, height: int) -> Image.Image:
    land = scenery.Land.of(width, height)
    sky = scenery.toned(scenery.sky(width, height))

    def backdrop(eye: float) -> tuple[Array, Array]:
        light, cover = scenery.seen(land, height, eye)
        return mixed(sky, scenery.toned(light), cover), cover

    def standing(image: Array, eye: float) -> Array:
        layer = strokes.Layer(width, height)
        strokes.wood(layer, land, eye)
        strokes.boat(layer, eye)
        strokes.jetty(layer, eye)
        return layer.over(image)

    mirrored, _ = backdrop(-scenery.EYE)
    water = scenery.lake(standing(mirrored, -scenery.EYE))
    view, cover = backdrop(scenery.EYE)
    below = (np.arange(height) > scenery.HORIZON * height)[:, None]
    view = standing(mixed(view, water, below * (1 - cover)), scenery.EYE)
    near = strokes.Layer(width, height)
    strokes.pine(near)
    strokes.reeds(near)
    return Image.fromarray(np.rint(near.over(view)).clip(0, 255).astype(np.uint8))


@click.command(help=__doc__)
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--truth", type=click.Path(path_type=Path), help="Write the unreduced picture here.")
@click.option(
    "--scale", default=SCALE, show_default=True, help="Render at this many times the size; less is a draft."
)
def main(output: Path, truth: Path | None, scale: int) -> None:
    large = picture(WIDTH * scale, HEIGHT * scale)
    large.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(
        output, quality=QUALITY, subsampling=0, optimize=True
    )
    if truth:
        large.save(truth)


if __name__ == "__main__":
    main()
