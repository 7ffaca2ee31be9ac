"""FLUX.1 by its sizes alone, made where it is to run; our way to run it and the stock one; a clock of the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dino_ray.diffusion import speed
from dino_ray.diffusion.denoiser import Conditioning
from dino_ray.diffusion.families.flux import FluxDenoiser, build, pack
from dino_ray.diffusion.families.flux_config import PATCH, describe
from dino_ray.diffusion.families.latent_denoiser import Loaded
from dino_ray.diffusion.model_options import ModelOptions
from dino_ray.diffusion.sampler import sample
from dino_ray.diffusion.vae import Place

LATENT_SCALE = 8
"""canvas_px per latent sample, of FLUX.1's VAE and of every one with four levels."""
DENOISE = 0.25
GUIDANCE = 3.5
MLP_RATIO = 4
"""Width of a block's MLP over the block's."""
TERA = 1e12


@dataclass(frozen=True)
class Geometry:
    """Sizes of a FLUX.1, and of the tiles it gets."""

    double: int
    single: int
    heads: int
    head_width: int
    rope: tuple[int, int, int]
    text_tokens: int
    text_width: int
    pooled_width: int
    vae_widths: tuple[int, int, int, int]
    vae_layers: int
    vae_groups: int
    tile: int
    overlap: int
    matmul: int
    """Side of the square matrices whose product is the ceiling."""
    latent_channels: int = 16

    def tokens(self) -> int:
        """Of a tile and its prompt."""
        return (self.tile // LATENT_SCALE // PATCH) ** 2 + self.text_tokens

    def step_flop(self) -> float:
        """Of one step of one tile: the matrix products of its blocks, 2 per multiplication and addition.

        A block multiplies each token by 4 + 2 · ``MLP_RATIO`` square matrices (double: queries, keys, values, output
        and MLP; single: the same in two layers), and each pair of tokens twice. What is done once a step is left out:
        1 in 1,000.
        """
        width, tokens = self.heads * self.head_width, self.tokens()
        block = 2 * (4 + 2 * MLP_RATIO) * width**2 * tokens + 4 * tokens**2 * width
        return float((self.double + self.single) * block)


FLUX_1 = Geometry(19, 38, 24, 128, (16, 56, 56), 512, 4096, 768, (128, 256, 512, 512), 2, 32, 1024, 128, 8192)
TINY = Geometry(1, 1, 2, 16, (4, 6, 6), 8, 32, 32, (8, 8, 8, 8), 1, 4, 64, 16, 256)


@dataclass(frozen=True)
class Bench:
    """A model of a geometry's sizes and random weights."""

    geometry: Geometry
    denoiser: FluxDenoiser
    stock: Any
    """``FluxImg2ImgPipeline`` of the same transformer, and of a VAE as the pipeline would have it."""
    place: Place
    text: Mapping[str, Tensor]
    steps: int

    def pixels(self, batch: int) -> Tensor:
        """Tiles (B, 3, h, w) in [0, 1], always the same."""
        generator = torch.Generator(self.place.device).manual_seed(1)
        side = self.geometry.tile
        return torch.rand(batch, 3, side, side, device=self.place.device, generator=generator)

    def start(self, batch: int) -> Tensor:
        """Noisy latents (B, C, h, w)."""
        generator = torch.Generator(self.place.device).manual_seed(2)
        side = self.geometry.tile // LATENT_SCALE
        shape = (batch, self.geometry.latent_channels, side, side)
        return torch.randn(shape, device=self.place.device, generator=generator)

    def conditioning(self) -> Conditioning:
        return Conditioning(text=self.text, cfg=GUIDANCE)

    def sigmas(self) -> Tensor:
        side = self.geometry.tile // LATENT_SCALE
        return self.denoiser.sigmas(DENOISE, self.steps, (side, side))

    def ours(self, batch: int, *, pixels: bool) -> Tensor:
        """What a replica does of a batch: latents to latents, or pixels to pixels."""
        if not pixels:
            return sample(self.denoiser, self.start(batch), self.sigmas(), self.conditioning())
        clean = self.denoiser.encode(self.pixels(batch))
        noisy = self.denoiser.noised(clean, self.start(batch), DENOISE)
        return self.denoiser.decode(sample(self.denoiser, noisy, self.sigmas(), self.conditioning()))

    def stocks(self, batch: int, *, pixels: bool) -> Tensor:
        """The same by the stock pipeline."""
        side = self.geometry.tile
        made: Tensor = self.stock(
            image=self.pixels(batch),
            latents=None if pixels else pack(self.start(batch)),
            generator=torch.Generator(self.place.device).manual_seed(2),
            height=side,
            width=side,
            strength=1.0,  # sigmas say where it starts
            sigmas=self.sigmas()[:-1].tolist(),
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            output_type="pt" if pixels else "latent",
            **{
                name: self.place.put(value).expand(batch, *value.shape[1:])
                for name, value in self.text.items()
            },
        ).images
        return made


def make(geometry: Geometry, device: str, steps: int) -> Bench:
    """A model, its weights drawn on the device in the type that they are used in."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxImg2ImgPipeline,
        FluxTransformer2DModel,
    )

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    place = Place(torch.device(device), dtype)
    with _made_there(place):
        transformer = FluxTransformer2DModel(
            in_channels=PATCH**2 * geometry.latent_channels,
            num_layers=geometry.double,
            num_single_layers=geometry.single,
            attention_head_dim=geometry.head_width,
            num_attention_heads=geometry.heads,
            joint_attention_dim=geometry.text_width,
            pooled_projection_dim=geometry.pooled_width,
            guidance_embeds=True,
            axes_dims_rope=geometry.rope,
        )
        vae, stock_vae = (
            AutoencoderKL(
                latent_channels=geometry.latent_channels,
                block_out_channels=geometry.vae_widths,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=geometry.vae_layers,
                norm_num_groups=geometry.vae_groups,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
            )
            for _ in range(2)
        )
        text = {
            "prompt_embeds": torch.randn(1, geometry.text_tokens, geometry.text_width),
            "pooled_prompt_embeds": torch.randn(1, geometry.pooled_width),
        }
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)  # sigmas as they are given, in both ways
    stock_vae.load_state_dict(vae.state_dict())
    configs = {
        "index": {},
        "transformer": {"_class_name": "FluxTransformer2DModel", **transformer.config},
        "vae": dict(vae.config),
        "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", **scheduler.config},
    }
    for model in (transformer, stock_vae):
        model.eval().requires_grad_(False)
    stock = FluxImg2ImgPipeline(scheduler, stock_vae, None, None, None, None, transformer)
    stock.set_progress_bar_config(disable=True)
    vae.enable_slicing()  # this and the next as ``loading`` does
    if device == "cuda":
        speed.lay_out_convolutions(vae)
    models = {"transformer": transformer, "vae": vae}
    denoiser = build(Loaded(models, dict.fromkeys(models, place)), configs, describe("FLUX.1", configs))
    return Bench(geometry, denoiser, stock, place, {k: v.float() for k, v in text.items()}, steps)


def compiled(bench: Bench) -> None:
    """Compile what ``--compile`` would; ``eager`` leaves it out again for a while."""
    speed.accelerate(
        bench.stock.transformer,
        ModelOptions(compile=True),
        bench.place.device.type,
        str(bench.place.dtype)[6:],
    )


@contextmanager
def eager() -> Iterator[None]:
    """Nothing that is compiled runs within."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _made_there(place: Place) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(place.dtype)
    torch.manual_seed(0)
    try:
        with torch.device(place.device):
            yield
    finally:
        torch.set_default_dtype(before)


class Clock:
    """Seconds of a device: by CUDA's events, or of this processor."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeats: int) -> float:
        """Median of a work that has been done once before."""
        taken = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    @contextmanager
    def span(self) -> Iterator[None]:
        """The device works on what is asked of it within."""
        start = self._mark()
        yield
        self._spans.append((start, self._mark()))

    def busy(self) -> float:
        """Seconds of all spans since the last time that this was asked; none of them may overlap another."""
        self.wait()
        spans, self._spans = self._spans, []
        if self.gpu:
            return sum(start.elapsed_time(end) for start, end in spans) / 1000
        return sum(end - start for start, end in spans)

    def _mark(self) -> Any:
        if not self.gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
