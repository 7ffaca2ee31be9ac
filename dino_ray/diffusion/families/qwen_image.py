"""Qwen-Image and its editors as ``Denoiser`` (Wu et al. 2025, arXiv:2508.02324)."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_ray.diffusion.denoiser import Conditioning, Description, Embeddings
from dino_ray.diffusion.families.family import Configs
from dino_ray.diffusion.families.flow_denoiser import FlowDenoiser
from dino_ray.diffusion.families.flow_schedule import PATCH
from dino_ray.diffusion.families.flux import pack, unpack
from dino_ray.diffusion.families.latent_denoiser import Loaded
from dino_ray.diffusion.families.qwen_image_text import encode_text
from dino_ray.diffusion.vae import QwenImageVae

__all__ = ["QwenImageDenoiser", "build", "encode_text"]


class QwenImageDenoiser(FlowDenoiser):
    """A transformer and a VAE of Qwen-Image, or of one of its editors, whose reference is the tile's base."""

    vae_class = QwenImageVae

    def _answer(self, x: Tensor, sigma: float, text: Embeddings, conditioning: Conditioning) -> Tensor:
        """The velocity ``noise - x0`` that the transformer was trained on."""
        batch, _, h, w = x.shape
        rows, cols = h // PATCH, w // PATCH
        reference = conditioning.reference
        pictures = [x] if reference is None else [x, reference]
        counts = self._text(text, "prompt_embeds_mask", batch)
        velocity: Tensor = self._core(
            hidden_states=self._place.put(torch.cat([pack(picture) for picture in pictures], dim=1)),
            timestep=torch.full((batch,), sigma, device=self.device),
            encoder_hidden_states=self._text(text, "prompt_embeds", batch),
            # Where there is no padding, faster kinds of attention that know no mask may serve.
            encoder_hidden_states_mask=None if counts.all() else counts,
            img_shapes=[[(1, rows, cols)] * len(pictures)] * batch,
            return_dict=False,
        )[0]
        return unpack(velocity[:, : rows * cols].float(), h, w)

    def _guided(self, answer: Tensor, negative: Tensor, scale: float) -> Tensor:
        """Each token at the length that it had without guidance."""
        plain, guided = pack(answer), pack(super()._guided(answer, negative, scale))
        kept = plain.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        return unpack(guided * kept, *answer.shape[2:])


def build(loaded: Loaded, configs: Configs, description: Description) -> QwenImageDenoiser:
    """A Qwen-Image model of its loaded parts."""
    return QwenImageDenoiser.of(loaded, configs, description)
