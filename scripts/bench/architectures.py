"""Which small net enlarges best for its price? Published designs, trained for the same processor time.

Each is given a width at which it costs about as much to run as the others, and trained on the same procedural
pictures for the same processor time on one thread. PSNR is over RGB, on pictures of another seed: of the net less that
of Lanczos, for bicubic reductions and for those with accidents. "ms" is of one tile: 92² source px, float32.

    python scripts/bench/architectures.py --pool build/training/pool --minutes 2.5
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from training.base import BATCH, CROP_PX, MARGIN_PX, gains, to_tensor  # noqa: E402
from training.loop import Moment  # noqa: E402
from training.muon import Muon  # noqa: E402
from training.pool import Pool, PoolSpec, open_pool  # noqa: E402

from dino_ray.upsample.net import FACTOR, SUPPORT, _lanczos_taps  # noqa: E402

SHADES = 3 * FACTOR**2
RATES = {"Muon": 6e-3, "Adam": 1e-3}
TILE_PX = 92
UNSEEN = PoolSpec(seed=1, count=24, size=512)


def conv(c_in: int, c_out: int, side: int = 3) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, side, padding=side // 2)


class Residual(nn.Module):
    """Of EDSR (Lim et al. 2017, arXiv:1707.02921)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv(width, width), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.relu(self.first(x)))
        return out


class Rlfb(nn.Module):
    """Of RLFN (Kong et al. 2022, arXiv:2205.07514), without its attention, whose strides see where a tile begins."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(width, width) for _ in range(3))
        self.mix = conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for each in self.convs:
            y = F.leaky_relu(each(y), 0.05)
        out: Tensor = self.mix(y + x)
        return out


class Span(nn.Module):
    """Of SPAN (Wan et al. 2024, arXiv:2311.12770): attention without parameters, from the last map itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.convs[0](x))
        y = self.convs[2](F.silu(self.convs[1](y)))
        out: Tensor = (y + x) * (torch.sigmoid(y) - 0.5)
        return out


