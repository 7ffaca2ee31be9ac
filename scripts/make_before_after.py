"""Draw docs/before-after.png: crops of the sample image, enlarged by Lanczos and by dino_ray's defaults.

python scripts/make_before_after.py docs/sample.jpg docs/before-after.png
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from PIL import Image

import dino_ray

CROPS = ((248, 160, 128, 96), (352, 224, 128, 96))
"""Windows of the sample, (x, y, w, h) source_px: the boat; the jetty."""

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
    rows = []
    for x, y, w, h in CROPS:
        box = (x * SCALE, y * SCALE, (x + w) * SCALE, (y + h) * SCALE)
        size = (w * SCALE * SHOWN, h * SCALE * SHOWN)
        rows.append([one.crop(box).resize(size, Image.Resampling.NEAREST) for one in (lanczos, ours)])
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (2 * width + GAP, len(rows) * (height + GAP) - GAP), "white")
    for row, pair in enumerate(rows):
        for column, crop in enumerate(pair):
            sheet.paste(crop, (column * (width + GAP), row * (height + GAP)))
    sheet.save(output, optimize=True)


if __name__ == "__main__":
    main()
