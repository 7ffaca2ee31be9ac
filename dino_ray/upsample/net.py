"""The bundled conv net that enlarges ×2: the only module of this package that imports torch.

A plain residual net at the input's resolution (EDSR, Lim et al. 2017, arXiv:1707.02921, made small) whose
sub-pixel shuffle (Shi et al. 2016, arXiv:1609.05158) adds to a Lanczos enlargement what that one misses.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dino_ray.errors import UsageError
from dino_ray.plan.geometry import Rect, Scaling
from dino_ray.upsample.lanczos import SUPPORT, Array, Lanczos, kernel

FACTOR = 2
WEIGHTS = Path(__file__).parent / "weights"
CLEAN, WORN = "clean.safetensors", "worn.safetensors"
"""The net for clean sources, and the one that takes out noise, blur and blocks besides."""
CLEAN_WAYS, WORN_WAYS = (0, 5), (0, 1, 2, 3)
"""How each net is asked about a picture: turned by so many quarters, from 4 on mirrored as well; what it says is
averaged ("self-ensemble" in EDSR). Each way costs what the first does; two gain 0.12 dB over one on clean sources,
four 0.04 dB on worn ones, in the mean of four photographs at ×2 (``scripts/bench/ways.py``)."""
FORMAT = "dino_ray.base/2"
"""Written into the weights' metadata; weights of another format are refused."""
REMAKE = "make one with scripts/train_bundled.py"


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.relu(self.first(x)))
        return y + _middle(x, y)


class BaseNet(nn.Module):
    """RGB (B, 3, h, w) in [0, 1] to RGB (B, 3, 2h, 2w), not clipped.

    Edges are replicated for the Lanczos part and zero-padded for the learned one: cut ``2 * reach`` px off each
    side. After `tighten` they are cut off already, and nothing is computed for them.
    """

    taps: Tensor

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.width, self.blocks = width, blocks
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.tail = nn.Conv2d(width, 3 * FACTOR**2, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]
        self.register_buffer("taps", _lanczos_taps(), persistent=False)

    @property
    def reach(self) -> int:
        """How many input px away an output pixel looks."""
        return 2 * self.blocks + 2

    def tighten(self) -> None:
        """Pad no more: each layer's output is what it knows, and a tile costs a quarter less."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                part.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(x - 0.5)
        deep = self.body(shallow)
        detail = F.pixel_shuffle(self.tail(deep + _middle(shallow, deep)), FACTOR)
        return _middle(self.plain(x), detail) + detail

    def plain(self, x: Tensor) -> Tensor:
        """The Lanczos part alone, of the whole input."""
        padded = F.pad(x, (SUPPORT,) * 4, mode="replicate")
        return F.pixel_shuffle(F.conv2d(padded, self.taps, groups=3), FACTOR)


def _middle(x: Tensor, like: Tensor) -> Tensor:
    """What of (B, C, H, W) lies under a smaller map around the same centre."""
    y, x0 = ((a - b) // 2 for a, b in zip(x.shape[2:], like.shape[2:], strict=True))
    return x[:, :, y : x.shape[2] - y, x0 : x.shape[3] - x0]


def _lanczos_taps() -> Tensor:
    """(3 × 4, 1, 7, 7): each of the four output pixels of an input pixel, for each channel."""
    offsets = torch.arange(-SUPPORT, SUPPORT + 1, dtype=torch.float64)
    rows = []
    for phase in range(FACTOR):
        centre = (phase + 0.5) / FACTOR - 0.5
        taps = torch.from_numpy(kernel((offsets - centre).numpy()))
        rows.append(taps / taps.sum())
    grid = torch.stack([torch.outer(y, x) for y in rows for x in rows])
    return grid[:, None].repeat(3, 1, 1, 1).float()


def save_net(net: BaseNet, path: Path) -> None:
    """Write ``net``'s weights, and the shape to rebuild it by, as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: w.detach().float().cpu().contiguous() for name, w in net.state_dict().items()}
    metadata = {"format": FORMAT, "width": str(net.width), "blocks": str(net.blocks)}
    save_file(weights, path, metadata=metadata)


def read_net(path: Path) -> BaseNet:
    """Rebuild the net that :func:`save_net` wrote; on the CPU, in float32, for inference."""
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: no readable base net ({error}); {REMAKE}") from None
    if facts.get("format") != FORMAT:
        raise UsageError(f"{path}: not a base net of format {FORMAT}; {REMAKE}")
    net = BaseNet(int(facts["width"]), int(facts["blocks"]))
    net.load_state_dict(load_file(path))
    return net.eval().requires_grad_(False)


