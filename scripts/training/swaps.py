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


def swap_auc(features: Features, patch: int, seed: int, pictures: int = 40, side_patches: int = 18) -> float:
    """Area under the ROC curve of ``1 - cosine`` for telling swapped patches from kept ones.

    Each picture is compared with itself reduced ×2 with accidents and enlarged again, in which a fifth of the
    patches have changed places with one another.
    """
    scores, labels = [], []
    for i in range(pictures):
        side = side_patches * patch
        sharp = picture(seed, i, side)
        rng = np.random.default_rng((seed, i, 2))
        small = torch.from_numpy(reduce_somehow(sharp, rng)).permute(2, 0, 1)[None].float() / 255
        soft = F.interpolate(small, (side, side), mode="bicubic").clamp(0, 1)
        swapped = _swap(soft, patch, rng)
        reference = torch.from_numpy(sharp).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            cosine = F.cosine_similarity(features(reference), features(soft), dim=-1)
        scores.append((1 - cosine).flatten().numpy())
        labels.append(swapped)
    return _auc(np.concatenate(scores), np.concatenate(labels))


def _swap(image: Tensor, patch: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Rotate a random fifth of ``image``'s patches among themselves, in place; returns which."""
    cols = image.shape[3] // patch
    n = cols * (image.shape[2] // patch)
    chosen = rng.choice(n, int(SWAPPED_SHARE * n), replace=False)
    before = image.clone()
    for to, source in zip(chosen, np.roll(chosen, 1), strict=True):
        (r, c), (rs, cs) = divmod(int(to), cols), divmod(int(source), cols)
        image[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch] = before[
            :, :, rs * patch : (rs + 1) * patch, cs * patch : (cs + 1) * patch
        ]
    labels = np.zeros(n, bool)
    labels[chosen] = True
    return labels


def _auc(scores: NDArray[np.float32], labels: NDArray[np.bool_]) -> float:
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    positives = int(labels.sum())
    return float(
        (ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))
    )
