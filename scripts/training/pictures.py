"""Pictures of any folder, or painted ones, with their DINO features and bases: what the adapter learns from.

A picture is the truth of an enlargement by two. What is made of it, the features of its reduction and the base, is
computed once, when it is first asked for, and kept in a file; so folders may be large, and a stopped run goes on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from dino_ray.dino import loading
from dino_ray.dino.extract import extract
from dino_ray.dino.features import FeatureLevel, FeatureMap
from dino_ray.errors import UsageError
from dino_ray.identity import of_weights
from dino_ray.plan.geometry import Rect, Scaling
from dino_ray.upsample.base import base_tile
from dino_ray.upsample.net import load_net
from training.base import to_tensor
from training.degrade import FACTOR, reduce_bicubic, reduce_somehow
from training.gallery import replicating, suited
from training.images import picture
from training.pool import BICUBIC_SHARE

Pixels = NDArray[np.uint8]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
LONGEST = 2048
"""px: larger photographs are reduced to this, which also sharpens them."""
MULTIPLE = 8
"""px: sides are cropped to whole multiples, so that they halve evenly."""
PAINTED_SIDE = 512
STRIP = 256
"""canvas_px: rows that the base net enlarges at once; its activations take a kilobyte per pixel."""
AT_HAND = 4096
"""Pictures that are kept open; they are mapped into memory, and take next to none."""


@dataclass(frozen=True)
class Prepared:
    """One picture with all that crops are cut from."""

    truth: Pixels
    """(H, W, 3), canvas_px."""
    base: NDArray[np.uint16] | None
    """(H, W, 3): what the base net makes of the reduction; None where the model does not start from it."""
    features: FeatureMap
    """Of the reduction."""


@dataclass(frozen=True)
class Crops:
    """One batch; pixels are (n, 3, side, side) in [0, 1]."""

    truth: Tensor
    start: Tensor
    """What a model starts from before noise: the base, or the truth."""
    tokens: Tensor
    """(n, rows, cols, channels): DINO tokens of each crop."""


@dataclass(frozen=True)
class Painted:
    """The procedural picture of that number, in the place of a file."""

    seed: int
    index: int


@dataclass(frozen=True)
class Pictures:
    """Pictures by number, prepared when asked for. Can be sent to another process: nothing is loaded before.

    Attributes
    ----------
    sources
        Files, or the numbers of procedural pictures.
    dino
        As ``--dino`` names it.
    based
        Whether the model starts from the base.
    folder
        Where what is computed of them is kept.
    """

    sources: Sequence[Path | Painted]
    dino: str
    based: bool
    folder: Path
    device: str = "cpu"
    _at: Callable[[int], Prepared] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_at", lru_cache(AT_HAND)(self._prepare))

    def __reduce__(self) -> Any:
        return Pictures, (self.sources, self.dino, self.based, self.folder, self.device)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Prepared:
        return self._at(index)

    @cached_property
    def extractor(self) -> loading.Dino:
        return loading.load(self.dino, self.device)

    @cached_property
    def _net(self) -> Any:
        return load_net(self.device)

    @cached_property
    def _state(self) -> str:
        return f"{self.dino} {of_weights(self.dino)} {self.based}"

    def crops(
        self, rng: np.random.Generator, numbers: Iterable[np.integer[Any]], side: int, stride: int
    ) -> Crops:
        """A crop of each of some pictures, of ``side`` canvas_px, with a DINO token for each ``stride`` of them.

        Raises
        ------
        UsageError
            If a picture is smaller than that.
        """
        truth, start, tokens = [], [], []
        count = max(1, side // stride)
        for index in map(int, numbers):
            prepared = self[index]
            height, width = prepared.truth.shape[:2]
            if min(height, width) < side:
                raise UsageError(
                    f"--crop {side}: {self.sources[index]} is {width} × {height}; lower it, or remove the picture"
                )
            y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
            window = slice(y, y + side), slice(x, x + side)
            truth.append(prepared.truth[window])
            if prepared.base is not None:
                start.append(prepared.base[window] * np.float32(255 / 65535))
            box = (v / FACTOR for v in (x, y, side, side))
            tokens.append(prepared.features.crop(*box, count, count))
        whole = to_tensor(np.stack(truth))
        return Crops(
            whole, to_tensor(np.stack(start)) if self.based else whole, torch.from_numpy(np.stack(tokens))
        )

    def _prepare(self, index: int) -> Prepared:
        key = hashlib.sha256(f"{self._state} {_identity(self.sources[index])}".encode()).hexdigest()[:24]
        place = self.folder / key
        if not place.is_dir():
            truth = _pixels(self.sources[index])
            rng = np.random.default_rng(int(key, 16))  # what befalls a picture depends on it alone
            small = reduce_bicubic(truth) if rng.random() < BICUBIC_SHARE else reduce_somehow(truth, rng)
            _keep(place, Prepared(truth, self._base(small) if self.based else None, self._features(small)))
        return _kept(place)

    def _features(self, small: Pixels) -> FeatureMap:
        read = replicating((small / np.float32(255)).astype(np.float32))
        return extract(self.extractor, read, small.shape[1], small.shape[0])

    def _base(self, small: Pixels) -> NDArray[np.uint16]:
        height, width = small.shape[:2]
        scaling = Scaling.from_factor(width, height, FACTOR)
        base = np.empty((scaling.canvas_h, scaling.canvas_w, 3), np.uint16)
        net = suited(self._net, small)
        for top in range(0, scaling.canvas_h, STRIP):
            strip = Rect(0, top, scaling.canvas_w, min(STRIP, scaling.canvas_h - top))
            made = base_tile(replicating(small), strip, scaling, net)
            base[top : top + strip.h] = np.rint(made.clip(0, 1) * 65535)
        return base


def find(folder: Path, smallest: int, least: int) -> list[Path]:
    """Every image under a folder, whose sides are at least ``smallest`` px once it is prepared; sorted by name.

    Raises
    ------
    UsageError
        If there are fewer than ``least``.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    large = [path for path in found if min(_size(path)) >= smallest]
    if len(large) < least:
        raise UsageError(
            f"{folder}: holds {len(large)} image(s) of at least {smallest} px a side; {least} are needed"
        )
    return large


