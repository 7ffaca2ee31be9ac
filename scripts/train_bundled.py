"""Make every weight that ships with dino_ray, from procedural pictures alone.

Stages: ``data`` paints the pictures; ``dino`` distils the small DINO; ``base`` trains a draft of the conv net that
enlarges, ``polish`` betters it, ``clean`` and ``worn`` make of it the nets for two kinds of sources; ``flux`` trains
the small FLUX, which needs DINO, on what those leave to refine; ``all`` runs them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from training.loop import Budget, Stage  # noqa: E402
from training.pool import Pool, PoolSpec, open_pool  # noqa: E402

STAGES = ("data", "dino", "base", "polish", "clean", "worn", "flux")
DEFAULT_STEPS = {"dino": 1600, "base": 10000, "polish": 4000, "clean": 20000, "worn": 22000, "flux": 2400}
"""What the weights that ship were trained for."""
KINDS = ("clean", "worn")
"""Of sources; each has its net."""
SMOKE_STEPS = 8
POOL = (512, 512)
SMOKE_POOL = (8, 256)
GALLERY_PICTURES = 240
UNSEEN_POOL = (24, 512)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", nargs="?", choices=(*STAGES, "all"), default="all")
    parser.add_argument(
        "--out", type=Path, help="folder that gets the weights (default: the package's own folders)"
    )
    parser.add_argument(
        "--work-dir", type=Path, default=Path("build/training"), help="pictures, checkpoints, logs"
    )
    parser.add_argument("--seed", type=int, default=0)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help=f"steps per stage (default: {DEFAULT_STEPS})")
    budget.add_argument(
        "--minutes", type=float, help="minutes per stage, turned into steps by timing the first few"
    )
    parser.add_argument("--pictures", type=int, default=POOL[0], help="how many pictures to paint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--resume", action="store_true", help="go on from the stages' checkpoints")
    parser.add_argument(
        "--smoke", action="store_true", help="every stage for a few steps, from nothing, to see it run"
    )
    args = parser.parse_args(argv)
    if args.smoke:
        args.steps, args.pictures = SMOKE_STEPS, SMOKE_POOL[0]
        args.work_dir = args.work_dir / "smoke"  # beside a real run's pictures and checkpoints, not over them
        args.out = args.out or args.work_dir / "weights"
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    spec = PoolSpec(args.seed, args.pictures, SMOKE_POOL[1] if args.smoke else POOL[1])
    pool = open_pool(args.work_dir / "pool", spec, workers=args.threads)
    for name in STAGES[1:] if args.stage == "all" else (args.stage,):
        if name != "data":
            run_stage(name, args, pool, device)


def run_stage(name: str, args: argparse.Namespace, pool: Pool, device: torch.device) -> None:
    steps = args.steps or (None if args.minutes else DEFAULT_STEPS[name])
    from training.base import judge_base, polish_base, specialize, train_base

    stage = Stage(name, args.work_dir, args.seed, Budget(steps, args.minutes), args.resume)
    draft, polished = (args.work_dir / f"{made}.safetensors" for made in ("draft", "polished"))
    nets = weights_folder("upsample/weights", args)
    finished = {kind: nets / f"{kind}.safetensors" for kind in KINDS}
    if net := {"base": draft, "polish": polished, **finished}.get(name):
        if name == "base":
            train_base(stage, pool, net, device)
        elif name == "polish":
            polish_base(stage, pool, draft, net, device)
        else:
            specialize(stage, pool, polished, net, device)
        if not args.smoke:
            judge_base(stage, open_unseen(args), net)
    elif name == "dino":
        from training.selfdistil import judge_dino, train_dino

        out = weights_folder("dino/weights", args)
        train_dino(stage, pool, out, device)
        if not args.smoke:
            judge_dino(stage, out)
    elif name == "flux":
        from training.flux import judge_flux, train_flux
        from training.gallery import open_gallery

        out = weights_folder("diffusion/bundled/weights", args)
        dino = weights_folder("dino/weights", args)
        folder = args.work_dir / "gallery"
        train_flux(stage, open_gallery(folder, pool, nets, dino, GALLERY_PICTURES, args.seed), out, device)
        if not args.smoke:
            unseen = open_unseen(args)
            judge_flux(stage, open_gallery(folder, unseen, nets, dino, UNSEEN_POOL[0], args.seed), out)


def open_unseen(args: argparse.Namespace) -> Pool:
    """Pictures of another seed, to judge by."""
    return open_pool(args.work_dir / "unseen", PoolSpec(args.seed + 1, *UNSEEN_POOL), args.threads)


def weights_folder(package: str, args: argparse.Namespace) -> Path:
    """Where a stage's weights go: the package's own folder, or the same layout under ``--out``."""
    return Path(args.out or ROOT / "dino_ray") / package


if __name__ == "__main__":
    main()
