"""The bundled model: a lossless latent transform, a real FLUX, tokens that count, a base that is not harmed."""

import json

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from dino_ray.diffusion import bundled
from dino_ray.diffusion.bundled.latents import BlockDct
from dino_ray.diffusion.context import lay_out
from dino_ray.diffusion.denoiser import Conditioning, DinoTokens
from dino_ray.diffusion.sampler import sample
from dino_ray.errors import UsageError


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return bundled.load()


@pytest.fixture
def tile():
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(1, 3, 16, 16, generator=generator)
    return torch.nn.functional.interpolate(rough, (64, 64), mode="bicubic").clamp(0, 1)


def tokens(model, seed, strength=1.0, rows=4, cols=4):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, rows, cols, model.description.dino_dim, generator=generator)
    return Conditioning(dino=DinoTokens(features, strength))


@pytest.mark.parametrize("side", [1, 2, 4])
def test_the_latent_transform_loses_nothing(side):
    generator = torch.Generator().manual_seed(1)
    channels = 3 * side**2
    mean = torch.randn(channels, generator=generator)
    std = 0.1 + torch.rand(channels, generator=generator)
    transform, pixels = BlockDct(side, mean, std), torch.rand(2, 3, 16, 24, generator=generator)
    latents = transform.encode(pixels)
    assert latents.shape == (2, channels, 16 // side, 24 // side)
    torch.testing.assert_close(transform.decode(latents), pixels, atol=1e-5, rtol=0)


def test_the_transform_keeps_energy_and_puts_the_mean_first():
    transform = BlockDct(2, torch.zeros(12), torch.ones(12))
    pixels = torch.rand(1, 3, 8, 8)
    latents = transform.encode(pixels)
    torch.testing.assert_close(latents.square().sum(), pixels.square().sum())
    torch.testing.assert_close(latents[0, ::4], 2 * torch.nn.functional.avg_pool2d(pixels, 2)[0])


def test_differences_decode_linearly():
    transform = BlockDct(2, torch.rand(12), torch.rand(12) + 0.1)
    a, b = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    difference = transform.decode_difference(transform.encode(a) - transform.encode(b))
    torch.testing.assert_close(difference, a - b, atol=1e-5, rtol=0)


def test_the_description_is_that_of_the_weights(model):
    description = bundled.describe()
    assert description == model.description
    assert description.family == "bundled"
    config = json.loads((bundled.FOLDER / "transformer" / "config.json").read_text())
    assert config["_class_name"] == "FluxTransformer2DModel"
    assert config["in_channels"] == 4 * description.latent_channels
    assert config["joint_attention_dim"] == description.dino_dim
    dino = json.loads((bundled.FOLDER.parents[2] / "dino" / "weights" / "config.json").read_text())
    assert description.dino_dim == 2 * dino["hidden_size"]


def test_sigma0_starts_from_the_base_and_more_adds_noise(model):
    z, noise = torch.randn(1, 12, 8, 8), torch.randn(1, 12, 8, 8)
    sigma0 = bundled.read_spec().sigma0
    assert torch.equal(model.noised(z, noise, sigma0), z)
    assert torch.equal(model.noised(z, noise, sigma0 / 2), z)
    torch.testing.assert_close(model.noised(z, noise, sigma0 + 0.5), z + 0.5 * noise)


def test_sigmas_start_at_denoise_exactly(model):
    for denoise in (0.1, 0.25, 1.0):
        sigmas = model.sigmas(denoise, 3, (64, 64))
        assert sigmas[0] == np.float32(denoise)
        assert sigmas[-1] == 0
        assert (sigmas[:-1] > sigmas[1:]).all()


def test_predictions_do_not_depend_on_the_rest_of_the_batch(model, tile):
    z = model.encode(torch.cat([tile, tile.flip(3)]))
    both = model.predict(z, 0.25, Conditioning())
    torch.testing.assert_close(both[:1], model.predict(z[:1], 0.25, Conditioning()), atol=1e-4, rtol=0)


def test_dino_tokens_change_the_prediction(model, tile):
    z = model.encode(tile)
    one, other = (model.decode(model.predict(z, 0.25, tokens(model, seed))) for seed in (1, 2))
    assert (one - other).abs().max() > 4 / 65535  # tiles travel as 16 bits: not lost in rounding


def test_strength_fades_tokens_out_to_no_tokens(model, tile):
    z = model.encode(tile)
    without = model.predict(z, 0.25, Conditioning())
    apart = [(model.predict(z, 0.25, tokens(model, 1, s)) - without).abs().mean() for s in (1e-6, 0.3, 1.0)]
    assert apart[0] < 1e-3
    assert apart[0] < apart[1] < apart[2]


def test_a_token_sits_where_its_patch_is():
    """Positions are those of the image tokens that a DINO token covers: 4 × 4 of them under 2 × 2."""
    context = lay_out(torch.zeros(1, 0, 8), DinoTokens(torch.zeros(1, 2, 2, 8), 1.0), (4, 4))
    assert context.positions.tolist() == [[1, 0.5, 0.5], [1, 0.5, 2.5], [1, 2.5, 0.5], [1, 2.5, 2.5]]


def test_less_denoise_changes_less(model, tile):
    z = model.encode(tile)
    changes = [
        (sample(model, z, model.sigmas(d, 1, (32, 32)), Conditioning()) - z).abs().mean().item()
        for d in (0.02, 0.1, 0.25)
    ]
    assert changes[0] < changes[1] < changes[2]
    assert changes[0] < 0.25 * changes[2]


def test_text_and_strange_tokens_are_refused(model, tile):
    z = model.encode(tile)
    with pytest.raises(ValueError, match="text"):
        model.predict(z, 0.25, Conditioning(text={"prompt_embeds": torch.zeros(1, 1, 1)}))
    with pytest.raises(ValueError, match="channels"):
        model.predict(z, 0.25, Conditioning(dino=DinoTokens(torch.zeros(1, 2, 2, 3), 1.0)))


def test_a_folder_of_the_same_format_is_a_model_too(tmp_path):
    torch.manual_seed(0)
    spec = bundled.Spec(
        folder=tmp_path / "mine",
        sigma0=0.25,
        latent_scale=2,
        latent_mean=(0.0,) * 12,
        latent_std=(1.0,) * 12,
        tile=64,
        overlap=16,
        pixel_multiple=16,
        steps=1,
        dino_dim=8,
        dino_stride=16,
    )
    FluxTransformer2DModel(
        patch_size=1,
        in_channels=48,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
    ).save_pretrained(spec.transformer)
    spec.write()
    assert bundled.is_bundled(spec.folder)
    assert bundled.read_spec(spec.folder) == spec
    assert bundled.describe(spec.folder).name == "mine"
    loaded = bundled.load(spec.folder)
    z = torch.randn(1, 12, 8, 8)
    assert loaded.predict(z, 0.25, Conditioning()).shape == z.shape


@pytest.mark.parametrize(
    "content",
    [None, "no json", "[]", '{"format": "other/1"}', '{"format": "dino_ray.bundled/1", "tile": 64}'],
)
def test_a_broken_folder_is_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(UsageError, match="train_bundled") as caught:
        bundled.describe(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_missing_weights_are_refused_by_name(tmp_path):
    (tmp_path / "model.json").write_text((bundled.FOLDER / "model.json").read_text())
    with pytest.raises(UsageError, match="transformer cannot be loaded") as caught:
        bundled.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
