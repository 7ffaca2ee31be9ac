"""What a GPU makes of FLUX.1: seconds by stage, share of what its tensor cores can do, our loop beside the stock one.

The model has FLUX.1's sizes and random weights, on which time does not depend; tiles are 1024². The *ceiling* is the
product of two large bfloat16 matrices, measured in the same run; *MFU* is what a step's matrix products achieve, of
that. Ours and the stock pipeline take turns, on the same transformer. *idle* is the share of a job of 64 tiles, from
the first on a replica to the last cell on the canvas, in which the GPU does not encode, step or decode: what it does
besides counts as idle.

    python scripts/bench/gpu.py

One call, within nine minutes on an H200. ``--tiny`` does all of it with a tiny model on a CPU: to see that it runs.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable

import click
import torch
from figures import missed, verdict
from gpu_job import Figures, job
from gpu_model import DENOISE, FLUX_1, TERA, TINY, Bench, Clock, compiled, eager, make
from rich.console import Console
from rich.table import Table

from dino_ray.diffusion.device import pick_device
from dino_ray.diffusion.families.flux import pack
from dino_ray.errors import UsageError

BATCHES = (1, 2, 4)
REPEATS = 3
MATMULS = 200
"""Products per measurement, a third of a second: for the GPU to settle on the clock that it keeps up."""
LATEST_S = 420.0
"""No measurement is begun later than this: nine minutes are to be enough for all."""

LEAST_RATIO, LEAST_COMPILED, LEAST_MFU, MOST_IDLE = 1.0, 1.4, 0.55, 0.05
NOISE_OF_RATIOS = 0.01
"""What two runs of the same differ by."""
MOST_APART = 0.05
"""Mean difference of latents, of their mean size: the stock pipeline keeps them in bfloat16 between steps."""
WIDTH = 110
"""Of the tables, in characters."""


@click.command()
@click.option("--tiny", is_flag=True, help="A tiny model on the CPU, to try the script.")
@click.option("--steps", default=4, show_default=True, help="Denoising steps of a tile.")
@click.option("--json", "as_json", is_flag=True, help="Figures as JSON instead of tables.")
def main(tiny: bool, steps: int, as_json: bool) -> None:
    """Measure, and say what was reached."""
    if not tiny and not torch.cuda.is_available():
        raise SystemExit("needs a CUDA GPU of 40 GB; --tiny tries the script without one")
    torch.backends.cudnn.deterministic = True  # as in every replica
    torch.set_num_threads(
        1
    )  # likewise; under another number, what is compiled here would be compiled again there
    started = time.perf_counter()
    device = "cpu" if tiny else pick_device("cuda")
    bench = make(TINY if tiny else FLUX_1, device, steps)
    with torch.inference_mode():
        figures = measure(bench, started)
    figures["seconds"] = time.perf_counter() - started
    assert not {"ray", "torchvision"} & set(sys.modules)
    verdicts = judged(figures)
    if as_json:
        print(json.dumps({**figures, "verdicts": verdicts}, indent=1))
    else:
        console = Console(width=WIDTH)
        for table in tables(figures):
            console.print(table)
        for line in [*figures["skipped"], *verdicts]:
            console.print(line)
    if tiny:
        print("a tiny model on a CPU: none of it says anything of a GPU", file=sys.stderr)
    elif missed(verdicts):
        raise SystemExit(1)


# ---- measuring


def measure(bench: Bench, started: float) -> Figures:
    """All figures, those first that everything else is compared with."""
    clock = Clock(bench.place.device)
    figures: Figures = {
        "device": torch.cuda.get_device_name() if clock.gpu else "cpu",
        "torch": torch.__version__,
        "steps": bench.steps,
        "step_tflop": bench.geometry.step_flop() / TERA,
        "weights_gb": memory_gb() if clock.gpu else None,
        "ceiling_tflops": ceiling(bench, clock),
        "skipped": [],
    }
    figures["apart"] = apart(bench)
    figures["eager"] = [stages(bench, clock, batch) for batch in BATCHES]
    try:
        compiled(bench)
    except UsageError as error:
        figures["skipped"].append(str(error))
        figures["loops"], figures["compiled"] = loops(bench, clock, compiled=False), []
    else:
        start = time.perf_counter()
        bench.ours(1, pixels=True)
        clock.wait()
        figures["compile_s"] = time.perf_counter() - start
        figures["loops"], figures["compiled"] = loops(bench, clock, compiled=True), []
    figures["job"] = job(bench, clock)
    for batch in BATCHES if "compile_s" in figures else ():
        if time.perf_counter() - started > LATEST_S:
            figures["skipped"].append(f"compiled, batches of {batch}: no time was left")
            continue
        figures["compiled"].append(stages(bench, clock, batch))
    return figures


def memory_gb() -> float:
    return torch.cuda.memory_allocated() / 1e9


def apart(bench: Bench) -> float:
    """How far ours and the stock pipeline's latents are apart, of their size: whether both do the same work."""
    ours, stocks = pack(bench.ours(1, pixels=False)).float(), bench.stocks(1, pixels=False).float()
    found = float((ours - stocks).abs().mean() / ours.abs().mean())
    assert math.isfinite(found), "random weights that make no numbers"
    return found


