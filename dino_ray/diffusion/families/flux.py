"""FLUX.1 (schnell, dev, Krea and other fine-tunes), and its editor Kontext, as a ``Denoiser``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dino_ray.diffusion.adapter import Adapter, adapted
from dino_ray.diffusion.adapter_file import AdapterFacts
from dino_ray.diffusion.context import lay_out
from dino_ray.diffusion.denoiser import Conditioning, Description, Embeddings
from dino_ray.diffusion.families.family import Configs
from dino_ray.diffusion.families.flow_denoiser import FlowDenoiser
from dino_ray.diffusion.families.flow_schedule import PATCH
from dino_ray.diffusion.families.flux_text import encode_text
from dino_ray.diffusion.families.latent_denoiser import Loaded
from dino_ray.diffusion.vae import Place

__all__ = ["FluxDenoiser", "build", "encode_text", "pack", "picture_tokens", "position_ids", "unpack"]

REFERENCE = 1.0
"""First rotary coordinate of the tokens of Kontext's reference."""


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


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def position_ids(
    rows: int, cols: int, device: torch.device | str | None = None, picture: float = 0.0
) -> Tensor:
    """Positions (rows · cols, 3) float32 of image tokens for the rotary embedding: (picture, row, column).

    Made once: a model asks for the same at every step, and it is half of what we add to one. And made so that what
    serves inference can serve training.
    """
    ids = torch.zeros(rows, cols, 3, device=device)
    ids[..., 0] = picture
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(cols, device=device)[None, :]
    return ids.reshape(rows * cols, 3)


def picture_tokens(
    x: Tensor, reference: Tensor | None, picture: float, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Latents (B, C, h, w) as tokens, followed by a reference's of the same size if there is one, and their positions.

    Parameters
    ----------
    picture
        First coordinate of the reference's positions, by which it is told from the picture itself, whose is 0.
    """
    rows, cols = x.shape[2] // PATCH, x.shape[3] // PATCH
    tokens, positions = pack(x), position_ids(rows, cols, device)
    if reference is None:
        return tokens, positions
    beside = position_ids(rows, cols, device, picture)
    return torch.cat([tokens, pack(reference.to(x))], dim=1), torch.cat([positions, beside])


class FluxDenoiser(FlowDenoiser):
    """A transformer and a VAE of FLUX.1.

    Takes what `FlowDenoiser` takes, with a ``diffusers.FluxTransformer2DModel``.
    """

    _adapter: Adapter | None = None

    def adapted(self, adapter: Adapter, facts: AdapterFacts) -> FluxDenoiser:
        """The same model, attending to what ``adapter`` makes of DINO tokens as it does to text.

        Where gradients are asked for, activations are computed again on the way back: those of 57 blocks fill a GPU.
        """
        self._core.enable_gradient_checkpointing()
        other = copy.copy(self)
        other._adapter, other._description = adapter, facts.applied_to(self._description)
        return other

    def _answer(self, x: Tensor, sigma: float, text: Embeddings, conditioning: Conditioning) -> Tensor:
        """The velocity ``noise - x0`` that the transformer was trained on."""
        batch, _, h, w = x.shape
        device = self.device
        rows, cols = h // PATCH, w // PATCH
        tokens, positions = picture_tokens(x, conditioning.reference, REFERENCE, device)
        prompt = self._prompt(text, conditioning, batch)
        context = lay_out(prompt, adapted(conditioning.dino, self._adapter, device), (rows, cols))
        attention: dict[str, Any] = dict(context.attention(len(positions)))
        if (seen := self._image(conditioning, "image_embeds", batch)) is not None:
            attention["ip_adapter_image_embeds"] = [seen]
        velocity: Tensor = self._core(
            hidden_states=self._place.put(tokens),
            timestep=torch.full((batch,), sigma, device=device),
            guidance=torch.full((batch,), self._scale(conditioning), device=device)
            if self._description.guidance == "embedded"
            else None,
            pooled_projections=self._text(text, "pooled_prompt_embeds", batch),
            encoder_hidden_states=context.tokens,
            txt_ids=context.positions,
            img_ids=positions,
            joint_attention_kwargs=attention,
            return_dict=False,
            **self._controlled(x, sigma, text, conditioning),
        )[0]
        return unpack(velocity[:, : rows * cols].float(), h, w)

    def _prompt(self, text: Embeddings, conditioning: Conditioning, batch: int) -> Tensor:
        """The prompt's tokens, and an image prompt's behind them."""
        tokens = self._text(text, "prompt_embeds", batch)
        seen = self._image(conditioning, "image_tokens", batch)
        return tokens if seen is None else torch.cat([tokens, seen], dim=1)

    def _controlled(
        self, x: Tensor, sigma: float, text: Embeddings, conditioning: Conditioning
    ) -> dict[str, Any]:
        """What a ControlNet adds in the transformer's blocks. It reads the prompt and no DINO tokens."""
        control = self._acting(conditioning, sigma)
        if control is None or self._controlnet is None:
            return {}
        network, place = self._controlnet.model, self._controlnet.place
        batch, _, h, w = x.shape
        prompt = place.put(self._prompt(text, conditioning, batch))
        by_pixels = network.input_hint_block is not None
        double, single = network(
            hidden_states=place.put(pack(x)),
            controlnet_cond=place.put(control.pixels * 2 - 1 if by_pixels else pack(control.latents)),
            conditioning_scale=control.scale,
            timestep=torch.full((batch,), sigma, device=self.device),
            guidance=torch.full((batch,), self._scale(conditioning), device=self.device)
            if network.config.guidance_embeds
            else None,
            pooled_projections=place.put(self._text(text, "pooled_prompt_embeds", batch)),
            encoder_hidden_states=prompt,
            txt_ids=torch.zeros(prompt.shape[1], 3, device=self.device),
            img_ids=position_ids(h // PATCH, w // PATCH, self.device),
            return_dict=False,
        )
        return {
            "controlnet_block_samples": _put(double, self._place),
            "controlnet_single_block_samples": _put(single, self._place),
            "controlnet_blocks_repeat": by_pixels,
        }


def _put(samples: Sequence[Tensor] | None, place: Place) -> list[Tensor] | None:
    return None if samples is None else [place.put(sample) for sample in samples]


def build(loaded: Loaded, configs: Configs, description: Description) -> FluxDenoiser:
    """A FLUX.1 model of its loaded parts."""
    return FluxDenoiser.of(loaded, configs, description)
