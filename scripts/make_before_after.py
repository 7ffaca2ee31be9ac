"""Draw docs/before-after.png: a crop of the sample image, enlarged by Lanczos and by dino_ray's defaults.

python scripts/make_before_after.py docs/sample.jpg docs/before-after.png
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image

import dino_ray

CROP = (248, 160, 128, 96)
"""Window of the sample, (x, y, w, h) source_px: the boat."""

SCALE = 2
SHOWN = 2
"""Screen pixels per pixel of the result, so that they can be seen."""
GAP = 6


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
def main(source: Path, output: Path) -> None:
    """Write OUTPUT."""
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    lanczos = image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.LANCZOS)
    ours = Image.fromarray(np.asarray(dino_ray.upscale(np.asarray(image), scale=SCALE).image))
    x, y, w, h = (SCALE * side for side in CROP)
    size = (w * SHOWN, h * SHOWN)
    sheet = Image.new("RGB", (2 * size[0] + GAP, size[1]), "white")
    for column, enlarged in enumerate((lanczos, ours)):
        crop = enlarged.crop((x, y, x + w, y + h)).resize(size, Image.Resampling.NEAREST)
        sheet.paste(crop, (column * (size[0] + GAP), 0))
    sheet.save(output, optimize=True)


if __name__ == "__main__":
    main()
