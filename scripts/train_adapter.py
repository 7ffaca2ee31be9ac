"""Train a DINO adapter for a model: the network by which --dino-adapter has the model attend to DINO features.

    python scripts/train_adapter.py --model bundled --out adapter.safetensors --minutes 7
    python scripts/train_adapter.py --model flux-dev --dino dinov2-base --images photos/ --out flux-dino.safetensors \\
        --steps 20000 --precision bf16 --workers 8

The model itself stays as it is. Some of the pictures are held out; at the end the adapter is judged on those: with the
tokens of the right picture, with another's, and with none. More processes than one are placed by Ray Train.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from training.adapter import DTYPES, Course, train_adapter, trained  # noqa: E402
from training.adapter_score import evaluate, table  # noqa: E402
from training.loop import Budget, Stage, note  # noqa: E402
from training.pictures import Painted, Pictures, find, painted, split  # noqa: E402

from dino_ray.diffusion import adapter_file, loading  # noqa: E402
from dino_ray.diffusion.adapter import save  # noqa: E402
from dino_ray.diffusion.adapter_file import AdapterFacts  # noqa: E402
from dino_ray.diffusion.denoiser import Description  # noqa: E402
from dino_ray.dino import loading as dino_loading  # noqa: E402
from dino_ray.errors import DinoRayError, UsageError  # noqa: E402
from dino_ray.files import check_place  # noqa: E402

PAINTED, PAINTED_HELD_OUT = 96, 24
HELD_OUT_SEED = 2**31
"""Of painted pictures that no other training paints: all are judged on the same ones."""
HELD_OUT_SHARE = 0.1
STEPS = 1000
HIDDEN_PER_CHANNEL = 4
STRIDE = 64
"""canvas_px per token of a model that has no stride of its own: 256 tokens on FLUX's tile, half as many as its text."""
RATES = {"bundled": 2e-3, "flux": 1e-4}
"""By family. A small model forgives larger steps."""
FEATURE_WEIGHTS = {"bundled": 0.1, "flux": 0.0}
"""By family. FLUX's VAE would have to decode every prediction, with a gradient: as much as a third of a step."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE.safetensors", help="the adapter")
    add("--model", default="bundled", help="as dino-ray's --model takes it (default: bundled)")
    add("--dino", default="bundled", help="as dino-ray's --dino takes it (default: bundled)")
    add("--images", type=Path, metavar="FOLDER", help="photographs to learn from (default: painted pictures)")
    add(
        "--held-out",
        type=Path,
        metavar="FOLDER",
        help="those to be judged on (default: a tenth of the others)",
    )
    add("--crops", type=int, default=48, help="how many crops of them it is judged on (default: 48)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help=f"(default: {STEPS})")
    budget.add_argument("--minutes", type=float, help="turned into steps by timing the first few")
    add("--batch", type=int, default=16, help="crops per step and process (default: 16)")
    add("--crop", type=int, help="side of a crop, px (default: half the model's tile)")
    add("--stride", type=int, help=f"px per DINO token (default: the model's, or {STRIDE})")
    add("--rate", type=float, help=f"highest learning rate (default by family: {RATES})")
    add("--feature-weight", type=float, metavar="W",
        help=f"in the loss, of what DINO sees differently (default by family: {FEATURE_WEIGHTS})")  # fmt: skip
    add("--precision", choices=tuple(DTYPES), default="fp32", help="of the model; the adapter trains in fp32")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=1, help="processes; more than one train by Ray Train")
    add("--gpus", type=float, default=0.0, help="GPUs per process, for more than one (default: 0, the CPU)")
    add("--address", default="local", help="Ray cluster of the processes (default: one is started here)")
    add("--device", default="auto", help="of a single process, and of the final evaluation")
    add("--threads", type=int, default=1, help="CPU threads per process (default: 1)")
    add(
        "--work-dir",
        type=Path,
        default=Path("build/adapter"),
        help="features, checkpoint, log; seen by all machines",
    )
    add("--resume", action="store_true", help="go on from the checkpoint")
    args = parser.parse_args(argv)
    for name in ("batch", "crops", "workers", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.gpus and args.workers == 1:
        parser.error("--gpus is for more than one process; a single one takes --device")
    if args.address != "local" and args.workers == 1:
        parser.error("--address is for more than one process: --workers")
    for name in ("images", "held_out", "work_dir"):  # other processes may be at home elsewhere
        if getattr(args, name):
            setattr(args, name, getattr(args, name).expanduser().resolve())
    args.model = in_full(args.model, ("bundled", "none", *loading.ALIASES))
    args.dino = in_full(args.dino, (dino_loading.BUNDLED, *dino_loading.ALIASES))
    return args


def in_full(name: str, known: Collection[str]) -> str:
    """The absolute path of a model's folder; other names, of ours or on the hub, as they are."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if name not in known and folder.is_dir() else name


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    try:
        run(args)
    except DinoRayError as error:
        sys.exit(f"Error: {error}")


