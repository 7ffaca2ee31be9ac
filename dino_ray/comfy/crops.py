"""ComfyUI's conditioning, of a whole picture, made that of one tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dino_ray.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Place = tuple[float, float, float, float]
"""A tile's (x, y, w, h) as parts of the picture; may reach beyond it."""

UNTILED = {
    "gligen": "GLIGEN boxes",
    "reference_latents": "reference latents",
    "concat_latent_image": "the latents of an inpaint or edit model",
    "concat_mask": "the mask of an inpaint model",
    "noise_concat": "an extra image for the model",
    "unclip_conditioning": None,
}
"""What conditioning can hold that lies over the picture and can't be cut out of it; None: holds for each part."""


def check(conditioning: Any, name: str) -> None:
    """Refuse conditioning that can't be cut into tiles.

    Raises
    ------
    UsageError
        Names the input and what it holds.
    """
    if not conditioning:
        raise UsageError(f"{name}: is empty; connect a text encoder's conditioning")
    for _, options in conditioning:
        for key, what in UNTILED.items():
            if what is not None and key in options:
                raise UsageError(
                    f"{name}: holds {what}, which can't be cut into tiles; connect plain conditioning"
                )


def for_tile(conditioning: Any, place: Place, size: tuple[int, int], *, closed: bool) -> list[list[Any]]:
    """Conditioning as one tile needs it: control images and masks cropped, areas where they lie on it.

    Parameters
    ----------
    conditioning
        As ComfyUI passes it: pairs of embeddings and options.
    size
        Width and height of the tile, canvas_px.
    closed
        The left and right edge of the picture meet.
    """
    made: dict[int, Any] = {}
    tile = []
    for embeddings, options in conditioning:
        own = dict(options)
        if "control" in own:
            own["control"] = _control(own["control"], place, size, closed, made)
        if own.get("mask") is not None:
            mask = own["mask"].reshape(-1, 1, *own["mask"].shape[-2:])
            own["mask"] = cropped(mask, place, size, closed=closed)[:, 0]
        if "area" in own:
            area = _area(own["area"], place, size)
            if area is None:
                continue
            own["area"] = area
        tile.append([embeddings, own])
    # What holds for other parts only says nothing of this one, and a model has to be told something.
    return tile or [[embeddings, _everywhere(options)] for embeddings, options in conditioning[:1]]


def cropped(image: Tensor, place: Place, size: tuple[int, int], *, closed: bool = False) -> Tensor:
    """What of an image (B, C, H, W) lies over a tile, as (B, C, h, w) of its ``size`` (w, h).

    Bilinear, the samples themselves where the image has the canvas's size; edges are replicated.
    """
    import torch

    for axis, (start, extent, count) in enumerate(
        ((place[1], place[3], size[1]), (place[0], place[2], size[0]))
    ):
        length = image.shape[2 + axis]
        at = (start + extent * (torch.arange(count, dtype=torch.float64) + 0.5) / count) * length - 0.5
        below = at.round() if bool((at - at.round()).abs().max() < 1e-4) else at.floor()
        share = (at - below).clamp(0, 1).to(image.dtype).to(image.device)
        share = share.view(-1, 1) if axis == 0 else share
        first, second = below.long(), below.long() + 1
        if closed and axis == 1:
            first, second = first % length, second % length
        first, second = (each.clamp(0, length - 1).to(image.device) for each in (first, second))
        one, other = image.index_select(2 + axis, first), image.index_select(2 + axis, second)
        image = one + share * (other - one) if bool((share > 1e-4).any()) else one
    return image


def _control(control: Any, place: Place, size: tuple[int, int], closed: bool, made: dict[int, Any]) -> Any:
    """A ControlNet with its image cropped, and those before it; one that several conditionings share stays one."""
    if id(control) not in made:
        own = control.copy()
        if (hint := control.cond_hint_original) is not None:
            own.cond_hint_original = cropped(hint, place, size, closed=closed)
        extra = getattr(control, "extra_concat_orig", [])
        if extra:
            own.extra_concat_orig = [cropped(each, place, size, closed=closed) for each in extra]
        if control.previous_controlnet is not None:
            own.set_previous_controlnet(_control(control.previous_controlnet, place, size, closed, made))
        made[id(control)] = own
    return made[id(control)]


def _area(area: tuple[Any, ...], place: Place, size: tuple[int, int]) -> tuple[Any, ...] | None:
    """An area of the picture as one of a tile, in parts of it; None: they do not touch.

    ComfyUI has areas as ``("percentage", h, w, y, x)``, or ``(h, w, y, x)`` in eighths of pixels of the picture.
    """
    x, y, w, h = place
    if area[0] == "percentage":
        _, ah, aw, ay, ax = area
    else:
        canvas_w, canvas_h = size[0] / w / 8, size[1] / h / 8
        ah, aw, ay, ax = area[0] / canvas_h, area[1] / canvas_w, area[2] / canvas_h, area[3] / canvas_w
    left, top = max(ax, x), max(ay, y)
    right, bottom = min(ax + aw, x + w), min(ay + ah, y + h)
    if right - left <= 0 or bottom - top <= 0:
        return None
    return ("percentage", (bottom - top) / h, (right - left) / w, (top - y) / h, (left - x) / w)


def _everywhere(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in options.items() if name not in ("area", "mask", "control", "strength")
    }
