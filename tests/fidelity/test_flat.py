"""Promises of what is flat: the same of a picture however much it is enlarged, and every corner of a tile counts."""

from __future__ import annotations

import numpy as np
import pytest

from dino_ray.fidelity.flat import BLOCK, block_side, is_flat
from dino_ray.plan.geometry import Rect, Scaling
from dino_ray.upsample.lanczos import Lanczos


@pytest.mark.parametrize("factor", [1, 2, 3.5, 8, 16])
def test_what_shows_something_does_at_every_enlargement(factor: float) -> None:
    x = np.arange(32, dtype=np.float32)
    waves = 0.5 + 8 / 255 * np.sin(x[:, None] / 2) * np.cos(x[None] / 3)
    soft = np.repeat(waves.astype(np.float32)[..., None], 3, -1)  # nowhere steep, everywhere seen
    scaling = Scaling.from_factor(32, 32, factor)
    rect = Rect(0, 0, scaling.canvas_w, scaling.canvas_h)
    window = scaling.source_window(rect, Lanczos().halo(scaling))
    padded = np.pad(soft, [(-window.y, window.y1 - 32), (-window.x, window.x1 - 32), (0, 0)], mode="edge")
    base = Lanczos()(padded, window, rect, scaling)
    assert not is_flat(base, 0.0, block_side(scaling))
    assert is_flat(0.5 + (base - 0.5) / 12, 0.0, block_side(scaling))


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (96, 96), (100, 83)])
@pytest.mark.parametrize("block", [BLOCK, 14, 64])
def test_no_corner_of_a_tile_is_left_out(size: tuple[int, int], block: int) -> None:
    tile = np.full((*size, 3), 0.4, np.float32)
    assert is_flat(tile, 0.0, block)
    if size == (1, 1):
        return
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        spotted = tile.copy()
        spotted[corner] = 1.0
        assert not is_flat(spotted, 0.0, block)
