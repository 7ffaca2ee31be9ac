"""Back-projection: what it corrects, what it leaves alone, and that neighbouring tiles do it alike."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from dino_ray.fidelity.consistency import (
    SourceView,
    back_project,
    consistency_psnr,
    hold_to_base,
    reduced,
    source_window,
)
from dino_ray.fidelity.grain import CLEAN, Grain
from dino_ray.plan.frames import Rect, Scaling
from dino_ray.upsample import Lanczos, base_tile

LEVEL = 1 / 255
TILE, OVERLAP = 128, 32
CONTEXT = OVERLAP // 4
SCALES = st.sampled_from([1.0, 1.37, 1.5, 2.0, 3.0, 4.0, 6.4, 8.0, 16.0])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def photo(height, width):
    image = Image.fromarray(data.astronaut()).crop((100, 0, 400, 300))
    small = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=(0, 0, 300, 300)))
    return (small / 255).astype(np.float32)


def cut(image, rect, closed=False):
    """(3, h, w) of an image (h, w, 3), edges replicated, or going on around in x."""
    rows = np.clip(np.arange(rect.y, rect.y1), 0, image.shape[0] - 1)
    columns = np.arange(rect.x, rect.x1)
    columns = columns % image.shape[1] if closed else np.clip(columns, 0, image.shape[1] - 1)
    return torch.from_numpy(np.ascontiguousarray(image[rows[:, None], columns].transpose(2, 0, 1)))


def scaling_of(image, scale):
    return Scaling.from_factor(image.shape[1], image.shape[0], scale)


def whole(scaling):
    return Rect(0, 0, scaling.canvas_w, scaling.canvas_h)


def view_of(source, rect, scaling, alpha=None, closed=False):
    window = source_window(rect, scaling)
    opacity = None if alpha is None else cut(alpha[..., None], window)[0]
    return SourceView(cut(source, window, closed), window, rect, scaling, opacity, closed)


def enlarged(source, rect, scaling):
    """What a tile starts from; clipped, and so not quite what the source says."""
    made = base_tile(lambda window: cut(source, window).permute(1, 2, 0).numpy(), rect, scaling, Lanczos())
    return torch.from_numpy(np.ascontiguousarray(made.transpose(2, 0, 1)))


def reduction(image, scale):
    """A source that the image (h, w, 3) shows exactly."""
    scaling = Scaling(round(image.shape[1] / scale), round(image.shape[0] / scale), *image.shape[1::-1])
    blank = np.zeros((scaling.source_h, scaling.source_w, 3), np.float32)
    shown, place = reduced(cut(image, whole(scaling)), view_of(blank, whole(scaling), scaling))
    assert place == Rect(0, 0, scaling.source_w, scaling.source_h)
    return shown.permute(1, 2, 0).numpy(), scaling


def rms(change):
    return float(change.square().mean().sqrt())


def test_reducing_is_pillows_bicubic_away_from_the_edges():
    image = photo(96, 120)
    source, _ = reduction(image, 3)
    planes = [Image.fromarray(image[..., c]).resize((40, 32), Image.Resampling.BICUBIC) for c in range(3)]
    theirs = np.stack([np.asarray(plane) for plane in planes], -1)
    inner = slice(2, -2)  # there Pillow leaves out what lies beyond, where edges go on here
    np.testing.assert_allclose(source[inner, inner], theirs[inner, inner], atol=1e-5)


@given(
    scale=SCALES, x=st.integers(-9, 120), y=st.integers(0, 120), w=st.integers(1, 90), h=st.integers(1, 90)
)
def test_a_tile_is_reduced_as_the_whole_is_where_it_says_so(scale, x, y, w, h):
    source = photo(50, 60)
    scaling, rect = scaling_of(source, scale), Rect(x, y, w, h)
    canvas = np.random.default_rng(0).random((scaling.canvas_h, scaling.canvas_w, 1), np.float32).repeat(3, 2)
    everything, _ = reduced(cut(canvas, whole(scaling)), view_of(source, whole(scaling), scaling))
    shown, place = reduced(cut(canvas, rect), view_of(source, rect, scaling))
    assert shown.shape == (3, place.h, place.w)
    torch.testing.assert_close(shown, everything[:, *place.slices], atol=1e-5, rtol=0)


@given(scale=SCALES, value=st.floats(0, 1), off=st.floats(-0.3, 0.3))
def test_constants_stay_and_a_wrong_one_becomes_the_sources(scale, value, off):
    source = np.full((40, 40, 3), value, np.float32)
    scaling = scaling_of(source, scale)
    rect = Rect(0, 0, scaling.canvas_w, scaling.canvas_h)
    tile = torch.full((3, rect.h, rect.w), value)
    view = view_of(source, rect, scaling)
    torch.testing.assert_close(back_project(tile, view, CLEAN), tile, atol=1e-5, rtol=0)
    torch.testing.assert_close(back_project(tile + off, view, CLEAN), tile, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [1, 1.5, 2, 3, 4])
def test_a_consistent_tile_is_left_alone(scale):
    image = photo(240, 240)
    source, scaling = reduction(image, scale)
    # Within 3 source_px of a tile's border it can't be known whether it is consistent, only guessed.
    for rect, border in ((whole(scaling), 0), (Rect(56, 64, TILE, TILE), round(3 * scale))):
        tile = cut(image, rect)
        change = back_project(tile, view_of(source, rect, scaling), CLEAN) - tile
        assert rms(change) < LEVEL
        inner = slice(border, rect.w - border)
        assert change[:, inner, inner].abs().max() < (LEVEL / 4 if border else 1e-5)


@given(scale=SCALES, x=st.integers(0, 40), y=st.integers(0, 40), seed=st.integers(0, 9))
def test_the_reduced_tile_comes_closer_to_the_source_at_any_scale(scale, x, y, seed):
    source = photo(100, 110)
    scaling, rect = scaling_of(source, scale), Rect(x, y, TILE, TILE)
    view = view_of(source, rect, scaling)
    errors = np.random.default_rng(seed).normal(0, 0.05, (3, TILE, TILE)).astype(np.float32)
    tile = (enlarged(source, rect, scaling) + torch.from_numpy(errors)) * 0.9
    before = consistency_psnr(tile, view)
    scores = [consistency_psnr(back_project(tile, view, CLEAN, rounds), view) for rounds in (1, 2, 3)]
    assert before + 3 < scores[0]
    assert scores == sorted(scores)
    assert before + 10 < scores[-1]


def test_a_tile_smaller_than_a_source_pixel_is_not_touched_where_nothing_is_known():
    source = photo(20, 20)
    rect = Rect(33, 33, 6, 6)
    view = view_of(source, rect, scaling_of(source, 16))
    tile = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(back_project(tile, view, CLEAN), tile)
    assert consistency_psnr(tile, view) is None


@pytest.mark.parametrize("sigma", [2, 6, 15])
def test_noise_is_not_chased_and_what_stands_out_of_it_is_corrected(sigma):
    image = photo(256, 256)
    clean, scaling = reduction(image, 2)
    noise = np.random.default_rng(1).normal(0, sigma * LEVEL, clean.shape)
    view = view_of((clean + noise).astype(np.float32), whole(scaling), scaling)
    tile = cut(image, whole(scaling))
    grain = Grain(sigma * LEVEL, 0)
    chased = rms(back_project(tile, view, CLEAN) - tile)
    assert rms(back_project(tile, view, grain) - tile) < 0.15 * chased  # chance: 2 % of its energy

    wrong = tile.clone()
    wrong[:, 100:140, 60:120] += 60 * LEVEL  # what isn't in the source
    left = (back_project(wrong, view, grain) - tile)[:, 106:134, 66:114]
    assert float(left.mean().abs()) < 6 * LEVEL


def test_a_worn_sources_tile_shows_what_its_base_shows_and_nothing_of_the_wear():
    source = photo(40, 40)
    scaling = scaling_of(source, 2)
    rect = whole(scaling)
    base = enlarged(source, rect, scaling)
    worn = np.clip(source + np.random.default_rng(0).normal(0, 0.05, source.shape), 0, 1).astype(np.float32)
    view = view_of(worn, rect, scaling)
    detail = 0.05 * (-1.0) ** torch.arange(80)  # which no source pixel shows
    held = hold_to_base(base + 0.1 + detail, base, view)
    (shown, _), (wanted, _) = reduced(held, view), reduced(base, view)
    assert (shown - wanted).abs().max() < 0.004
    torch.testing.assert_close((held - base).std(), detail.std(), rtol=0.1, atol=0)
    assert torch.equal(hold_to_base(base, base, view), base)


def test_the_more_grain_the_less_is_changed():
    source = photo(64, 64)
    scaling = scaling_of(source, 2)
    view = view_of(source, whole(scaling), scaling)
    tile = enlarged(source, whole(scaling), scaling).roll(1, 2)
    changes = [rms(back_project(tile, view, Grain(s * LEVEL, s * LEVEL)) - tile) for s in (0, 1, 4, 16, 200)]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] > 0
    assert changes[-1] == 0


@pytest.mark.parametrize("scale", [1, 1.5, 2, 4])
def test_nothing_changes_where_the_source_is_not_opaque(scale):
    source = photo(60, 60)
    scaling = scaling_of(source, scale)
    alpha = np.ones((60, 60), np.float32)
    alpha[20:40, :30] = 0.99
    view = view_of(source, whole(scaling), scaling, alpha)
    tile = torch.rand(3, scaling.canvas_h, scaling.canvas_w, generator=torch.Generator().manual_seed(0))
    change = back_project(tile, view, CLEAN) - tile
    # All that alpha, enlarged by Lanczos, spreads to, 3 source_px, has kept its colours.
    around = slice(int(17 * scale) + 1, int(43 * scale) - 1), slice(0, int(33 * scale) - 1)
    assert change[:, *around].abs().max() == 0
    assert change[:, :, int(45 * scale) :].abs().mean() > 10 * LEVEL


def test_opaque_alpha_is_as_none():
    source = photo(60, 60)
    scaling, rect = scaling_of(source, 2), Rect(8, 0, 64, 64)
    tile = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    opaque = np.ones((60, 60), np.float32)
    made = [back_project(tile, view_of(source, rect, scaling, alpha), CLEAN) for alpha in (None, opaque)]
    assert torch.equal(*made)


@pytest.mark.parametrize("scale", [1, 1.5, 2, 3, 4, 8])
@pytest.mark.parametrize("down", [False, True])
def test_neighbouring_tiles_agree_in_what_they_share_but_for_their_context(scale, down):
    source = photo(150, 150)
    scaling = scaling_of(source, scale)
    stride = TILE - OVERLAP
    rects = [
        Rect(8, 8, TILE, TILE),
        Rect(8, 8 + stride, TILE, TILE) if down else Rect(8 + stride, 8, TILE, TILE),
    ]
    # What a model drew: sharper than Lanczos, displaced by half a pixel, and with texture of its own.
    around = Rect(0, 0, rects[1].x1, rects[1].y1)
    base = enlarged(source, around, scaling)
    texture = torch.from_numpy(np.random.default_rng(2).normal(0, 4 * LEVEL, base.shape).astype(np.float32))
    drawn = (base + base.roll(1, 2)) / 2 + texture
    made = [
        back_project(drawn[:, *rect.slices], view_of(source, rect, scaling), Grain(LEVEL, 0))
        for rect in rects
    ]
    assert rms(made[0] - drawn[:, *rects[0].slices]) > 0.3 * LEVEL or scale == 8
    shared = rects[0].intersect(rects[1])
    shared = shared.pad(-CONTEXT)
    here, there = (m[:, *shared.shift(-rect.x, -rect.y).slices] for m, rect in zip(made, rects, strict=True))
    assert (here - there).abs().max() < 0.5 * LEVEL


def test_tiles_that_lie_alike_are_corrected_alike():
    """Far apart, and by other matrices than those at the image's border."""
    pattern = photo(16, 16)
    source = np.tile(pattern, (12, 12, 1))
    tile = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    scaling = scaling_of(source, 2)
    first, second = (
        back_project(tile, view_of(source, Rect(x, y, 64, 64), scaling), CLEAN)
        for x, y in ((32, 64), (256, 160))
    )
    assert torch.equal(first, second)


