"""FLUX.1 (schnell, dev, Krea and other fine-tunes) as a ``Denoiser``."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from dino_ray.diffusion.adapter import Adapter, adapted
from dino_ray.diffusion.adapter_file import AdapterFacts
from dino_ray.diffusion.context import lay_out
from dino_ray.diffusion.denoiser import Conditioning, Description
from dino_ray.diffusion.families.flux_config import PATCH, Schedule
from dino_ray.errors import JobError

VAE_WINDOWS = (512, 256)
"""canvas_px: sides, one after the other, of the windows that a VAE works in where whole tiles do not fit. The side that
diffusers would take is that of the images the VAE was trained on, which divides no tile."""


def pack(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) to tokens (B, h/2 · w/2, 4C), row-major; channels run (C, row, column)."""
    batch, channels, h, w = latents.shape
    patches = latents.reshape(batch, channels, h // PATCH, PATCH, w // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH**2)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """Tokens (B, h/2 · w/2, 4C) back to latents (B, C, h, w)."""
    batch = tokens.shape[0]
    patches = tokens.reshape(batch, h // PATCH, w // PATCH, -1, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, h, w)


def position_ids(rows: int, cols: int, device: torch.device | str | None = None) -> Tensor:
    """Positions (rows · cols, 3) float32 of image tokens for the rotary embedding: (0, row, column)."""
    ids = torch.zeros(rows, cols, 3, device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(cols, device=device)[None, :]
    return ids.reshape(rows * cols, 3)


class FluxDenoiser:
    """A transformer and a VAE of FLUX.1, speaking the ``Denoiser`` protocol.

    Latents are float32 at the border and through the sampler; the models run in their own dtype. Parameters
    are frozen, so nothing is recorded for autograd unless the caller's tensor asks for a gradient.

    Parameters
    ----------
    transformer : diffusers.FluxTransformer2DModel
    vae : diffusers.AutoencoderKL
        On the same device; its dtype may differ from the transformer's.
    schedule : Schedule
    description : Description
    tiny_vae : diffusers.AutoencoderTiny, optional
        A small decoder of the same latents, which guidance looks through; without one it takes the VAE's.
    """

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        schedule: Schedule,
        description: Description,
        tiny_vae: Any | None = None,
    ) -> None:
        self._transformer = transformer.eval().requires_grad_(False)
        self._vae = vae.eval().requires_grad_(False)
        # Guidance may decode with a gradient: all activations at once would take tens of GB at 1024 px.
        self._vae.enable_gradient_checkpointing()
        self._tiny_vae = None if tiny_vae is None else tiny_vae.eval().requires_grad_(False)
        self._schedule = schedule
        self._description = description
        self._adapter: Adapter | None = None
        self._vae_shift = float(vae.config.shift_factor or 0.0)
        self._vae_scale = float(vae.config.scaling_factor)

    @property
    def description(self) -> Description:
        return self._description

    @property
    def device(self) -> torch.device:
        return torch.device(self._transformer.device)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to latents: the posterior's mode, which draws nothing."""
        signed = (pixels * 2 - 1).to(self.device, self._vae.dtype)
        mode: Tensor = self._vae.encode(signed, return_dict=False)[0].mode()
        return (mode.float() - self._vae_shift) * self._vae_scale

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pixels (B, 3, H, W), nominally in [0, 1] and not clipped."""
        raw = (latents.float() / self._vae_scale + self._vae_shift).to(self.device, self._vae.dtype)
        signed: Tensor = self._vae.decode(raw, return_dict=False)[0]
        return signed.float() / 2 + 0.5

    def sketch(self, latents: Tensor) -> Tensor:
        """By the tiny decoder, a tenth of the VAE's work, where there is one."""
        tiny = self._tiny_vae
        if tiny is None:
            return self.decode(latents)
        config = tiny.config
        raw = latents.float() / config.scaling_factor + config.shift_factor
        signed: Tensor = tiny.decode(raw.to(self.device, tiny.dtype), return_dict=False)[0]
        return signed.float() / 2 + 0.5

    def sigmas(self, denoise: float, steps: int, size: tuple[int, int]) -> Tensor:
        """The model's own spacing from ``denoise`` in (0, 1] to 0, for latents of ``size`` (h, w)."""
        h, w = size
        levels = self._schedule.sigmas(denoise, steps, tokens=(h // PATCH) * (w // PATCH))
        return torch.tensor(levels, dtype=torch.float32)

    def noised(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """The rectified flow's straight line: ``(1 - sigma) latents + sigma noise``."""
        return (1 - sigma) * latents + sigma * noise

    def predict(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """x0 = x - sigma · v, v being the velocity ``noise - x0`` that the transformer was trained on.

        Raises
        ------
        ValueError
            Where the conditioning is not what the description asks for.
        """
        if conditioning.dino is not None and self._adapter is None:
            raise ValueError(f"{self._description.name} takes no DINO tokens without an adapter")
        batch, _, h, w = x.shape
        dtype, device = self._transformer.dtype, self.device
        rows, cols = h // PATCH, w // PATCH
        prompt = self._text(conditioning, "prompt_embeds").expand(batch, -1, -1)
        context = lay_out(prompt, adapted(conditioning.dino, self._adapter, device), (rows, cols))
        velocity: Tensor = self._transformer(
            hidden_states=pack(x).to(device, dtype),
            timestep=torch.full((batch,), sigma, device=device),
            guidance=self._guidance(conditioning, batch),
            pooled_projections=self._text(conditioning, "pooled_prompt_embeds").expand(batch, -1),
            encoder_hidden_states=context.tokens,
            txt_ids=context.positions,
            img_ids=position_ids(rows, cols, device),
            joint_attention_kwargs=context.attention(rows * cols),
            return_dict=False,
        )[0]
        return x - sigma * unpack(velocity.float(), h, w)

    def save_memory(self) -> str | None:
        """Have the VAE encode and decode in smaller windows, blended where they overlap (``enable_tiling``).

        Its normalisation then sees a window where it saw the tile: tones may shift slightly.
        """
        vae = self._vae
        now = vae.tile_sample_min_size if vae.use_tiling else math.inf
        side = next((side for side in VAE_WINDOWS if side < now), None)
        if side is None:
            return None
        vae.enable_tiling()
        vae.tile_sample_min_size = side
        vae.tile_latent_min_size = side // self._description.latent_scale
        return f"VAE tiling of {side} px"

    def adapted(self, adapter: Adapter, facts: AdapterFacts) -> FluxDenoiser:
        """The same model, attending to what ``adapter`` makes of DINO tokens as it does to text.

        Where gradients are asked for, activations are computed again on the way back: those of 57 blocks fill a GPU.
        """
        self._transformer.enable_gradient_checkpointing()
        other = copy.copy(self)
        other._adapter, other._description = adapter, facts.applied_to(self._description)
        return other

    def _text(self, conditioning: Conditioning, name: str) -> Tensor:
        if name not in conditioning.text:
            raise ValueError(
                f"{self._description.name} needs the text embedding {name!r}: encode a prompt, be it empty"
            )
        return conditioning.text[name].to(self.device, self._transformer.dtype)

    def _guidance(self, conditioning: Conditioning, batch: int) -> Tensor | None:
        if self._description.guidance == "none":
            return None
        scale = self._description.cfg if conditioning.cfg is None else conditioning.cfg
        assert scale is not None  # Description promises a scale wherever guidance is embedded
        return torch.full((batch,), scale, device=self.device)


def load(
    folder: Path,
    schedule: Schedule,
    description: Description,
    device: str,
    dtype: torch.dtype,
    tiny_vae: Path | None = None,
) -> FluxDenoiser:
    """The transformer and the VAE saved in ``folder``, on ``device``; from another folder the decoder for guidance.

    Raises
    ------
    JobError
        Where weights are damaged or do not fit their config.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    transformer = _component(FluxTransformer2DModel, folder / "transformer", dtype).to(device)
    vae = _component(AutoencoderKL, folder / "vae", dtype).to(device)
    tiny = None
    if tiny_vae is not None:
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

        tiny = _component(AutoencoderTiny, tiny_vae, dtype).to(device)
        if tiny.config.latent_channels != description.latent_channels:
            raise JobError(
                f"{tiny_vae}: its latents have {tiny.config.latent_channels} channels, those of {description.name} "
                f"{description.latent_channels}; take it away, or put the model's own tiny decoder there"
            )
    return FluxDenoiser(transformer, vae, schedule, description, tiny)


def _component(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    try:
        model, info = cls.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        if missing := sorted(info["missing_keys"]):  # or else they would stay random
            raise ValueError(f"its weights lack {missing[0]}")
        return model
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise JobError(f"{folder}: can't be loaded ({reason}); download the model again whole") from error
