"""How much memory a DINO model takes while it guides: its weights, and the activations that a gradient needs. No torch.

Counted on the meta device for DINOv2's four sizes, with attention as guidance computes it; the constants give 0.97 to
1.1 of what was counted.
"""

from __future__ import annotations

FLOAT_BYTES = 4
"""DINO runs in float32."""
HEAD_WIDTH = 64
"""Channels of an attention head, in all published sizes."""
LAYERS = {384: 12, 768: 12, 1024: 24, 1280: 32, 1536: 40, 4096: 40}
"""Of the published sizes, by width."""
TYPICAL_LAYERS = 12
WINDOW_SIDE = 518
"""px: as of ``extract``, which imports torch."""

PAIR_COPIES = 1.25
"""Matrices of all pairs of tokens that a layer keeps for the gradient, with what it passes through at the end."""
TOKEN_COPIES = 9.0
"""Sets of tokens that a layer keeps."""


def weight_bytes(dim: int) -> int:
    """Of a vision transformer of that width: twelve matrices of ``dim`` × ``dim`` a layer."""
    return 12 * dim * dim * LAYERS.get(dim, TYPICAL_LAYERS) * FLOAT_BYTES


def guide_bytes(dim: int, patch: int, width: int, height: int) -> int:
    """What is kept for the gradient through all windows of a tile of ``width`` × ``height`` px."""
    side = WINDOW_SIDE // patch
    windows, tokens = 1, 1
    for length in (width, height):
        patches = -(-(length + patch // 2) // patch)  # a lattice may begin half a patch before the tile
        windows *= -(-patches // side)
        tokens *= min(patches, side)
    heads = max(1, dim // HEAD_WIDTH)
    layer = PAIR_COPIES * heads * tokens**2 + TOKEN_COPIES * tokens * dim
    return int(windows * LAYERS.get(dim, TYPICAL_LAYERS) * layer * FLOAT_BYTES)