def test_a_closed_image_has_no_border_in_x():
    source = photo(40, 48)
    scaling = scaling_of(source, 2)
    tile = torch.rand(3, 80, 64, generator=torch.Generator().manual_seed(0))
    turned = np.roll(source, 20, axis=1)
    made = back_project(tile, view_of(source, Rect(80, 0, 64, 80), scaling, closed=True), CLEAN)
    inside = back_project(tile, view_of(turned, Rect(24, 0, 64, 80), scaling, closed=True), CLEAN)
    assert torch.equal(made, inside)


def test_the_same_tile_has_the_same_bytes_whatever_went_before():
    source = photo(80, 80)
    scaling, rect = scaling_of(source, 2.3), Rect(17, 3, TILE, TILE)
    tile = torch.rand(3, TILE, TILE, generator=torch.Generator().manual_seed(0))
    first = back_project(tile, view_of(source, rect, scaling), Grain(LEVEL, LEVEL))
    for x in range(40):  # more than are kept
        back_project(tile, view_of(source, Rect(x, x, TILE, TILE), scaling), CLEAN)
    assert torch.equal(back_project(tile, view_of(source, rect, scaling), Grain(LEVEL, LEVEL)), first)


def test_a_canvas_smaller_than_its_source_is_refused():
    with pytest.raises(AssertionError):
        view_of(photo(40, 40), Rect(0, 0, 20, 20), Scaling(40, 40, 20, 20))
