"""The nodes in a real ComfyUI: what arrives of both workflows, and what the node costs beside a plain tile loop.

    python scripts/bench/comfyui.py --comfyui PATH [--python PYTHON]

Models are random, made from config with ComfyUI's own classes; nothing is fetched. First a server is started, and
both shipped workflows are sent to it. Then, in one process, the node with DINO off and a loop over ComfyUI's own
sampler take turns on the same model, tiles and steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "comfy")]

SEED, DENOISE, CFG = 1, 0.3, 3.0
OVERLAP = 64
MOST_RATIO = 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", required=True, help="a checkout of ComfyUI")
    parser.add_argument("--python", default=sys.executable, help="the Python that has its requirements")
    parser.add_argument(
        "--models", type=Path, help="where the random models are kept (default: a temporary folder)"
    )
    parser.add_argument("--kind", default="sd15", choices=("sd15", "sdxl", "flux"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--no-server", action="store_true", help="the ratio alone")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        measure(args)
        return
    from comfyserver import environment_of, make_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        models = args.models or Path(scratch) / "models"
        for kind in dict.fromkeys(("sd15", args.kind)):
            make_checkpoint(args.comfyui, args.python, models, kind)
        if not args.no_server:
            workflows(args.comfyui, args.python, Path(scratch) / "server", models)
        command = [args.python, __file__, "--inside", "--comfyui", args.comfyui, "--models", str(models)]
        command += ["--kind", args.kind, "--rounds", str(args.rounds)]
        command += ["--tile", str(args.tile), "--steps", str(args.steps)]
        environment = environment_of(args.python, Path(scratch))
        code = subprocess.run(command, env=os.environ | environment).returncode
        if code:
            sys.exit(f"the comparison ended with exit code {code}")


# ---- what arrives


def workflows(comfyui: str, python: str, folder: Path, models: Path) -> None:
    from comfyserver import serve
    from test_server import REPORT, shipped, source, with_model

    (folder / "input").mkdir(parents=True)
    source().save(folder / "input" / "source.png")
    ray = shipped("ray_upscale")
    ray["2"]["inputs"] |= {"dino": "bundled"}
    runs = [
        ("DINO Upscale", with_model("sd15"), REPORT),
        ("the same, another seed", with_model("sd15", seed=1), REPORT),
    ]
    runs.append(("DINO Ray Upscale", ray, "5"))
    print(f"{'workflow':24}{'seconds':>8}{'progress':>10}{'previews':>10}  stages")
    with serve(comfyui, python, folder, models) as server:
        for name, graph, report in runs:
            seen = server.run(graph)
            if seen.error:
                print(f"{name:24}{seen.seconds:8.1f}  {seen.error}")
                continue
            image = json.loads(seen.outputs[report]["text"][0])["images"][0]
            steps = len(seen.of("progress"))
            print(f"{name:24}{seen.seconds:8.1f}{steps:10}{seen.previews:10}  {' '.join(image['stages'])}")


# ---- the ratio, inside ComfyUI's Python


def measure(args: argparse.Namespace) -> None:
    sys.path.insert(0, args.comfyui)
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    with torch.inference_mode():
        ours, plain, tiles = contestants(args)
        for run in (ours, plain):  # loads models
            run()
        cost: dict[str, list[tuple[float, float]]] = {"node": [], "loop": []}
        for turn in range(args.rounds):
            order = (("node", ours), ("loop", plain))
            for name, run in order if turn % 2 == 0 else order[::-1]:
                cost[name].append(timed(run))
    print(
        f"\n{args.kind}, {tiles} tiles of {args.tile} px, {args.steps} steps, DINO off; median of {args.rounds}"
    )
    print(f"{'':22}{'wall s':>9}{'CPU s':>9}")
    wall, cpu = (
        {name: statistics.median(run[i] for run in runs) for name, runs in cost.items()} for i in (0, 1)
    )
    print(f"{'DINO Upscale':22}{wall['node']:9.2f}{cpu['node']:9.2f}")
    print(f"{'plain tile loop':22}{wall['loop']:9.2f}{cpu['loop']:9.2f}")
    print(
        f"{'ratio':22}{wall['node'] / wall['loop']:9.3f}{cpu['node'] / cpu['loop']:9.3f}   (at most {MOST_RATIO})"
    )


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def contestants(args: argparse.Namespace) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    import comfy.sample
    import comfy.samplers
    import comfy.sd
    import comfy.utils
    import torch

    from dino_ray.comfy import recent
    from dino_ray.comfy.upscale_node import DinoUpscale
    from dino_ray.plan.geometry import make_grid

    kind, models = args.kind, args.models
    if kind == "sd15":
        path = str(models / "checkpoints" / "sd15.safetensors")
        model, _, vae, _ = comfy.sd.load_checkpoint_guess_config(path, output_clip=False)
    else:
        model = comfy.sd.load_diffusion_model(str(models / "diffusion_models" / f"{kind}.safetensors"))
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(models / "vae" / f"{kind}-tiny.safetensors")))
    from test_server import WIDTHS

    width, pooled = WIDTHS[kind]
    positive, negative = (
        [
            [
                torch.randn(1, 8, width, generator=torch.Generator().manual_seed(i)),
                {"pooled_output": torch.zeros(1, pooled)},
            ]
        ]
        for i in (1, 2)
    )
    side = (2 * args.tile - OVERLAP) // 2  # of the source; twice as large it takes two tiles by two
    image = torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(0))
    grid = make_grid(2 * side, 2 * side, tile=args.tile, overlap=OVERLAP, multiple=16)

    def ours() -> Any:
        recent.bases.clear()
        recent.guides.clear()
        return DinoUpscale().run(
            image=image, model=model, vae=vae, positive=positive, negative=negative, scale_factor=2.0,
            denoise=DENOISE, tile_width=args.tile, tile_height=args.tile, overlap=OVERLAP, sampler_name="euler",
            scheduler="simple", steps=args.steps, cfg=CFG, dino_enabled=False, dino_strength=0.0, seed=SEED, wrap="off",
        )  # fmt: skip

    sampler = comfy.samplers.sampler_object("euler")
    whole = comfy.samplers.KSampler(model, args.steps, "cpu", "euler", "simple", DENOISE).sigmas

    def plain() -> Any:
        """What tile loops do: enlarge, refine each tile, lay it over the others with soft edges."""
        large = comfy.utils.common_upscale(
            image.movedim(-1, 1), 2 * side, 2 * side, "lanczos", "disabled"
        ).movedim(1, -1)
        total, weights = torch.zeros_like(large), torch.zeros_like(large[..., :1])
        ramp = torch.linspace(0, 1, args.tile // 2)
        edge = torch.cat([ramp, ramp.flip(0)]).clamp_min(1e-3)
        soft = (edge[:, None] * edge)[None, ..., None]
        for number in range(grid.n_tiles):
            rect = grid.tile_rect(number)
            window = slice(rect.y, rect.y1), slice(rect.x, rect.x1)
            tile = large[:, window[0], window[1]]
            short = (0, 0, 0, rect.w - tile.shape[2], 0, rect.h - tile.shape[1])
            padded = torch.nn.functional.pad(tile.movedim(-1, 1), short[2:], mode="replicate").movedim(1, -1)
            latent = vae.encode(padded)
            noise = comfy.sample.prepare_noise(latent, SEED)
            made = comfy.sample.sample_custom(
                model, noise, CFG, sampler, whole, positive, negative, latent, disable_pbar=True, seed=SEED
            )
            pixels = vae.decode(made)[:, : tile.shape[1], : tile.shape[2]]
            mask = soft[:, : tile.shape[1], : tile.shape[2]]
            total[:, window[0], window[1]] += pixels * mask
            weights[:, window[0], window[1]] += mask
        return total / weights

    return ours, plain, grid.n_tiles


if __name__ == "__main__":
    main()