def ceiling(bench: Bench, clock: Clock) -> float:
    """TFLOP/s of a large matrix product in the model's type."""
    side = bench.geometry.matmul
    a, b = (torch.randn(side, side, device=bench.place.device, dtype=bench.place.dtype) for _ in range(2))

    def products() -> None:
        for _ in range(MATMULS):
            a @ b

    products()
    return 2 * side**3 * MATMULS / clock.seconds(products, REPEATS) / TERA


def stages(bench: Bench, clock: Clock, batch: int) -> Figures:
    """Seconds per tile of each stage and of all of them, tiles per second, and memory, of batches of one size."""
    denoiser, pixels, start = bench.denoiser, bench.pixels(batch), bench.start(batch)
    conditioning = bench.conditioning()
    works: dict[str, Callable[[], object]] = {
        "encode": lambda: denoiser.encode(pixels),
        "step": lambda: denoiser.predict(start, DENOISE, conditioning),
        "decode": lambda: denoiser.decode(start),
        "tile": lambda: bench.ours(batch, pixels=True),
    }
    if clock.gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = {}
    for name, work in works.items():
        work()
        seconds[name] = clock.seconds(work, REPEATS) / batch
    return {
        "batch": batch,
        **seconds,
        "tiles_per_s": 1 / seconds["tile"],
        "tflops": bench.geometry.step_flop() / seconds["step"] / TERA,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if clock.gpu else None,
    }


def loops(bench: Bench, clock: Clock, *, compiled: bool) -> Figures:
    """Seconds per tile of ours, eager and compiled, and of the stock pipeline, eager; in turn, several times."""

    def stock(pixels: bool) -> None:
        with eager():
            bench.stocks(1, pixels=pixels)

    def ours(pixels: bool) -> None:
        with eager():
            bench.ours(1, pixels=pixels)

    ways: dict[str, Callable[[bool], object]] = {"ours": ours, "stock": stock}
    if compiled:
        ways["ours compiled"] = lambda pixels: bench.ours(1, pixels=pixels)
    made: Figures = {}
    for what, pixels in (("latents", False), ("pixels", True)):
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(REPEATS + 1):  # the first warms up
            for way, work in ways.items():
                seconds = clock.seconds(lambda work=work, pixels=pixels: work(pixels), 1)
                taken[way] += [seconds] if turn else []
        made[what] = {way: statistics.median(times) for way, times in taken.items()}
    return made


# ---- judging


def judged(figures: Figures) -> list[str]:
    """What is to be reached, and whether it was."""
    verdicts = [
        verdict(
            figures["apart"] < MOST_APART,
            f"ours and the stock pipeline's latents are {figures['apart']:.2%} apart",
        )
    ]
    for what, seconds in figures["loops"].items():
        ratio = seconds["stock"] / seconds["ours"]
        verdicts.append(
            verdict(
                ratio >= LEAST_RATIO - NOISE_OF_RATIOS,
                f"our loop, eager, is {ratio:.2f} × as fast as the stock pipeline ({what}; at least {LEAST_RATIO})",
            )
        )
        fast = seconds["stock"] / seconds["ours compiled"] if "ours compiled" in seconds else 0.0
        verdicts.append(
            verdict(
                fast >= LEAST_COMPILED,
                f"compiled, {fast:.2f} × as fast as the stock pipeline, eager ({what}; at least {LEAST_COMPILED})",
            )
        )
    best = max(row["tflops"] for row in figures["eager"] + figures["compiled"])
    mfu = best / figures["ceiling_tflops"]
    verdicts.append(
        verdict(mfu >= LEAST_MFU, f"MFU of a step {mfu:.0%} of the matmul ceiling (at least {LEAST_MFU:.0%})")
    )
    found = figures["job"]
    verdicts.append(
        verdict(
            found["idle"] < MOST_IDLE and not found["poisoned"],
            f"GPU idle {found['idle']:.1%} of a job of {found['tiles']} tiles (less than {MOST_IDLE:.0%}); "
            f"{found['poisoned']} failed",
        )
    )
    return verdicts


def tables(figures: Figures) -> list[Table]:
    weights = f", weights {figures['weights_gb']:.1f} GB" if figures["weights_gb"] else ""
    title = (
        f"{figures['device']}, torch {figures['torch']}: ceiling {figures['ceiling_tflops']:.0f} TFLOP/s, "
        f"a step {figures['step_tflop']:.1f} TFLOP{weights}"
    )
    by_stage = Table(title=f"{title}\nseconds per tile of {figures['steps']} steps")
    columns = ("", "batch", "encode", "step", "decode", "tile", "tiles/s", "TFLOP/s", "MFU", "peak GB")
    for column in columns:
        by_stage.add_column(column, justify="left" if not column else "right")
    for way in ("eager", "compiled"):
        for row in figures[way]:
            by_stage.add_row(
                *(way, str(row["batch"])),
                *(f"{row[name]:.4f}" for name in ("encode", "step", "decode", "tile")),
                *(f"{row['tiles_per_s']:.2f}", f"{row['tflops']:.1f}"),
                f"{row['tflops'] / figures['ceiling_tflops']:.0%}",
                "" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}",
            )
    compared = Table(title="seconds per tile, in turn")
    for column in ("", "seconds", "stock / this"):
        compared.add_column(column, justify="left" if not column else "right")
    for what, seconds in figures["loops"].items():
        for way, taken in seconds.items():
            compared.add_row(f"{what}, {way}", f"{taken:.4f}", f"{seconds['stock'] / taken:.2f} ×")
    return [by_stage, compared]


if __name__ == "__main__":
    main()
