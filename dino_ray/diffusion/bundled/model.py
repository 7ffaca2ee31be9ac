"""The bundled model as a ``Denoiser``: FLUX's transformer, DINO tokens where its text tokens would be."""

from __future__ import annotations

import math
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from dino_ray.diffusion.bundled.latents import BlockDct
from dino_ray.diffusion.bundled.spec import Spec
from dino_ray.diffusion.denoiser import Conditioning, Description, DinoTokens
from dino_ray.diffusion.families.flux import pack, position_ids, unpack
from dino_ray.diffusion.families.flux_config import PATCH
from dino_ray.errors import UsageError

DINO_AXIS = 1.0
"""First rotary coordinate of DINO tokens; image tokens have 0, so that attention can tell the two apart."""


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
        device = self.device
        mean, std = (torch.tensor(v, device=device) for v in (spec.latent_mean, spec.latent_std))
        self.latents = BlockDct(spec.latent_scale, mean, std)

    @property
    def description(self) -> Description:
        return self._spec.description()

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

    def velocity(self, x: Tensor, sigmas: Tensor, dino: DinoTokens | None) -> Tensor:
        """What the transformer says at ``x`` (B, C, h, w) and noise levels ``sigmas`` (B,); float32."""
        h, w = x.shape[2:]
        dtype = self._transformer.dtype
        rows, cols = h // PATCH, w // PATCH
        context = _Context.of(dino, len(x), (rows, cols), self._spec.dino_dim, self.device)
        velocity: Tensor = self._transformer(
            hidden_states=pack(x).to(self.device, dtype),
            timestep=sigmas,
            pooled_projections=context.pooled.to(dtype),
            encoder_hidden_states=context.tokens.to(dtype),
            txt_ids=context.positions,
            img_ids=position_ids(rows, cols, self.device),
            joint_attention_kwargs=context.attention(rows * cols, dtype),
            return_dict=False,
        )[0]
        return unpack(velocity.float(), h, w)


class _Context:
    """DINO tokens in the place of FLUX's text: a sequence, its positions, a pooled vector, and a bias."""

    def __init__(self, tokens: Tensor, positions: Tensor, pooled: Tensor, strength: float) -> None:
        self.tokens, self.positions, self.pooled, self._strength = tokens, positions, pooled, strength

    @classmethod
    def of(
        cls, dino: DinoTokens | None, batch: int, grid: tuple[int, int], dim: int, device: torch.device
    ) -> _Context:
        """``grid``: (rows, cols) of image tokens, over which the DINO tokens are spread evenly."""
        if dino is None:
            empty = torch.zeros(batch, 0, dim, device=device)
            return cls(empty, torch.zeros(0, 3, device=device), torch.zeros(batch, dim, device=device), 1.0)
        if dino.features.shape[-1] != dim:
            raise ValueError(
                f"DINO tokens of {dino.features.shape[-1]} channels; the model was trained on {dim}"
            )
        features = dino.features.to(device, torch.float32)
        rows, cols = features.shape[1:3]
        positions = torch.zeros(rows, cols, 3, device=device)
        positions[..., 0] = DINO_AXIS
        positions[..., 1] = _centres(rows, grid[0], device)[:, None]
        positions[..., 2] = _centres(cols, grid[1], device)[None, :]
        tokens = features.flatten(1, 2)
        # Scaled by strength so that strength 0 and no tokens are one and the same.
        return cls(tokens, positions.reshape(-1, 3), dino.strength * tokens.mean(1), dino.strength)

    def attention(self, image_tokens: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """For the attention processors: ``log(strength)`` on the logits of DINO keys, which come first."""
        if self._strength == 1.0 or self.tokens.shape[1] == 0:
            return {}
        bias = torch.zeros(self.tokens.shape[1] + image_tokens, device=self.tokens.device, dtype=dtype)
        bias[: self.tokens.shape[1]] = math.log(self._strength)
        return {"attention_mask": bias.view(1, 1, 1, -1)}


def _centres(tokens: int, extent: int, device: torch.device) -> Tensor:
    """Centres of ``tokens`` equal spans over ``extent`` image tokens, in the units of their positions."""
    return (torch.arange(tokens, device=device) + 0.5) * extent / tokens - 0.5


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
