"""Qwen-Image's autoencoder, made for video, on single pictures: against the stock one of random weights."""

from __future__ import annotations

import copy

import pytest
import torch

from dino_ray.diffusion.vae import Place, QwenImageVae


@pytest.fixture(scope="module")
def stock():
    from diffusers import AutoencoderKLQwenImage

    with torch.random.fork_rng():
        torch.manual_seed(7)
        return (
            AutoencoderKLQwenImage(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
            .eval()
            .requires_grad_(False)
        )


@pytest.fixture
def vae(stock):
    return QwenImageVae(copy.deepcopy(stock), Place(torch.device("cpu"), torch.float32))


def of_channels(values):
    return torch.tensor(values)[None, :, None, None, None]


def stock_decode(stock, latents):
    raw = latents[:, :, None] * of_channels(stock.config.latents_std) + of_channels(stock.config.latents_mean)
    return stock.decode(raw).sample[:, :, 0] / 2 + 0.5


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def test_pixels_and_latents_are_the_stock_autoencoders(vae, stock):
    pixels = random(2, 3, 32, 48).sigmoid()
    encoded = stock.encode(pixels[:, :, None] * 2 - 1).latent_dist.mode() - of_channels(
        stock.config.latents_mean
    )
    encoded = (encoded / of_channels(stock.config.latents_std))[:, :, 0]
    state = torch.get_rng_state()
    assert (vae.encode(pixels) - encoded).abs().max() < 1e-5
    assert torch.equal(torch.get_rng_state(), state)
    assert (vae.decode(encoded) - stock_decode(stock, encoded)).abs().max() < 1e-5


def test_decoding_passes_the_stock_gradient_and_keeps_few_activations(vae, stock):
    def kept(decode):
        sizes, asked = [], random(1, 16, 8, 12).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            made = decode(asked)
        made.square().sum().backward()
        return sum(sizes), asked.grad

    ours, gradient = kept(vae.decode)
    whole, expected = kept(lambda latents: stock_decode(stock, latents))
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
    assert expected.abs().max() > 1e-3
    assert ours < whole / 2


def test_a_picture_keeps_no_copies_for_a_next_frame(vae, stock):
    def cached(model, decode):
        found = []
        model.decoder.register_forward_hook(
            lambda module, args, kwargs, made: found.append(
                sum(torch.is_tensor(t) for t in kwargs["feat_cache"])
            ),
            with_kwargs=True,
        )
        decode(random(1, 16, 4, 4))
        return found[0]

    stocks = copy.deepcopy(stock)
    assert cached(vae.model, vae.decode) == 2  # of its first and its last layer
    assert cached(stocks, lambda latents: stock_decode(stocks, latents)) > 10


def test_saving_memory_has_it_work_in_smaller_and_smaller_windows(vae):
    pixels = random(1, 3, 544, 64).sigmoid()
    seen = []
    for coder, scale in ((vae.model.encoder, 1), (vae.model.decoder, 8)):
        coder.register_forward_pre_hook(
            lambda module, args, scale=scale: seen.append(scale * max(args[0].shape[3:]))
        )

    def there_and_back():
        seen.clear()
        return vae.decode(vae.encode(pixels)), max(seen)

    whole, largest = there_and_back()
    assert largest == 544
    for side in (512, 256):
        assert vae.save_memory() == f"VAE tiling of {side} px"
        tiled, largest = there_and_back()
        assert largest == side
        assert tiled.shape == whole.shape
        assert torch.corrcoef(torch.stack([tiled.flatten(), whole.flatten()]))[0, 1] > 0.95
    assert vae.save_memory() is None
