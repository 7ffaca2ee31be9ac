"""Lattices, guidance and drift: what DINO sees of a tile, and what is done about it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dino_ray.dino import loading
from dino_ray.dino.drift import VISIBLE, Reference
from dino_ray.dino.guidance import Guidance
from dino_ray.dino.lattice import Lattice, _mirrored, cosines, guiding_phases, judging_phases, over

DEAD_BAND = 0.005


@cache
def dino() -> loading.Dino:
    return loading.load("bundled")


class Coordinates:
    """Features are where a patch lies and what its mean colour is: enough to see what a lattice looks at."""

    name, patch, dim = "coordinates", 14, 5
    largest = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        self.largest = max(self.largest, *pixels.shape[-2:])
        mean = torch.nn.functional.avg_pool2d(pixels, self.patch).permute(0, 2, 3, 1)
        tokens = torch.cat([mean, torch.ones(*mean.shape[:3], 2)], -1)
        return tokens * tokens.square().mean(-1, keepdim=True).rsqrt()


def tile(seed: int = 0, side: int = 84) -> Tensor:
    """(1, 3, side, side): blurred noise, so that neighbouring patches differ and pixels do not."""
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, side // 6, side // 6, generator=rng)
    return torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(0, 1)


def planted(pixels: Tensor, other: Tensor, box: tuple[slice, slice]) -> Tensor:
    out = pixels.clone()
    out[..., box[0], box[1]] = other[..., box[0], box[1]]
    return out


def identity(x: Tensor) -> Tensor:
    return x


# ---- lattices


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([*guiding_phases(14), *judging_phases(14)]))
def test_a_lattice_covers_every_pixel_of_a_tile_of_any_size(h: int, w: int, phase: tuple[int, int]) -> None:
    lattice = Lattice(14, h, w, phase)
    places = torch.arange(lattice.rows * lattice.cols, dtype=torch.float32).view(
        1, lattice.rows, lattice.cols
    )
    assert lattice.tiled(places).shape == lattice.spread(places).shape == (1, h, w)
    assert lattice.tokens(Coordinates(), torch.rand(1, 3, h, w)).shape == (1, lattice.rows, lattice.cols, 5)
    assert (lattice.rows - 1) * 14 < h + phase[0] <= lattice.rows * 14
    assert lattice.mean(torch.ones(1, 1, h, w)).eq(1).all()


def test_lattices_that_judge_are_none_that_guide() -> None:
    for patch in (8, 14, 16):
        assert not set(judging_phases(patch)) & set(guiding_phases(patch))
        assert all(
            0 <= y < patch and 0 <= x < patch for y, x in judging_phases(patch) + guiding_phases(patch)
        )


def test_a_large_tile_is_seen_through_windows_that_dino_knows_and_nothing_is_left_out() -> None:
    seen, large = Coordinates(), torch.rand(1, 3, 600, 1100)
    (lattice,) = over(large, 14, ((3, 10),))
    tokens = lattice.tokens(seen, large)
    assert seen.largest <= 518
    # Its features know nothing of their surroundings, so windows must make no difference.
    expected = Coordinates()(lattice._complete(large))
    torch.testing.assert_close(tokens, expected)


def test_gradients_reach_the_pixels_through_windows() -> None:
    pixels = torch.rand(1, 3, 60, 600, requires_grad=True)
    (lattice,) = over(pixels, 14, ((0, 0),))
    lattice.tokens(Coordinates(), pixels)[..., 0].sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad != 0).float().mean() > 0.9


# ---- guidance


def guidance(base: Tensor, strength: float = 1.0, dead_band: float = DEAD_BAND) -> Guidance:
    return Guidance.towards(dino(), identity, base, strength, dead_band)


def test_a_faithful_tile_comes_back_to_the_bit() -> None:
    base = tile()
    assert guidance(base)(base) is base
    nearly = (base + 1e-4 * torch.randn(base.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert guidance(base)(nearly) is nearly


def noisy(base: Tensor, amount: float = 0.08) -> Tensor:
    return base + amount * torch.randn(base.shape, generator=torch.Generator().manual_seed(5))


def test_more_strength_brings_features_nearer_on_crops_that_guidance_does_not_see() -> None:
    base = tile(2)
    reference = Reference.of(dino(), base[0])
    seen = []
    for strength in (0.0, 0.25, 0.5, 1.0):
        steered = guidance(base, strength)(noisy(base)) if strength else noisy(base)
        seen.append(float(reference.drift(steered[0], 1.0).cosines.mean()))
    assert seen == sorted(seen)
    assert seen[-1] > seen[0] + 0.3 * (1 - seen[0])


def test_pixels_come_nearer_too() -> None:
    base = tile(2)
    before, after = (
        (p.clamp(0, 1) - base).square().mean() for p in (noisy(base), guidance(base)(noisy(base)))
    )
    assert after < before


def test_a_tile_is_steered_alike_whatever_is_in_its_batch() -> None:
    bases = torch.cat([tile(2), tile(3), tile(4)])
    drafts = torch.cat([noisy(tile(2)), tile(3), noisy(tile(4), 0.02)])
    together = guidance(bases)(drafts)
    assert torch.equal(together[1:2], tile(3)), "a faithful tile is left alone beside others"
    for i in (0, 2):
        alone = guidance(bases[i : i + 1])(drafts[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=0)


def test_guidance_works_under_inference_mode_again_and_again() -> None:
    with torch.inference_mode():
        base = tile(2)
        steer = guidance(base)
        first, second = steer(noisy(base)), steer(noisy(base))
    assert torch.equal(first, second)
    assert not first.equal(noisy(base))


def test_guidance_looks_through_the_sketch_and_moves_latents() -> None:
    base = tile(2)
    steer = Guidance.towards(dino(), lambda z: z / 2 + 0.5, base * 2 - 1, 1.0, DEAD_BAND)
    steered = steer(noisy(base) * 2 - 1)
    torch.testing.assert_close(steered / 2 + 0.5, guidance(base)(noisy(base)), atol=2e-3, rtol=0)


# ---- drift


BOX = (slice(28, 56), slice(28, 56))


def test_what_is_not_in_the_picture_is_flagged_where_it_lies() -> None:
    base, other = tile(2), tile(9)
    drift = Reference.of(dino(), base[0]).drift(planted(base, other, BOX)[0], alarm=0.25)
    assert drift.worst > 1
    area = drift.drifted()
    assert area[BOX].mean() > 0.95
    far = area.clone()
    far[14:70, 14:70] = 0
    assert far.sum() == 0, "a patch and its neighbours, not the tile"
    peak = np.unravel_index(int(drift.over_pixels().argmax()), (84, 84))
    assert all(20 <= p < 64 for p in peak)


def test_the_same_picture_has_not_drifted() -> None:
    base = tile(2)
    drift = Reference.of(dino(), base[0]).drift(base[0], alarm=0.25)
    assert drift.worst < 1e-5
    assert float(drift.cosines.min()) > 0.999
    assert drift.drifted().sum() == 0


def test_what_nobody_sees_raises_no_alarm() -> None:
    """Features of an empty patch are those of its last digits."""
    flat = torch.full((3, 84, 84), 0.3)
    grain = flat + VISIBLE / 8 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    drift = Reference.of(dino(), flat).drift(grain, alarm=0.25)
    assert drift.worst < 0.5


def test_values_out_of_range_are_judged_as_they_will_be_shown() -> None:
    base = tile(2)
    reference = Reference.of(dino(), base[0])
    beyond = torch.where(base > 0.99, base + 0.5, base)
    assert torch.equal(
        reference.drift(beyond[0], 1.0).cosines, reference.drift(beyond[0].clamp(0, 1), 1.0).cosines
    )


def test_cosines_are_those_of_the_vectors() -> None:
    a, b = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    unit_a, unit_b = (loading.unit_rms(t) for t in (a, b))
    torch.testing.assert_close(cosines(unit_a, unit_b), torch.nn.functional.cosine_similarity(a, b, dim=-1))


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (13, 40)])
def test_a_tile_smaller_than_a_patch_can_be_judged_and_guided(size: tuple[int, int]) -> None:
    base = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    assert Reference.of(dino(), base[0]).drift(base[0], 0.25).worst < 1e-5
    assert guidance(base)(base) is base


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(0, 19), st.integers(0, 19))
def test_a_tile_is_continued_by_its_mirror_image(length: int, before: int, after: int) -> None:
    row = np.random.default_rng(0).random((1, 1, 1, length)).astype(np.float32)
    made = _mirrored(torch.from_numpy(row), before, after, dim=-1)
    mode = "reflect" if max(before, after) < length else "edge"
    np.testing.assert_array_equal(made, np.pad(row, ((0, 0), (0, 0), (0, 0), (before, after)), mode=mode))


def test_a_model_of_many_steps_has_guidance_shared_out_over_them() -> None:
    base, calls = tile(2), []

    def sketch(x: Tensor) -> Tensor:
        calls.append(1)
        return x

    looks = []
    for steps in (1, 2, 8):
        steer = Guidance.towards(dino(), sketch, base, 1.0, 0.0, steps)
        calls.clear()
        steer(noisy(base))
        looks.append(len(calls))
    assert looks[0] > looks[1] > looks[2]
