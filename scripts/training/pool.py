"""The training pictures, painted once by all cores and kept in files that every stage maps into memory."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.degrade import reduce_bicubic, reduce_somehow, soften
from training.images import picture

Pixels = NDArray[np.uint8]

SOFT_SHARE = 0.07
"""Share of pictures that hold nothing to restore, so that a network learns to leave such alone."""
ACCIDENTS = 4
"""How often what happens to people's pictures happens to each."""
BICUBIC_SHARE = 0.65
"""Share of training crops whose small picture is Pillow's bicubic reduction rather than what happens to people."""


@dataclass(frozen=True)
class PoolSpec:
    """What a pool holds; a pool of another spec is painted anew."""

    seed: int
    count: int
    size: int


@dataclass(frozen=True)
class Pool:
    """Pictures and their reductions, memory-mapped."""

    large: Pixels
    """(n, size, size, 3)."""
    bicubic: Pixels
    """(n, size / 2, size / 2, 3): Pillow's bicubic reductions."""
    other: Pixels
    """(n, `ACCIDENTS`, size / 2, size / 2, 3): reductions with accidents."""

    def pairs(
        self, rng: np.random.Generator, n: int, side: int, bicubic_share: float = BICUBIC_SHARE
    ) -> tuple[Pixels, Pixels]:
        """``n`` crops, flipped and turned: large (n, side, side, 3), small (n, side / 2, side / 2, 3)."""
        size = self.large.shape[1]
        large, small = [], []
        for _ in range(n):
            i = int(rng.integers(len(self.large)))
            y, x = (int(v) for v in rng.integers((size - side) // 2 + 1, size=2))
            plain, accident = rng.random() < bicubic_share, int(rng.integers(ACCIDENTS))
            small_picture = self.bicubic[i] if plain else self.other[i, accident]
            turns, flip = int(rng.integers(4)), bool(rng.integers(2))
            for out, whole, scale in ((large, self.large[i], 2), (small, small_picture, 1)):
                half = side // 2
                crop = whole[y * scale : (y + half) * scale, x * scale : (x + half) * scale]
                crop = np.rot90(crop, turns)
                out.append(crop[:, ::-1] if flip else crop)
        return np.stack(large), np.stack(small)


def open_pool(folder: Path, spec: PoolSpec, workers: int) -> Pool:
    """The pool of ``spec`` in ``folder``, painted first where it is not there yet."""
    if not _complete(folder, spec):
        _paint(folder, spec, workers)
    return Pool(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("large", "bicubic", "other")))


def _complete(folder: Path, spec: PoolSpec) -> bool:
    marker = folder / "pool.json"
    return marker.exists() and json.loads(marker.read_text()) == asdict(spec)


def _paint(folder: Path, spec: PoolSpec, workers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pool.json").unlink(missing_ok=True)
    half = spec.size // 2
    arrays = [
        np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=(spec.count, *each, 3)
        )
        for name, each in (
            ("large", (spec.size, spec.size)),
            ("bicubic", (half, half)),
            ("other", (ACCIDENTS, half, half)),
        )
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        jobs = ((spec, index) for index in range(spec.count))
        for index, made in enumerate(executor.map(_make, jobs, chunksize=4)):
            for array, pixels in zip(arrays, made, strict=True):
                array[index] = pixels
    for array in arrays:
        array.flush()
    (folder / "pool.json").write_text(json.dumps(asdict(spec)))


def _make(job: tuple[PoolSpec, int]) -> tuple[Pixels, Pixels, Pixels]:
    spec, index = job
    large = picture(spec.seed, index, spec.size)
    rng = np.random.default_rng((spec.seed, index, 1))  # apart from the stream that painted the picture
    if rng.random() < SOFT_SHARE:
        large = soften(large)
    others = np.stack([reduce_somehow(large, rng) for _ in range(ACCIDENTS)])
    return large, reduce_bicubic(large), others
