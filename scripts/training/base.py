"""Stage ``base``: the conv net that enlarges ×2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dino_ray.upsample.net import BaseNet, save_net
from training.loop import Moment, Stage, train
from training.pool import Pool

WIDTH, BLOCKS = 48, 6
PEAK_RATE = 2e-3
BATCH = 16
CROP_PX = 80
MARGIN_PX = 8
"""Left out of the loss on each side: there the net sees its own zero padding, which tiles never show it."""
AVERAGE_DECAY = 0.998
BF16_UNTIL = 0.85
"""Share of the steps computed in bfloat16 where that is fast; the rest settle the weights in float32."""


def to_tensor(pixels: NDArray[np.generic]) -> Tensor:
    """(n, h, w, 3) of 0 to 255 to float32 (n, 3, h, w) in [0, 1], channels last in memory."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)


def train_base(stage: Stage, pool: Pool, out: Path, device: torch.device) -> None:
    """Train the net on ``pool`` and save its averaged weights as ``out``."""
    torch.manual_seed(stage.seed)
    net = BaseNet(WIDTH, BLOCKS).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))
    optimizer = torch.optim.Adam(net.parameters(), PEAK_RATE, betas=(0.9, 0.99))

    def step_once(moment: Moment) -> dict[str, float]:
        large, small = (to_tensor(p).to(device) for p in pool.pairs(moment.rng, BATCH, CROP_PX))
        optimizer.param_groups[0]["lr"] = moment.rate(PEAK_RATE)
        with torch.autocast(device.type, torch.bfloat16, enabled=moment.progress < BF16_UNTIL):
            made = net(small)
        inner = slice(MARGIN_PX, -MARGIN_PX)
        loss = (made.float() - large)[:, :, inner, inner].abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average.update_parameters(net)
        return {"l1": loss.item()}

    train(stage, {"net": net, "average": average, "optimizer": optimizer}, step_once)
    save_net(average.module, out)
