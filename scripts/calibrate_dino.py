"""Find a DINO model's thresholds from benign pairs, and store them with the model.

For a folder they go into the folder; for ``bundled``, an alias or a hub id into the package's file,
``dino/calibration.json``.
Without --images, pictures are drawn (scripts/training/images.py), which anyone gets alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from training.images import picture  # noqa: E402

from dino_ray.dino import calibration, loading  # noqa: E402

PICTURES = 96
SEED = 1234
"""Of the drawn pictures; another one than training's."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dino", default="bundled", help="as of dino-ray upscale (default: bundled)")
    parser.add_argument("--images", type=Path, help="folder of photographs, 256 px a side or more")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="print the thresholds, store nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums are split by thread, and digits would move with their number
    if args.pictures < calibration.LEAST_PICTURES:
        parser.error(f"--pictures: {calibration.LEAST_PICTURES} at least")
    dino = loading.load(args.dino, args.device)
    made = calibration.calibrate(dino, pictures(args))
    print(json.dumps({args.dino: made.to_dict()}))
    if not args.dry_run:
        store(args.dino, made)


def pictures(args: argparse.Namespace) -> list[np.ndarray]:
    if args.images is None:
        drawn = (picture(SEED, i, calibration.SIDE) for i in range(args.pictures))
        return [each.astype(np.float32) / 255 for each in drawn]
    paths = sorted(p for p in args.images.rglob("*") if p.suffix.lower() in SUFFIXES)[: args.pictures]
    if len(paths) < calibration.LEAST_PICTURES:
        sys.exit(f"--images {args.images}: {len(paths)} pictures; {calibration.LEAST_PICTURES} are needed")
    return [centre(path) for path in paths]


def centre(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    top, left = ((side - min(side, calibration.SIDE)) // 2 for side in pixels.shape[:2])
    return pixels[top : top + calibration.SIDE, left : left + calibration.SIDE]


def store(name: str, made: calibration.Calibration) -> None:
    folder = Path(name).expanduser()
    if name not in loading.ALIASES and folder.is_dir():
        path, content = folder / calibration.BESIDE, made.to_dict()
    else:
        path = calibration.SHIPPED
        known = json.loads(path.read_text()) if path.is_file() else {}
        content = {**known, loading.ALIASES.get(name, name): made.to_dict()}
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(content, indent=2) + "\n")
    beside.replace(path)
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
