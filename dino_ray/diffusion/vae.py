"""Between pixels and a model's latents, through the autoencoder that it was trained with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from torch.utils.checkpoint import checkpoint

VAE_WINDOWS = (512, 256)
"""canvas_px: sides, one after the other, of the windows that a VAE works in where whole tiles do not fit. The side that
diffusers would take is that of the images the VAE was trained on, which divides no tile."""


@dataclass(frozen=True)
class Place:
    """Where a model computes, and in what precision. Neither is where or how its weights are kept, as those may be
    offloaded or quantised.
    """

    device: torch.device
    dtype: torch.dtype

    def put(self, value: Tensor) -> Tensor:
        """A floating-point input, as the model takes it."""
        return value.to(self.device, self.dtype)


class Vae(Protocol):
    """Pixels (B, 3, H, W) in [0, 1] to latents (B, C, h, w) of about unit variance, and back; float32 outside.

    It draws no random numbers, and passes gradients on where they are asked for.
    """

    model: Any
    """The autoencoder itself."""

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def work_in_windows(self, side: int) -> None:
        """Encode and decode in windows of ``side`` canvas_px, blended where they overlap by a quarter."""
        ...

    def save_memory(self) -> str | None: ...


class KlVae:
    """An ``AutoencoderKL``: one factor and one shift bring its latents to unit variance. SD to SD3, FLUX.1, Z-Image.

    Parameters
    ----------
    model : diffusers.AutoencoderKL
        Is frozen, and told to keep no activations where a gradient is asked for: all of them would take tens of GB at
        1024 px.
    """

    def __init__(self, model: Any, place: Place) -> None:
        self.model, self._place = model.eval().requires_grad_(False), place
        model.enable_gradient_checkpointing()
        self._shift = float(getattr(model.config, "shift_factor", None) or 0.0)
        self._factor = float(getattr(model.config, "scaling_factor", 1.0))

    def encode(self, pixels: Tensor) -> Tensor:
        """The posterior's mode."""
        signed = self._place.put(pixels * 2 - 1)
        mode: Tensor = self.model.encode(signed, return_dict=False)[0].mode()
        return self._normal(mode.float())

    def decode(self, latents: Tensor) -> Tensor:
        """Nominally in [0, 1], and not clipped."""
        raw = self._place.put(self._raw(latents.float()))
        signed: Tensor = self.model.decode(raw, return_dict=False)[0]
        return signed.float() / 2 + 0.5

    def _normal(self, raw: Tensor) -> Tensor:
        """The autoencoder's latents, brought to unit variance."""
        return (raw - self._shift) * self._factor

    def _raw(self, latents: Tensor) -> Tensor:
        """The inverse of ``_normal``."""
        return latents / self._factor + self._shift

    def save_memory(self) -> str | None:
        """As ``Denoiser.save_memory``: encode and decode in smaller windows, blended where they overlap.

        The VAE's normalisation then sees a window where it saw the tile: tones may shift slightly.
        """
        now = self.model.tile_sample_min_size if self.model.use_tiling else math.inf
        side = next((side for side in VAE_WINDOWS if side < now), None)
        if side is None:
            return None
        self.work_in_windows(side)
        return f"VAE tiling of {side} px"

    def work_in_windows(self, side: int) -> None:
        """Windows of ``side`` canvas_px, a multiple of four latents."""
        self.model.enable_tiling()
        self.model.tile_sample_min_size = side
        self.model.tile_latent_min_size = side // 2 ** (len(self.model.config.block_out_channels) - 1)


