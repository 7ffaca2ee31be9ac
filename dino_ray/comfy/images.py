"""ComfyUI's images and masks as arrays that a job takes, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dino_ray.errors import UsageError

COLOURS = (1, 3, 4)
"""Channels of an IMAGE: grey, RGB, RGB with alpha."""

_EXACT = 1e-4
"""How near to whole levels of 255 all samples must be for an image to count as one of 8 bits. Between 16-bit levels
lies 1/257."""


def to_arrays(image: Any, mask: Any = None) -> list[np.ndarray]:
    """Each image of a batch.

    Parameters
    ----------
    image
        IMAGE: (B, H, W, C) float in [0, 1].
    mask
        MASK: (B or 1, H, W) float, 1 where transparent, as the nodes that load images make it; or None.

    Returns
    -------
    list
        Of each (H, W, 1, 3 or 4): uint8 where all samples are whole levels of 255, as those of most files are; else
        uint16.

    Raises
    ------
    UsageError
        Where it is no such batch, or holds what is no number.
    """
    import torch

    if isinstance(image, list | tuple):
        sizes = {tuple(each.shape[-3:-1]) for each in image}
        if len(sizes) > 1:
            said = ", ".join(f"{w} x {h}" for h, w in sorted(sizes))
            raise UsageError(
                f"image: its batch is of mixed sizes ({said} px); connect one batch for each size"
            )
        image = torch.cat(list(image))
    if image is None or image.ndim != 4 or image.shape[-1] not in COLOURS or 0 in image.shape:
        raise UsageError("image: is no batch of images with 1, 3 or 4 channels; connect an IMAGE")
    image = image.detach().float().cpu()
    if not bool(torch.isfinite(image).all()):
        raise UsageError(
            "image: holds samples that are no number (NaN or infinite); look at the node that made it"
        )
    if mask is not None:
        mask = mask.detach().float().cpu().reshape(-1, *mask.shape[-2:])
        if tuple(mask.shape[1:]) != tuple(image.shape[1:3]) or len(mask) not in (1, len(image)):
            raise UsageError(
                f"mask: is {mask.shape[2]} x {mask.shape[1]} px of {len(mask)}, the image {image.shape[2]} x "
                f"{image.shape[1]} px of {len(image)}; connect one of the same size"
            )
        if not bool(torch.isfinite(mask).all()):
            raise UsageError("mask: holds samples that are no number (NaN or infinite)")
        alpha = (1 - mask).expand(len(image), -1, -1)[..., None]
        colours = image[..., :3].expand(-1, -1, -1, 3)
        image = torch.cat([colours, alpha], dim=-1)
    return [_whole_levels(each) for each in image.clamp(0, 1).numpy()]


def _whole_levels(pixels: np.ndarray) -> np.ndarray:
    levels = pixels * np.float32(255)
    rounded = np.rint(levels)
    if float(np.abs(levels - rounded).max()) < _EXACT * 255:
        return rounded.astype(np.uint8)
    return np.rint(pixels * np.float32(65535)).astype(np.uint16)


def to_image(arrays: Sequence[np.ndarray]) -> tuple[Any, Any]:
    """Results as one IMAGE, (B, H, W, 3) float32 in [0, 1], and the MASK of what is transparent in it, (B, H, W)."""
    import torch

    scaled = [each.astype(np.float32) / np.float32(np.iinfo(each.dtype).max) for each in arrays]
    batch = torch.from_numpy(np.stack([each if each.ndim == 3 else each[..., None] for each in scaled]))
    mask = 1 - batch[..., 3] if batch.shape[-1] == 4 else torch.zeros(batch.shape[:3])
    return batch[..., :3].expand(-1, -1, -1, 3).contiguous(), mask


def from_pictures(pictures: Sequence[Any]) -> Any:
    """PIL images as one IMAGE; smaller ones are filled up below and to the right with black."""
    import torch

    arrays = [np.asarray(picture.convert("RGB"), np.float32) / np.float32(255) for picture in pictures]
    h, w = (max(each.shape[axis] for each in arrays) for axis in (0, 1))
    filled = [np.pad(a, ((0, h - a.shape[0]), (0, w - a.shape[1]), (0, 0))) for a in arrays]
    return torch.from_numpy(np.stack(filled))
