"""The bundled model as a ``Denoiser``: FLUX's transformer, DINO tokens where its text tokens would be."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from dino_ray.diffusion.adapter import Adapter, adapted
from dino_ray.diffusion.adapter_file import AdapterFacts
from dino_ray.diffusion.bundled.latents import BlockDct
from dino_ray.diffusion.bundled.spec import Spec
from dino_ray.diffusion.context import lay_out
from dino_ray.diffusion.denoiser import Conditioning, Description, DinoTokens
from dino_ray.diffusion.families.flow_schedule import PATCH
from dino_ray.diffusion.families.flux import pack, position_ids, unpack
from dino_ray.errors import UsageError


class BundledDenoiser:
    """A small ``FluxTransformer2DModel`` over `BlockDct` latents, speaking the ``Denoiser`` protocol.

    It restores rather than dreams: noise level ``sigma0`` *is* the base, as it comes from the upsampler and
    without noise; what lies above adds real noise, what lies below corrects proportionally less.

    Parameters
    ----------
    transformer : diffusers.FluxTransformer2DModel
    spec : Spec
    """

    def __init__(self, transformer: Any, spec: Spec) -> None:
        self._transformer = transformer
        self._spec = spec
        self._description = spec.description()
        self._adapter: Adapter | None = None
        device = self.device
        mean, std = (torch.tensor(v, device=device) for v in (spec.latent_mean, spec.latent_std))
        self.latents = BlockDct(spec.latent_scale, mean, std)

    @property
    def description(self) -> Description:
        return self._description

    @property
    def device(self) -> torch.device:
        return torch.device(self._transformer.device)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to latents (B, 12, H / 2, W / 2)."""
        return self.latents.encode(pixels.to(self.device, torch.float32))

    def decode(self, latents: Tensor) -> Tensor:
        """The exact inverse of `encode`; not clipped."""
        return self.latents.decode(latents)

    def sketch(self, latents: Tensor) -> Tensor:
        """`decode`: it is linear, and costs nothing."""
        return self.decode(latents)

    def sigmas(self, denoise: float, steps: int, size: tuple[int, int]) -> Tensor:
        """Evenly spaced, from ``denoise`` in (0, 1] to 0."""
        levels = [denoise * (steps - i) / steps for i in range(steps + 1)]
        return torch.tensor(levels, dtype=torch.float32)

    def noised(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Only what of ``sigma`` exceeds ``sigma0`` is noise: at ``sigma0`` the base itself is the start."""
        return latents + max(0.0, sigma - self._spec.sigma0) * noise

    def sampling(self) -> AbstractContextManager[None]:
        """It keeps nothing between steps."""
        return nullcontext()

    def predict(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """x0 = x - sigma · v, v being what the transformer sees between the picture and ``x``.

        Raises
        ------
        ValueError
            Where the conditioning is not what the description asks for.
        """
        if conditioning.text or conditioning.cfg is not None:
            raise ValueError(f"{self._spec.name} takes neither text nor a guidance scale")
        levels = torch.full((len(x),), sigma, device=self.device)
        return x - sigma * self.velocity(x, levels, conditioning.dino)

    def save_memory(self) -> str | None:
        """Nothing: it has no VAE, and its transformer is small."""
        return None

    def adapted(self, adapter: Adapter, facts: AdapterFacts) -> BundledDenoiser:
        """The same model, with what ``adapter`` makes of DINO tokens in the place of the tokens themselves."""
        other = copy.copy(self)
        other._adapter, other._description = adapter, facts.applied_to(self._description)
        return other

    def velocity(self, x: Tensor, sigmas: Tensor, dino: DinoTokens | None) -> Tensor:
        """What the transformer says at ``x`` (B, C, h, w) and noise levels ``sigmas`` (B,); float32."""
        batch, _, h, w = x.shape
        dtype, device = self._transformer.dtype, self.device
        rows, cols = h // PATCH, w // PATCH
        dino = adapted(dino, self._adapter, device)
        no_text = torch.zeros(batch, 0, self._spec.dino_dim, device=device, dtype=dtype)
        context = lay_out(no_text, dino, (rows, cols))
        velocity: Tensor = self._transformer(
            hidden_states=pack(x).to(device, dtype),
            timestep=sigmas,
            pooled_projections=self._pooled(dino, batch).to(dtype),
            encoder_hidden_states=context.tokens,
            txt_ids=context.positions,
            img_ids=position_ids(rows, cols, device),
            joint_attention_kwargs=context.attention(rows * cols),
            return_dict=False,
        )[0]
        return unpack(velocity.float(), h, w)

    def _pooled(self, dino: DinoTokens | None, batch: int) -> Tensor:
        """(B, width): the tokens' mean, scaled by strength so that strength 0 and no tokens are one and the same."""
        if dino is None:
            return torch.zeros(batch, self._spec.dino_dim, device=self.device)
        return dino.strength * dino.features.flatten(1, 2).mean(1)


def load_model(spec: Spec, device: str, dtype: str) -> BundledDenoiser:
    """Load the transformer that belongs to ``spec``; frozen, for inference.

    Raises
    ------
    UsageError
        Its weights are missing or do not fit.
    """
    from diffusers import FluxTransformer2DModel

    try:
        transformer = FluxTransformer2DModel.from_pretrained(
            spec.transformer,
            torch_dtype=getattr(torch, dtype),
            use_safetensors=True,
            low_cpu_mem_usage=False,
            local_files_only=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"--model {spec.folder}: its transformer cannot be loaded ({reason}); make it anew with"
            " scripts/train_bundled.py"
        ) from error
    return BundledDenoiser(transformer.eval().requires_grad_(False).to(device), spec)