@dataclass(frozen=True)
class NetUpsampler:
    """The net as an `Upsampler`: ×2 as often as it takes, then Lanczos down to size.

    A scale of 2 or 4 is one or two passes of the net; 3 is two passes reduced to three quarters; 1 and less
    is Lanczos alone. Colours only: 1 channel (seen by the net three times over) or 3.
    """

    net: BaseNet
    device: torch.device
    worn: NetUpsampler | None = None
    """What enlarges worn sources; None: the same net."""
    ways: tuple[int, ...] = (0,)
    """As `CLEAN_WAYS`."""
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.net.tighten()

    def suited(self, worn: bool) -> NetUpsampler:
        """See :class:`~dino_ray.upsample.Upsampler`."""
        return self.worn if worn and self.worn is not None else self

    def halo(self, scaling: Scaling) -> int:
        """Source_px that a window needs around what it covers."""
        passes = _passes(scaling)
        if not passes:
            return Lanczos().halo(scaling)
        reach, unit = 0.0, 1.0
        for _ in range(passes):
            reach += self.net.reach * unit
            unit /= FACTOR
        if rest := _rest(scaling, passes):
            reach += (Lanczos().halo(rest) + 1) * unit
        return math.ceil(reach) + 1

    def __call__(self, window: Array, window_rect: Rect, rect: Rect, scaling: Scaling) -> Array:
        """See :class:`~dino_ray.upsample.Upsampler`."""
        passes = _passes(scaling)
        rest = _rest(scaling, passes)
        if rest is None:
            return self._enlarge(window, window_rect, rect, passes)
        lanczos = Lanczos()
        between = rest.source_window(rect, lanczos.halo(rest))
        enlarged = self._enlarge(window, window_rect, between, passes)
        return lanczos(enlarged, between, rect, rest)

    def _enlarge(self, window: Array, window_rect: Rect, rect: Rect, passes: int) -> Array:
        """``rect`` of the source enlarged by ``FACTOR**passes``, in px of that."""
        if passes == 0:
            return window[rect.shift(-window_rect.x, -window_rect.y).slices]
        before = _footprint(rect, self.net.reach)
        pixels = self._enlarge(window, window_rect, before, passes - 1)
        assert pixels.shape[:2] == (before.h, before.w), "the window is smaller than the halo asks for"
        known = before.pad(-self.net.reach)
        return self._pass(pixels)[rect.shift(-FACTOR * known.x, -FACTOR * known.y).slices]

    @torch.inference_mode()
    def _pass(self, pixels: Array) -> Array:
        channels = pixels.shape[2]
        assert channels in (1, 3)
        batch = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
        batch = batch.expand(1, 3, -1, -1).to(self.device).contiguous(memory_format=torch.channels_last)
        # One after the other, for their activations are large; added up in one order, so that tiles agree.
        answers = (_back(self.net(_turned(batch, way))[0], way) for way in self.ways)
        made = functools.reduce(torch.add, answers) / len(self.ways)
        if channels == 1:
            made = made.mean(0, keepdim=True)
        out: Array = made.permute(1, 2, 0).contiguous().cpu().numpy()
        return out


def load_net(device: str = "cpu", folder: Path = WEIGHTS) -> NetUpsampler:
    """Load both nets, the bundled ones or those that ``scripts/train_bundled.py`` wrote, onto ``device``, in float32.

    Raises
    ------
    UsageError
        A file is missing or no such net.
    """

    def upsampler(name: str, ways: tuple[int, ...], worn: NetUpsampler | None = None) -> NetUpsampler:
        net = read_net(folder / name).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return NetUpsampler(net, torch.device(device), worn, ways)

    return upsampler(CLEAN, CLEAN_WAYS, upsampler(WORN, WORN_WAYS))


def _turned(x: Tensor, way: int) -> Tensor:
    """(..., h, w), turned by ``way`` quarters, and from 4 on mirrored as well."""
    turned = torch.rot90(x, way % 4, (-2, -1))
    return (turned.flip(-1) if way >= 4 else turned).contiguous(memory_format=torch.channels_last)


def _back(x: Tensor, way: int) -> Tensor:
    """The inverse of `_turned`."""
    return torch.rot90(x.flip(-1) if way >= 4 else x, -(way % 4), (-2, -1))


def _passes(scaling: Scaling) -> int:
    """How often to double before the canvas's size is reached or passed on both axes."""
    factor, passes = max(scaling.factor_x, scaling.factor_y), 0
    while FACTOR**passes < factor:
        passes += 1
    return passes


def _rest(scaling: Scaling, passes: int) -> Scaling | None:
    """What is left to scale after ``passes``; None where that is nothing."""
    width, height = scaling.source_w * FACTOR**passes, scaling.source_h * FACTOR**passes
    if (width, height) == (scaling.canvas_w, scaling.canvas_h):
        return None
    return Scaling(width, height, scaling.canvas_w, scaling.canvas_h)


def _footprint(rect: Rect, reach: int) -> Rect:
    """The input px, before one pass, that the output px of ``rect`` depend on."""
    x, y = rect.x // FACTOR - reach, rect.y // FACTOR - reach
    x1, y1 = (rect.x1 - 1) // FACTOR + 1 + reach, (rect.y1 - 1) // FACTOR + 1 + reach
    return Rect(x, y, x1 - x, y1 - y)
