"""What the ``flux`` stage looks at: sources the size of photographs, their bases and their DINO features.

The base net and DINO are frozen by then, so their outputs are computed once and kept in files.
"""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dino_ray.dino.extract import extract
from dino_ray.dino.features import FeatureMap
from dino_ray.dino.loading import Dino, load
from dino_ray.fidelity.grain import measure_grain
from dino_ray.plan.geometry import Rect, Scaling
from dino_ray.upsample.base import Upsampler, base_tile, unit_range
from dino_ray.upsample.net import CLEAN, WORN, load_net
from training.pool import BICUBIC_SHARE, Pool

Pixels = NDArray[np.uint8]

GRID = 2
"""A source is so many pool pictures a side: about 512 px, so that DINO's two levels differ as in use."""


@dataclass(frozen=True)
class Crops:
    """One batch; pictures are (n, side, side, 3) of 0 to 255."""

    pictures: Pixels
    bases: NDArray[np.float32]
    plains: Pixels
    tokens: NDArray[np.float32]
    """(n, rows, cols, dim)."""


@dataclass(frozen=True)
class Gallery:
    """Sources with all that a training crop is cut from."""

    large: Pixels
    """(n, H, W, 3): the truth, canvas_px."""
    base: NDArray[np.uint16]
    """(n, H, W, 3): what the base net makes of the source."""
    plain: Pixels
    """(n, H, W, 3): what Lanczos makes of the source."""
    features: tuple[FeatureMap, ...]

    @property
    def dino_dim(self) -> int:
        return self.features[0].dim

    def crops(self, rng: np.random.Generator, n: int, side: int, stride: int) -> Crops:
        """``n`` crops of ``side`` canvas_px, with a DINO token for each ``stride`` of them."""
        pictures, bases, plains, tokens = [], [], [], []
        _, height, width, _ = self.large.shape
        count = side // stride
        for _ in range(n):
            i = int(rng.integers(len(self.large)))
            y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
            window = (i, slice(y, y + side), slice(x, x + side))
            pictures.append(self.large[window])
            bases.append(self.base[window] * np.float32(255 / 65535))
            plains.append(self.plain[window])
            tokens.append(self.features[i].crop(x / 2, y / 2, side / 2, side / 2, count, count))
        return Crops(np.stack(pictures), np.stack(bases), np.stack(plains), np.stack(tokens))


def open_gallery(
    folder: Path, pool: Pool, nets: Path, dino_folder: Path, pictures: int, seed: int
) -> Gallery:
    """The gallery of the first ``pictures`` of ``pool``, made with the nets and the DINO of those folders.

    What networks make of the pictures is kept in ``folder``, and found there the next time.
    """
    sources = max(1, min(pictures, len(pool.large)) // GRID**2)
    small, large = _assemble(pool, sources, np.random.default_rng(seed))
    folder.mkdir(parents=True, exist_ok=True)
    shown = hashlib.sha256(small.tobytes()).hexdigest()[:8]
    base = folder / f"base-{shown}-{_digest(nets / CLEAN)}-{_digest(nets / WORN)}.npy"
    if not base.exists():
        np.save(base, _bases(small, nets))
    seen = folder / f"features-{shown}-{_digest(dino_folder / 'model.safetensors')}.pickle"
    if not seen.exists():
        dino = load(str(dino_folder))
        seen.write_bytes(pickle.dumps(tuple(_features(dino, source) for source in small)))
    plain = np.stack([_lanczos(source) for source in small])
    return Gallery(large, np.load(base, mmap_mode="r"), plain, pickle.loads(seen.read_bytes()))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def _lanczos(source: Pixels) -> Pixels:
    height, width = source.shape[:2]
    return np.asarray(Image.fromarray(source).resize((2 * width, 2 * height), Image.Resampling.LANCZOS))


def _assemble(pool: Pool, sources: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Pictures side by side, (n, h, w, 3) as reduced and (n, 2h, 2w, 3) as painted."""
    small, large = [], []
    for s in range(sources):
        picks = [(s * GRID**2 + k) % len(pool.large) for k in range(GRID**2)]
        reduced = pool.bicubic if rng.random() < BICUBIC_SHARE else pool.other[:, 0]
        small.append(_mosaic([reduced[i] for i in picks]))
        large.append(_mosaic([pool.large[i] for i in picks]))
    return np.stack(small), np.stack(large)


def _mosaic(pictures: list[Pixels]) -> Pixels:
    rows = [np.concatenate(pictures[r * GRID : (r + 1) * GRID], axis=1) for r in range(GRID)]
    return np.concatenate(rows, axis=0)


def _bases(small: Pixels, nets: Path) -> NDArray[np.uint16]:
    upsampler = load_net(folder=nets)
    _, height, width, _ = small.shape
    scaling = Scaling.from_factor(width, height, 2)
    whole = Rect(0, 0, scaling.canvas_w, scaling.canvas_h)
    bases = np.empty((len(small), whole.h, whole.w, 3), np.uint16)
    for i, source in enumerate(small):
        made = base_tile(replicating(source), whole, scaling, suited(upsampler, source))
        bases[i] = np.rint(made * 65535)
    return bases


def suited(upsampler: Upsampler, source: Pixels) -> Upsampler:
    """What enlarges ``source`` in use: the net that its grain asks for."""
    read = replicating(unit_range(source))
    return upsampler.suited(measure_grain(read, source.shape[1], source.shape[0]).worn)


def _features(dino: Dino, source: Pixels) -> FeatureMap:
    read = replicating((source / np.float32(255)).astype(np.float32))
    with torch.inference_mode():
        return extract(dino, read, source.shape[1], source.shape[0])


def replicating(image: NDArray[np.generic]):  # type: ignore[no-untyped-def]
    """A reader of windows of ``image`` whose edges go on for ever."""

    def read(rect: Rect) -> NDArray[np.generic]:
        rows = np.clip(np.arange(rect.y, rect.y1), 0, image.shape[0] - 1)
        cols = np.clip(np.arange(rect.x, rect.x1), 0, image.shape[1] - 1)
        return image[rows[:, None], cols[None, :]]

    return read
