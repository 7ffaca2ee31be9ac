"""How well features find patches that were swapped: the figure that DINO weights are judged by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.degrade import reduce_somehow
from training.images import picture

SWAPPED_SHARE = 0.2
Features = Callable[[Tensor], Tensor]
"""(1, 3, H, W) in [0, 1] to (1, rows, cols, dim)."""


def raw_pixels(patch: int) -> Features:
    """The patches themselves, mean removed: what features have to beat."""

    def features(pixels: Tensor) -> Tensor:
        _, _, h, w = pixels.shape
        tokens = F.unfold(pixels - 0.5, patch, stride=patch).transpose(1, 2)
        return tokens.reshape(1, h // patch, w // patch, -1)

    return features


def swap_auc(
    features: Features,
    patch: int,
    seed: int,
    *,
    neighbours: bool = False,
    pictures: int = 24,
    side_patches: int = 18,
) -> float:
    """Area under the ROC curve of ``1 - cosine`` for telling swapped patches from kept ones.

    Each picture is compared with itself reduced ×2 with accidents and enlarged again, in which a fifth of the
    patches have changed places: with any others, or, much harder to see, with the ``neighbours`` at their right.
    """
    scores, labels = [], []
    for i in range(pictures):
        side = side_patches * patch
        sharp = picture(seed, i, side)
        rng = np.random.default_rng((seed, i, 2))
        reference, small = (_tensor(p) for p in (sharp, reduce_somehow(sharp, rng)))
        soft = F.interpolate(small, (side, side), mode="bicubic").clamp(0, 1)
        moves = _neighbour_moves(side_patches, rng) if neighbours else _far_moves(side_patches, rng)
        with torch.inference_mode():
            cosine = F.cosine_similarity(
                features(reference), features(_moved(soft, moves, side_patches)), dim=-1
            )
        scores.append((1 - cosine).flatten().numpy())
        labels.append(moves != np.arange(len(moves)))
    return _auc(np.concatenate(scores), np.concatenate(labels))


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]


def _far_moves(side: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """(side²,): which patch comes to each place; a random fifth goes round among itself."""
    moves = np.arange(side * side)
    chosen = rng.choice(len(moves), int(SWAPPED_SHARE * len(moves)), replace=False)
    moves[chosen] = np.roll(chosen, 1)
    return moves


def _neighbour_moves(side: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """As `_far_moves`, of pairs side by side."""
    moves = np.arange(side * side).reshape(side, side // 2, 2)
    chosen = rng.random((side, side // 2)) < SWAPPED_SHARE
    moves[chosen] = moves[chosen][:, ::-1]
    return moves.ravel()


def _moved(image: Tensor, moves: NDArray[np.intp], side: int) -> Tensor:
    """``image``, of ``side`` × ``side`` patches, with the patches rearranged."""
    patch = image.shape[-1] // side
    patches = F.unfold(image, patch, stride=patch)[:, :, torch.from_numpy(moves)]
    return F.fold(patches, image.shape[-2:], patch, stride=patch)


def _auc(scores: NDArray[np.float32], labels: NDArray[np.bool_]) -> float:
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    positives = int(labels.sum())
    return float(
        (ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))
    )
