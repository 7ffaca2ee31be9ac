"""Training: pictures from a seed alone, and a resumed run that ends where an uninterrupted one does."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from training import base as base_stage
from training import selfdistil
from training.degrade import reduce_bicubic, reduce_somehow, soften
from training.flux import build, draw_case, make_spec
from training.gallery import Gallery
from training.images import picture
from training.loop import Budget, Stage
from training.losses import edge_loss, texture_loss
from training.muon import Muon, orthogonal
from training.pool import PoolSpec, open_pool
from training.swaps import raw_pixels, swap_auc

from dino_ray.upsample.net import save_net


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return open_pool(tmp_path_factory.mktemp("pool"), PoolSpec(seed=7, count=3, size=160), workers=1)


def test_a_picture_is_a_function_of_seed_and_index():
    one = picture(3, 5, 96)
    assert one.shape == (96, 96, 3)
    np.testing.assert_array_equal(one, picture(3, 5, 96))
    assert (one != picture(3, 6, 96)).mean() > 0.5
    assert (one != picture(4, 5, 96)).mean() > 0.5


def test_reductions_halve_and_resemble():
    large = picture(0, 1, 128)
    plain = reduce_bicubic(large)
    np.testing.assert_array_equal(plain, Image.fromarray(large).resize((64, 64), Image.Resampling.BICUBIC))
    for seed in range(8):
        other = reduce_somehow(large, np.random.default_rng(seed))
        assert other.shape == plain.shape
        assert np.abs(other.astype(int) - plain).mean() < 20


def test_softening_leaves_nothing_that_reducing_loses():
    sharp = picture(0, 2, 128)
    soft = soften(sharp)
    again = soften(soft)
    assert np.abs(again.astype(int) - soft).mean() < 0.5 * np.abs(soft.astype(int) - sharp).mean()


def test_pairs_show_the_same_place_twice(pool):
    large, small = pool.pairs(np.random.default_rng(0), 6, 64)
    assert large.shape == (6, 64, 64, 3)
    assert small.shape == (6, 32, 32, 3)
    averaged = large.reshape(6, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(averaged - small).mean() < 6


def test_a_pool_is_painted_once(pool, tmp_path):
    spec = PoolSpec(seed=7, count=1, size=64)
    first = open_pool(tmp_path, spec, workers=1)
    before = (tmp_path / "large.npy").stat().st_mtime_ns
    np.testing.assert_array_equal(open_pool(tmp_path, spec, workers=1).large, first.large)
    assert (tmp_path / "large.npy").stat().st_mtime_ns == before


def interrupted_and_not(train, tmp_path, steps=4):
    """The files that ``train`` writes when run at once, and when stopped half-way and resumed."""
    for name, stops in (("at_once", (None,)), ("resumed", (steps // 2, None))):
        stage = Stage(name="s", work_dir=tmp_path / name, seed=1, budget=Budget(steps=steps), resume=True)
        for stop_after in stops:
            train(replace(stage, stop_after=stop_after), tmp_path / name / "out")
    return tmp_path / "at_once" / "out", tmp_path / "resumed" / "out"


def assert_same_weights(one, other):
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, weights in first.items():
        assert torch.equal(weights, second[name]), name


def test_a_resumed_base_net_is_the_uninterrupted_one(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(base_stage, "WIDTH", 8)
    monkeypatch.setattr(base_stage, "BLOCKS", 1)
    monkeypatch.setattr(base_stage, "BATCH", 2)
    cpu = torch.device("cpu")

    def train(stage, out):
        base_stage.train_base(stage, pool, out / "net.safetensors", cpu)

    at_once, resumed = interrupted_and_not(train, tmp_path)
    assert_same_weights(at_once / "net.safetensors", resumed / "net.safetensors")


def test_a_deepened_net_does_the_same_and_learns_on():
    torch.manual_seed(0)
    net = base_stage.BaseNet(8, 3)
    torch.nn.init.normal_(net.tail.weight, std=0.1)
    deeper = base_stage.deepened(net, 7)
    x = torch.rand(2, 3, 12, 16)
    assert deeper.blocks == 7
    torch.testing.assert_close(deeper(x), net(x))
    deeper(x).square().mean().backward()
    assert all(block.second.weight.grad.abs().sum() > 0 for block in deeper.body)


@pytest.mark.parametrize("kind", ["clean", "worn"])
def test_a_resumed_specialist_is_the_uninterrupted_one(pool, tmp_path, monkeypatch, kind):
    for name, value in {"DEEPENED": 2, "LATER_BATCH": 2, "LATER_CROP_PX": 64, "TWICE_EVERY": 3}.items():
        monkeypatch.setattr(base_stage, name, value)
    torch.manual_seed(0)
    save_net(base_stage.BaseNet(8, 1), tmp_path / "polished.safetensors")
    seen = []

    class Watched(type(pool)):
        def pairs(self, rng, n, side, bicubic_share=None):
            seen.append(bicubic_share)
            return super().pairs(rng, n, side, bicubic_share)

    watched = Watched(pool.large, pool.bicubic, pool.other)

    def train(stage, out):
        stage = replace(stage, name=kind)
        base_stage.specialize(
            stage, watched, tmp_path / "polished.safetensors", out / "net.safetensors", torch.device("cpu")
        )

    at_once, resumed = interrupted_and_not(train, tmp_path)
    assert_same_weights(at_once / "net.safetensors", resumed / "net.safetensors")
    assert set(seen) == {1.0, base_stage.CLEAN_SHARE if kind == "clean" else base_stage.WORN_SHARE}


def test_a_resumed_dino_is_the_uninterrupted_one(pool, tmp_path, monkeypatch):
    small = selfdistil.CONFIG | {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    monkeypatch.setattr(selfdistil, "CONFIG", small)
    monkeypatch.setattr(selfdistil, "BATCH", 2)
    monkeypatch.setattr(selfdistil, "WIDE_SIDE", 140)
    monkeypatch.setattr(selfdistil, "WIDE_BATCH", 2)
    cpu = torch.device("cpu")

    def train(stage, out):
        selfdistil.train_dino(stage, pool, out, cpu)

    at_once, resumed = interrupted_and_not(train, tmp_path)
    assert_same_weights(at_once / "model.safetensors", resumed / "model.safetensors")


def test_an_untrained_transformer_leaves_the_base_alone(tmp_path):
    from dino_ray.diffusion.bundled.model import BundledDenoiser
    from dino_ray.diffusion.denoiser import Conditioning

    large = np.stack([picture(0, 0, 64)])
    level = type("Features", (), {"dim": 8})()
    spec = make_spec(Gallery(large, large.astype(np.uint16) * 257, large, (level,)), tmp_path)
    denoiser = BundledDenoiser(build(spec), spec)
    z = denoiser.encode(torch.rand(1, 3, 32, 32))
    assert z.shape == (1, 12, 16, 16)
    assert torch.equal(denoiser.predict(z, 0.25, Conditioning()), z)


def test_every_case_is_answered_by_the_goal():
    torch.manual_seed(0)
    goal, start = torch.randn(64, 12, 4, 4), torch.randn(64, 12, 4, 4)
    case = draw_case(np.random.default_rng(0), goal, start)
    way_sigma = case.sigma.view(-1, 1, 1, 1)
    reached = case.x - way_sigma * case.velocity
    full = (reached - goal).abs().amax((1, 2, 3)) < 1e-4
    # Only the gentle cases stop short of the goal, on the straight way from the base.
    assert full.float().mean() > 0.8
    assert case.plain.float().mean() > 0.5
    torch.testing.assert_close(case.x[case.plain], start[case.plain])
    short = (reached - goal)[~full] / (start - goal)[~full]
    torch.testing.assert_close(short.amin((1, 2, 3)), short.amax((1, 2, 3)), atol=1e-2, rtol=1e-2)


def test_edges_count_where_they_are_and_texture_by_how_much_there_is():
    torch.manual_seed(0)
    smooth = torch.linspace(0.2, 0.8, 64).expand(2, 3, 64, 64)
    one, other = (smooth + 0.05 * torch.randn(2, 3, 64, 64) for _ in range(2))
    soft = smooth + 0.2 * (one - smooth)
    assert edge_loss(one, one).max() < 2e-3  # all but the floor under its root
    assert texture_loss(one, one).max() == 0
    assert (edge_loss(one, soft) > 10 * edge_loss(one, one)).all()
    assert (texture_loss(one, soft) > 4 * texture_loss(one, other)).all()


def test_muon_steps_are_orthogonal_whatever_the_gradient():
    torch.manual_seed(0)
    for shape in ((8, 30), (30, 8)):
        lengths = torch.linalg.svdvals(orthogonal(torch.randn(shape) * torch.logspace(-2, 1, shape[1])))
        assert 0.3 < lengths.min() < lengths.max() < 1.4, lengths


def test_muon_and_its_adam_go_downhill():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(6, 4), torch.randn(64, 6)
    goal = x @ torch.randn(6, 4) + 1
    optimizer = Muon(layer.parameters(), lr=0.05)

    def loss():
        return (layer(x) - goal).square().mean()

    before = loss().item()
    for _ in range(80):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.1 * before


@pytest.mark.parametrize("neighbours", [False, True])
def test_swapped_patches_are_found_better_than_by_chance(neighbours):
    auc = swap_auc(raw_pixels(14), 14, seed=11, neighbours=neighbours, pictures=3, side_patches=6)
    assert 0.6 < auc <= 1
