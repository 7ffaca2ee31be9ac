"""A contact sheet of what the bundled networks are trained on: painted pictures, and what happens to some of them.

    python scripts/make_training_sheet.py

writes docs/training-pictures.jpg: rows of pictures, then a row of what is left of the last of these at half the size.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from training.degrade import FACTOR, reduce_somehow  # noqa: E402
from training.images import picture  # noqa: E402

OUT = ROOT / "docs" / "training-pictures.jpg"
SEED, SIDE, COLUMNS, ROWS = 0, 224, 6, 3
QUALITY = 80


def main() -> None:
    rows = [[picture(SEED, r * COLUMNS + c, SIDE) for c in range(COLUMNS)] for r in range(ROWS)]
    spoilt = []
    for column, each in enumerate(rows[-1]):
        small = reduce_somehow(each, np.random.default_rng((SEED, column)))
        spoilt.append(small.repeat(FACTOR, axis=0).repeat(FACTOR, axis=1))
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in [*rows, spoilt]])
    Image.fromarray(sheet).save(OUT, quality=QUALITY, subsampling=0)


if __name__ == "__main__":
    main()
