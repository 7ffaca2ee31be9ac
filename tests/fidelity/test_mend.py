"""Masks and blending, flat tiles, and records on their way."""

from __future__ import annotations

import json

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_ray.fidelity.flat import FLAT, is_flat
from dino_ray.fidelity.mend import FEATHER, REACH, blend, mask_around
from dino_ray.fidelity.record import ACTIONS, TileFidelity


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 14), st.integers(1, 14))
def test_a_mended_area_is_base_to_the_bit_and_what_is_far_is_untouched_to_the_bit(
    y: int, x: int, h: int, w: int
) -> None:
    area = torch.zeros(64, 64)
    area[y : y + h, x : x + w] = 1
    tile, base = torch.rand(2, 3, 64, 64).unbind()
    mended = blend(tile, base, mask_around(area))
    near = slice(max(0, y - REACH), y + h + REACH), slice(max(0, x - REACH), x + w + REACH)
    assert torch.equal(mended[(..., *near)], base[(..., *near)])
    far = REACH + FEATHER
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[max(0, y - far) : y + h + far, max(0, x - far) : x + w + far] = False
    assert torch.equal(mended[:, outside], tile[:, outside])


def test_a_mask_has_no_edge() -> None:
    area = torch.zeros(96, 96)
    area[40:60, 30:50] = 1
    mask = mask_around(area)
    assert mask.min() == 0
    assert mask.max() == 1
    assert max(float(mask.diff(dim=d).abs().max()) for d in (0, 1)) < 2 / FEATHER


def test_nothing_drifted_changes_nothing_and_all_of_it_is_the_base() -> None:
    tile, base = torch.rand(2, 3, 32, 32).unbind()
    assert torch.equal(blend(tile, base, mask_around(torch.zeros(32, 32))), tile)
    assert torch.equal(blend(tile, base, mask_around(torch.ones(32, 32))), base)


def test_a_tile_is_flat_only_if_there_is_nothing_anywhere() -> None:
    slope = np.broadcast_to(np.linspace(0.3, 0.33, 96, dtype=np.float32)[:, None, None], (96, 96, 3)).copy()
    assert is_flat(slope, noise=0.0)
    spot = slope.copy()
    spot[40:43, 50:53] += 0.1
    assert not is_flat(spot, noise=0.0), "a bird in the sky"


def test_the_sources_own_noise_is_no_reason_to_refine() -> None:
    grain = 0.5 + 0.012 * np.random.default_rng(0).standard_normal((96, 96, 3)).astype(np.float32)
    assert not is_flat(grain, noise=0.0)
    assert is_flat(grain, noise=0.012)


def test_tiles_smaller_than_a_block_can_be_flat() -> None:
    for size in ((1, 1), (3, 20), (9, 7)):
        assert is_flat(np.full((*size, 3), 0.2, np.float32), noise=0.0)
    edge = np.zeros((5, 5, 3), np.float32)
    edge[:, 3:] = 20 * FLAT
    assert not is_flat(edge, noise=0.0)


@given(
    st.sampled_from(ACTIONS),
    st.none() | st.floats(-1, 1),
    st.none() | st.floats(0, 99),
    st.one_of(st.just(()), st.lists(st.integers(0, 255), min_size=64, max_size=64).map(tuple)),
)
def test_a_record_survives_json(
    action: str, cosine: float | None, alarm: float | None, heat: tuple[int, ...]
) -> None:
    record = TileFidelity(7, action, cosine, cosine, cosine, 40.0, 0.5, alarm, 1, heat)  # type: ignore[arg-type]
    assert TileFidelity.from_dict(json.loads(json.dumps(record.to_dict()))) == record