class Merged(nn.Module):
    """Of ECBSR (Zhang et al. 2021, doi:10.1145/3474085.3475291): parallel linear branches, one 3 × 3 kernel at work."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.plain = conv(width, width)
        self.wide, self.narrow = (
            nn.Conv2d(width, 2 * width, 1, bias=False),
            nn.Conv2d(2 * width, width, 3, bias=False),
        )
        self.register_buffer("edges", _edge_kernels())
        self.scales = nn.Parameter(torch.randn(3, width) * 1e-2)
        self.points = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.act = nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[1]
        kernel = self.plain.weight + torch.einsum(
            "omyx,mi->oiyx", self.narrow.weight, self.wide.weight[:, :, 0, 0]
        )
        points = self.points.weight.view(3, width, width)
        kernel = kernel + torch.einsum("ko,kyx,koi->oiyx", self.scales, self.edges, points)
        kernel = kernel + _centre(width, x.device)
        out: Tensor = self.act(F.conv2d(x, kernel, self.plain.bias, padding=1))
        return out


def _edge_kernels() -> Tensor:
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    return torch.stack([sobel, sobel.T, torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])])


def _centre(width: int, device: torch.device) -> Tensor:
    kernel = torch.zeros(width, width, 3, 3, device=device)
    kernel[range(width), range(width), 1, 1] = 1
    return kernel


class Body(nn.Module):
    """A trunk between a head and a tail, with one long skip."""

    def __init__(self, width: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.head, self.tail = conv(3, width), conv(width, SHADES)
        self.blocks = nn.Sequential(*blocks)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]
        self.register_buffer("taps", _lanczos_taps())

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x - 0.5)
        return self.plain(x) + F.pixel_shuffle(self.tail(self.blocks(y) + y), FACTOR)

    def plain(self, x: Tensor) -> Tensor:
        """Lanczos alone."""
        return F.pixel_shuffle(
            F.conv2d(F.pad(x, (SUPPORT,) * 4, mode="replicate"), self.taps, groups=3), FACTOR
        )


def fsrcnn(width: int, small: int, n: int) -> list[nn.Module]:
    """FSRCNN (Dong et al. 2016, arXiv:1608.00367): shrink, map, expand."""
    layers: list[nn.Module] = [conv(width, small, 1), nn.PReLU(small)]
    for _ in range(n):
        layers += [conv(small, small), nn.PReLU(small)]
    return [*layers, conv(small, width, 1), nn.PReLU(width)]


DESIGNS: dict[str, Callable[[], Body]] = {
    "EDSR 64 × 6": lambda: Body(64, [Residual(64) for _ in range(6)]),
    "EDSR 64 × 10": lambda: Body(64, [Residual(64) for _ in range(10)]),
    "EDSR 96 × 3": lambda: Body(96, [Residual(96) for _ in range(3)]),
    "RLFN 64 × 4": lambda: Body(64, [Rlfb(64) for _ in range(4)]),
    "SPAN 64 × 4": lambda: Body(64, [Span(64) for _ in range(4)]),
    "ECBSR 64 × 12": lambda: Body(64, [Merged(64) for _ in range(12)]),
    "FSRCNN 96, 64 × 12": lambda: Body(96, fsrcnn(96, 64, 12)),
}


def train_design(net: Body, pool: Pool, minutes: float, optimizer_name: str) -> int:
    """Train for ``minutes`` of processor time; the number of steps."""
    if optimizer_name == "Muon":
        optimizer: torch.optim.Optimizer = Muon(net.parameters(), RATES["Muon"])
    else:
        optimizer = torch.optim.Adam(net.parameters(), RATES["Adam"], betas=(0.9, 0.99))
    peaks = [group["lr"] for group in optimizer.param_groups]
    began, step = time.process_time(), 0
    while (spent := (time.process_time() - began) / (60 * minutes)) < 1:
        moment = Moment(step, spent, np.random.default_rng((0, step)))
        large, small = (to_tensor(p) for p in pool.pairs(moment.rng, BATCH, CROP_PX))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = moment.rate(peak)
        with torch.autocast("cpu", torch.bfloat16):
            made = net(small.contiguous(memory_format=torch.channels_last))
        inner = slice(MARGIN_PX, -MARGIN_PX)
        loss = (made.float() - large)[:, :, inner, inner].abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
    return step


@torch.inference_mode()
def milliseconds(net: Body) -> float:
    x = torch.rand(1, 3, TILE_PX, TILE_PX).contiguous(memory_format=torch.channels_last)
    best = float("inf")
    for _ in range(12):
        began = time.perf_counter()
        net(x)
        best = min(best, time.perf_counter() - began)
    return 1000 * best


@click.command()
@click.option("--pool", "folder", type=click.Path(path_type=Path), required=True)
@click.option("--pictures", default=512, show_default=True)
@click.option("--minutes", default=2.5, show_default=True, help="Processor time of each training.")
@click.option("--designs", multiple=True, type=click.Choice(list(DESIGNS)), help="All unless named.")
@click.option("--optimizers", multiple=True, default=["Muon"], type=click.Choice(list(RATES)))
def main(
    folder: Path, pictures: int, minutes: float, designs: tuple[str, ...], optimizers: tuple[str, ...]
) -> None:
    torch.set_num_threads(1)
    pool = open_pool(folder, PoolSpec(0, pictures, 512), workers=2)
    unseen = open_pool(folder.parent / "unseen", UNSEEN, workers=2)
    table = Table(title=f"{minutes:g} min of training each")
    for column in ("design", "optimizer", "parameters", "ms", "steps", "bicubic dB", "accidents dB"):
        table.add_column(column, justify="left" if column in ("design", "optimizer") else "right")
    for name in designs or DESIGNS:
        for optimizer in optimizers:
            torch.manual_seed(0)
            net = DESIGNS[name]().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            steps = train_design(net, pool, minutes, optimizer)
            size = sum(p.numel() for p in net.parameters())
            row = [name, optimizer, f"{size / 1e6:.2f} M", f"{milliseconds(net):.0f}", f"{steps}"]
            row += [
                f"{np.mean(gains(net, unseen.large, small)):+.3f}"
                for small in (unseen.bicubic, unseen.other[:, 0])
            ]
            print(*row, flush=True)
            table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
