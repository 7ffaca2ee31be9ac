"""What a FLUX transformer attends to beside the picture itself: text tokens, then DINO tokens laid over the tile."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dino_ray.diffusion.denoiser import DinoTokens

DINO_AXIS = 1.0
"""First rotary coordinate of DINO tokens; image and text tokens have 0, so that attention can tell them apart."""


@dataclass(frozen=True)
class Context:
    """The sequence that comes before the image tokens, in a transformer's own terms."""

    tokens: Tensor
    """(B, text + DINO tokens, width)."""
    positions: Tensor
    """(text + DINO tokens, 3) float32 for the rotary embedding: (0, 0, 0) of text; of DINO tokens ``DINO_AXIS`` and
    their place among the image tokens."""
    bias: Tensor | None
    """(text + DINO tokens,) float32, added to the attention logits of these keys; None: nothing is."""

    def attention(self, image_tokens: int) -> dict[str, Tensor]:
        """``joint_attention_kwargs`` of a FLUX transformer over so many image tokens."""
        if self.bias is None:
            return {}
        keys = torch.cat([self.bias, self.bias.new_zeros(image_tokens)])
        return {"attention_mask": keys.to(self.tokens.dtype).view(1, 1, 1, -1)}


def lay_out(text: Tensor, dino: DinoTokens | None, grid: tuple[int, int]) -> Context:
    """Text and DINO tokens as one sequence.

    Parameters
    ----------
    text
        (B, tokens, width), of the transformer's dtype and device; 0 tokens where it takes no text.
    dino
        Features of the same width. They attend and are attended to like text, at the place in the tile where they
        belong, with ``log(strength)`` on their logits: as strength goes to 0, so does what is read of them.
    grid
        (rows, cols) of image tokens, over which the DINO tokens are spread evenly.

    Raises
    ------
    ValueError
        Where the features are of another width.
    """
    words, width = text.shape[1:]
    if dino is None:
        return Context(text, torch.zeros(words, 3, device=text.device), None)
    _, rows, cols, channels = dino.features.shape
    if channels != width:
        raise ValueError(f"DINO tokens of {channels} channels; the model was trained on {width}")
    positions = torch.zeros(rows, cols, 3, device=text.device)
    positions[..., 0] = DINO_AXIS
    positions[..., 1] = _centres(rows, grid[0], text.device)[:, None]
    positions[..., 2] = _centres(cols, grid[1], text.device)[None, :]
    bias = None
    if dino.strength != 1.0:
        bias = torch.zeros(words + rows * cols, device=text.device)
        bias[words:] = math.log(dino.strength)
    return Context(
        tokens=torch.cat([text, dino.features.flatten(1, 2).to(text)], dim=1),
        positions=torch.cat([torch.zeros(words, 3, device=text.device), positions.reshape(-1, 3)]),
        bias=bias,
    )


def _centres(tokens: int, extent: int, device: torch.device) -> Tensor:
    """Centres of ``tokens`` equal spans over ``extent`` image tokens, in the units of their positions."""
    return (torch.arange(tokens, device=device) + 0.5) * extent / tokens - 0.5