def run(args: argparse.Namespace) -> None:
    if args.out.suffix != adapter_file.SUFFIX:
        raise UsageError(f"--out {args.out}: must end in {adapter_file.SUFFIX}")
    check_place(args.out, "--out")
    if args.model == "none":
        raise UsageError("--model none: there is no model that could attend to anything; name one")
    description = loading.describe(args.model)
    facts = make_facts(args, description)
    course, held_out = plan(args, description, facts)
    check_same(course, args.workers)
    if args.workers > 1:
        from training.many import train_by_many

        train_by_many(course, args.workers, args.gpus, args.address)
    else:
        train_adapter(course)
    adapter = trained(course)
    save(adapter, args.out)
    print(f"wrote {args.out}; on {len(held_out)} pictures that it has not seen:", flush=True)
    model = loading.load(args.model, held_out.device, DTYPES[args.precision])
    rows = evaluate(model, adapter, held_out, text=course.text, crops=args.crops)
    for row in rows:
        note(course.stage, {"held_out": asdict(row)})
    print(table(rows))


def check_same(course: Course, workers: int) -> None:
    """Refuse to go on with another training's checkpoint; note this one's terms for the next time.

    Raises
    ------
    UsageError
        Naming the first difference.
    """
    numbers = {"workers": workers, "seed": course.stage.seed, "pictures": len(course.pictures)}
    asked = ("crop", "batch", "rate", "feature_weight", "precision")
    terms = course.facts.metadata() | numbers | {name: getattr(course, name) for name in asked}
    path = course.stage.work_dir / "adapter.terms.json"
    if course.stage.resume and path.exists():
        before = json.loads(path.read_text())
        for name, value in terms.items():
            if before.get(name) != value:
                raise UsageError(
                    f"--resume: the training in {course.stage.work_dir} has {name} {before.get(name)}, not {value}; "
                    "give it the same options, or leave --resume out to begin anew"
                )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(terms, indent=2) + "\n")


def make_facts(args: argparse.Namespace, description: Description) -> AdapterFacts:
    """What the adapter will say of itself."""
    target = loading.adapter_target(loading.resolve(args.model), fetch=True)
    channels = 2 * dino_loading.describe(args.dino).dim
    assert target.transformer is not None  # fetched, if it had to be
    return AdapterFacts(
        dino=args.dino,
        channels=channels,
        hidden=HIDDEN_PER_CHANNEL * channels,
        width=target.width,
        stride=args.stride or description.dino_stride or STRIDE,
        family=target.family,
        model=target.name,
        fingerprint=adapter_file.fingerprint(target.transformer),
    )


def plan(args: argparse.Namespace, description: Description, facts: AdapterFacts) -> tuple[Course, Pictures]:
    """What will be trained on, and what it will be judged by.

    Raises
    ------
    UsageError
        If there are too few pictures, or a crop that the model can't take.
    """
    crop = args.crop or description.tile // 2
    if crop % description.pixel_multiple:
        raise UsageError(f"--crop {crop}: must be a multiple of {description.pixel_multiple}")
    device = loading.pick_device(args.device)
    learnt: Sequence[Path | Painted] = painted(args.seed, PAINTED)
    judged: Sequence[Path | Painted] = painted(HELD_OUT_SEED, PAINTED_HELD_OUT)
    side = description.tile
    if args.held_out:
        judged = find(args.held_out, side, least=2)
        learnt = find(args.images, side, least=1) if args.images else learnt
    elif args.images:
        learnt, judged = split(find(args.images, side, least=3), HELD_OUT_SHARE)
    based = description.noise_free_to > 0
    kept = args.work_dir / "pictures"
    text = loading.encode_text(args.model, "", device)
    return Course(
        model=args.model,
        facts=facts,
        pictures=Pictures(learnt, args.dino, based, kept, device),
        crop=crop,
        batch=args.batch,
        rate=args.rate or RATES[description.family],
        feature_weight=FEATURE_WEIGHTS[description.family]
        if args.feature_weight is None
        else args.feature_weight,
        precision=args.precision,
        device=device,
        threads=args.threads,
        stage=Stage(
            "adapter",
            args.work_dir,
            args.seed,
            Budget(args.steps or (None if args.minutes else STEPS), args.minutes),
            args.resume,
        ),
        text={name: np.array(value) for name, value in text.items()},
    ), Pictures(judged, args.dino, based, kept, device)


if __name__ == "__main__":
    main()