def split(sources: Sequence[Path], share: float) -> tuple[list[Path], list[Path]]:
    """Those to learn from and those held out: ``share`` of them, chosen by name, so always the same ones.

    At least two are held out, for one is also judged with the tokens of another.
    """
    ranked = sorted(sources, key=lambda path: hashlib.sha256(path.name.encode()).digest())
    count = max(2, round(share * len(ranked)))
    return ranked[count:], ranked[:count]


def painted(seed: int, count: int) -> list[Painted]:
    """Procedural pictures; another seed gives others."""
    return [Painted(seed, index) for index in range(count)]


def _size(path: Path) -> tuple[int, int]:
    """(width, height) of what `_pixels` makes of a file, from its header; (0, 0) of no image."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, ValueError):
        return 0, 0
    shrink = min(1.0, LONGEST / max(width, height))
    return int(width * shrink) // MULTIPLE * MULTIPLE, int(height * shrink) // MULTIPLE * MULTIPLE


def _pixels(source: Path | Painted) -> Pixels:
    if isinstance(source, Painted):
        return picture(source.seed, source.index, PAINTED_SIDE)
    try:
        with Image.open(source) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            upright.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    except (OSError, ValueError) as error:
        raise UsageError(f"{source}: can't be read as an image ({error}); remove it") from error
    width, height = (side // MULTIPLE * MULTIPLE for side in upright.size)
    return np.array(upright)[:height, :width]


def _identity(source: Path | Painted) -> str:
    """What tells a picture from another, and from its own earlier state."""
    if isinstance(source, Painted):
        return f"{source} {PAINTED_SIDE}"
    facts = source.stat()
    return f"{source.resolve()} {facts.st_size} {facts.st_mtime_ns} {LONGEST}"


def _keep(place: Path, prepared: Prepared) -> None:
    """Written beside its place and renamed, for another process may be at the same picture."""
    features = prepared.features
    levels = {"coarse": features.coarse, "fine": features.fine}
    lattices = {name: [level.x0, level.y0, level.dx, level.dy] for name, level in levels.items()}
    arrays: dict[str, NDArray[Any]] = {name: level.tokens for name, level in levels.items()}
    arrays |= {"truth": prepared.truth} | ({} if prepared.base is None else {"base": prepared.base})
    beside = place.with_name(f"{place.name}.{uuid.uuid4().hex}.partial")
    beside.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(beside / f"{name}.npy", array)
    facts = {"model": features.model, "width": features.width, "height": features.height}
    (beside / "features.json").write_text(json.dumps(facts | {"lattices": lattices}))
    try:
        beside.rename(place)
    except OSError:  # the other process was first
        shutil.rmtree(beside)


def _kept(place: Path) -> Prepared:
    """Mapped into memory, so that a crop reads little more than itself."""

    def array(name: str) -> NDArray[Any]:
        return np.load(place / f"{name}.npy", mmap_mode="r")

    facts = json.loads((place / "features.json").read_text())
    levels = {name: FeatureLevel(array(name), *lattice) for name, lattice in facts.pop("lattices").items()}
    base = array("base") if (place / "base.npy").exists() else None
    return Prepared(array("truth"), base, FeatureMap(**facts, **levels))
