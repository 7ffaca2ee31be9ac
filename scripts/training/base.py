"""Stages ``base``, ``polish``, ``clean`` and ``worn``: the conv nets that enlarge ×2.

A draft, trained once more from there; then, deepened, it becomes two nets: one for clean sources, one for worn ones.
What is best for the one spoils the other: noise and blocks look like detail.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dino_ray.upsample.net import BaseNet, read_net, save_net
from training.loop import Moment, Stage, note, train
from training.muon import Muon
from training.pool import BICUBIC_SHARE, Pool

WIDTH, BLOCKS = 64, 6
"""The best of what ``scripts/bench/architectures.py`` compares, for a short training."""
DEEPENED = 10
"""Blocks of the nets that ship: more than a draft gains by, and than a short training teaches."""
PEAK_RATE, POLISH_RATE = 6e-3, 3e-3
HOLD = 0.65
"""Share of the draft's steps at its peak rate, before it falls."""
BATCH, CROP_PX = 8, 80
LATER_BATCH, LATER_CROP_PX = 6, 96
MARGIN_PX = 8
"""Left out of the loss on each side: there the net sees its own zero padding, which tiles never show it."""
AVERAGE_DECAY = 0.998
BF16_UNTIL = 0.9
"""Share of the steps computed in bfloat16 where that is fast; the rest settle the weights in float32."""
SQUARES_FROM = 0.75
"""From then on errors are squared, which are what PSNR counts (RLFN, arXiv:2205.07514)."""
CLEAN_SHARE, WORN_SHARE = 0.85, 0.15
"""Of each net's crops: plain bicubic reductions. Neither sees one kind alone: sources are told apart by measuring."""
TWICE_EVERY = 10
"""Each so many steps the net is given its own output to enlarge, as at ×4."""
TWICE_BATCH = 2

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601: an error that all colours share is seen most, and counts once more."""


def to_tensor(pixels: NDArray[np.generic]) -> Tensor:
    """(n, h, w, 3) of 0 to 255 to float32 (n, 3, h, w) in [0, 1], channels last in memory."""
    return torch.from_numpy(np.array(pixels, np.float32)).permute(0, 3, 1, 2).div_(255)


def train_base(stage: Stage, pool: Pool, out: Path, device: torch.device) -> None:
    """Train a net on ``pool`` from nothing and save its averaged weights as ``out``."""
    torch.manual_seed(stage.seed)
    _train(BaseNet(WIDTH, BLOCKS), stage, pool, out, device, Course(PEAK_RATE, HOLD, SQUARES_FROM))


def polish_base(stage: Stage, pool: Pool, draft: Path, out: Path, device: torch.device) -> None:
    """Train the net ``draft`` once more: a rate that rises and falls again finds better (SGDR, arXiv:1608.03983)."""
    _train(read_net(draft), stage, pool, out, device, Course(POLISH_RATE, 0, 1))


def specialize(stage: Stage, pool: Pool, polished: Path, out: Path, device: torch.device) -> None:
    """Deepen the net ``polished`` and train it for clean sources, or for worn ones, as the stage is called."""
    course = Course(
        POLISH_RATE,
        0,
        SQUARES_FROM,
        {"clean": CLEAN_SHARE, "worn": WORN_SHARE}[stage.name],
        LATER_BATCH,
        LATER_CROP_PX,
    )
    torch.manual_seed(stage.seed)
    _train(deepened(read_net(polished), DEEPENED), stage, pool, out, device, course)


def deepened(net: BaseNet, blocks: int) -> BaseNet:
    """A net of more blocks that does the same: the new ones, spread between the old, add nothing yet."""
    made = BaseNet(net.width, blocks)
    for name in ("head", "tail"):
        getattr(made, name).load_state_dict(getattr(net, name).state_dict())
    for block in made.body:
        nn.init.zeros_(block.second.weight)
        nn.init.zeros_(block.second.bias)
    places = [round((i + 1) * blocks / net.blocks) - 1 for i in range(net.blocks)]
    for place, block in zip(places, net.body, strict=True):
        made.body[place].load_state_dict(block.state_dict())
    return made


class Enlarging(Protocol):
    """A net as `gains` needs it: (B, 3, h, w) in [0, 1] to twice the size, and what Lanczos makes of it."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def plain(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Course:
    """How the rate goes, from which share of the steps on errors are squared, and what is seen."""

    rate: float
    hold: float
    squares_from: float
    bicubic_share: float = BICUBIC_SHARE
    batch: int = BATCH
    crop_px: int = CROP_PX


def _train(net: BaseNet, stage: Stage, pool: Pool, out: Path, device: torch.device, course: Course) -> None:
    net = net.train().requires_grad_(True)
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))
    optimizer = Muon(net.parameters(), course.rate)

    def step_once(moment: Moment) -> dict[str, float]:
        squares = moment.progress >= course.squares_from
        twice = moment.step % TWICE_EVERY == TWICE_EVERY - 1
        optimizer.param_groups[0]["lr"] = moment.rate(course.rate, course.hold)
        with torch.autocast(device.type, torch.bfloat16, enabled=moment.progress < BF16_UNTIL):
            if twice:
                large, half = (
                    to_tensor(p).to(device)
                    for p in pool.pairs(moment.rng, TWICE_BATCH, 2 * course.crop_px, 1.0)
                )
                once = net(F.interpolate(half, scale_factor=0.5, mode="bicubic", antialias=True))
                loss = error(once, half, squares) + error(net(once), large, squares)
            else:
                pairs = pool.pairs(moment.rng, course.batch, course.crop_px, course.bicubic_share)
                large, small = (to_tensor(p).to(device) for p in pairs)
                loss = error(net(small), large, squares)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average.update_parameters(net)
        return {("twice" if twice else "squares" if squares else "l1"): loss.item()}

    train(stage, {"net": net, "average": average, "optimizer": optimizer}, step_once)
    save_net(average.module, out)


def error(made: Tensor, goal: Tensor, squares: bool) -> Tensor:
    """Mean error of the colours, and of luma besides, without the margin."""
    inner = slice(MARGIN_PX, -MARGIN_PX)
    colours = (made.float() - goal)[:, :, inner, inner]
    luma = torch.einsum("bchw,c->bhw", colours, colours.new_tensor(LUMA))
    return (
        colours.square().mean() + luma.square().mean()
        if squares
        else colours.abs().mean() + luma.abs().mean()
    )


@torch.inference_mode()
def judge_base(stage: Stage, unseen: Pool, path: Path) -> None:
    """Log by how many dB of PSNR over RGB the net exceeds Lanczos, on pictures that training never saw."""
    net = read_net(path)
    for kind, small in (("bicubic", unseen.bicubic), ("accidents", unseen.other[:, 0])):
        note(stage, {"gain_db": kind, "mean": round(float(np.mean(gains(net, unseen.large, small))), 3)})


@torch.inference_mode()
def gains(net: Enlarging, large: NDArray[np.uint8], small: NDArray[np.uint8]) -> list[float]:
    """Of each picture, by how many dB the net's PSNR exceeds that of Lanczos."""
    found = []
    for truth, source in zip(large, small, strict=True):
        x, goal = to_tensor(source[None]), to_tensor(truth[None])
        inner = slice(MARGIN_PX, -MARGIN_PX)
        plain, made = (
            (enlarge(x).clamp(0, 1) - goal)[:, :, inner, inner].square().mean()
            for enlarge in (net.plain, net)
        )
        found.append(10 * float(torch.log10(plain / made)))
    return found