class BatchNormVae(KlVae):
    """An ``AutoencoderKLFlux2``: each channel, at each place within a transformer's token, has a mean and a variance of
    its own, which training's batch normalisation has kept.

    Latents have the autoencoder's own grid here, one sample for 8 px; the stock pipeline holds them by tokens.
    """

    def __init__(self, model: Any, place: Place) -> None:
        super().__init__(model, place)
        self._patch = int(model.config.patch_size[0])

    def _normal(self, raw: Tensor) -> Tensor:
        mean, deviation = self._statistics(raw.device)
        return pixel_shuffle((pixel_unshuffle(raw, self._patch) - mean) / deviation, self._patch)

    def _raw(self, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(latents.device)
        return pixel_shuffle(pixel_unshuffle(latents, self._patch) * deviation + mean, self._patch)

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation, (1, C, 1, 1) each; asked for anew, since the model may wait elsewhere."""
        mean, variance = (
            value.to(device, torch.float32).view(1, -1, 1, 1)
            for value in (self.model.bn.running_mean, self.model.bn.running_var)
        )
        return mean, (variance + self.model.config.batch_norm_eps).sqrt()


class QwenImageVae:
    """An ``AutoencoderKLQwenImage``: made for video, of which a picture is one frame. Qwen-Image and its editors.

    Each channel of its latents has a mean and a deviation of its own. What it decodes whole, it clips to [0, 1]. It
    normalises each place by itself, so that its windows keep their tones.

    Parameters
    ----------
    model : diffusers.AutoencoderKLQwenImage
        Is frozen. Its blocks are told to keep nothing for a next frame, which here never comes: those copies would be
        as large as all activations; nor activations where a gradient is asked for.
    """

    def __init__(self, model: Any, place: Place) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
            QwenImageResample,
            QwenImageResidualBlock,
        )

        self.model, self._place = model.eval().requires_grad_(False), place
        shape = (1, -1, 1, 1)
        self._mean = torch.tensor(model.config.latents_mean, device=place.device).reshape(shape)
        self._deviation = torch.tensor(model.config.latents_std, device=place.device).reshape(shape)
        kinds = QwenImageResidualBlock, QwenImageResample
        for block in (block for block in model.modules() if isinstance(block, kinds)):
            block.forward = partial(_single_frame, block.forward)

    def encode(self, pixels: Tensor) -> Tensor:
        """The posterior's mode."""
        signed = self._place.put(pixels * 2 - 1)
        mode: Tensor = self.model.encode(signed[:, :, None], return_dict=False)[0].mode()
        return (mode[:, :, 0].float() - self._mean) / self._deviation

    def decode(self, latents: Tensor) -> Tensor:
        """In [0, 1], or nominally so where windows are decoded."""
        raw = self._place.put(latents.float() * self._deviation + self._mean)
        signed: Tensor = self.model.decode(raw[:, :, None], return_dict=False)[0]
        return signed[:, :, 0].float() / 2 + 0.5

    def save_memory(self) -> str | None:
        """As ``KlVae.save_memory``."""
        now = self.model.tile_sample_min_height if self.model.use_tiling else math.inf
        side = next((side for side in VAE_WINDOWS if side < now), None)
        if side is None:
            return None
        self.work_in_windows(side)
        return f"VAE tiling of {side} px"

    def work_in_windows(self, side: int) -> None:
        """Windows of ``side`` canvas_px that overlap by a quarter, as those of `KlVae` do."""
        stride = side * 3 // 4
        self.model.enable_tiling(side, side, stride, stride)


def _single_frame(forward: Callable[[Tensor], Tensor], x: Tensor, *cache: object) -> Tensor:
    """A block of a video autoencoder on the only frame there is: without its cache of those before."""
    if not x.requires_grad:
        return forward(x)
    made: Tensor = checkpoint(forward, x, use_reentrant=False)
    return made


class TinyDecoder:
    """An ``AutoencoderTiny`` of the same latents, a tenth of the VAE's work, for guidance to look through."""

    def __init__(self, model: Any, place: Place) -> None:
        self.model, self._place = model.eval().requires_grad_(False), place

    def decode(self, latents: Tensor) -> Tensor:
        """As ``Vae.decode``, nearly."""
        config = self.model.config
        raw = latents.float() / config.scaling_factor + config.shift_factor
        signed: Tensor = self.model.decode(self._place.put(raw), return_dict=False)[0]
        return signed.float() / 2 + 0.5
