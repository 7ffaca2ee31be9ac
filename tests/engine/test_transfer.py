"""Promises of arrays on their way to a device and back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import make_task, photograph

from dino_ray.engine.protocol import Guide, ReplicaSpec, TileCall
from dino_ray.engine.replica import Replica
from dino_ray.engine.transfer import fetch, put

CPU = torch.device("cpu")
KINDS = ("float32", "float16", "int64", "bool")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "device", [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)], ids=["cpu", "cuda"]
)
def test_what_is_put_is_a_copy_and_comes_back_as_it_was(device: torch.device, kind: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    shared = array.copy()
    shared.flags.writeable = False  # as what comes from an object store is
    there = put(shared.transpose(2, 0, 1), device)
    assert there.device.type == device.type
    there = there.flip(0)
    back = fetch(there)
    if device.type == "cuda":
        there.zero_()  # what the device is given later is not what was fetched
    np.testing.assert_array_equal(back(), array.transpose(2, 0, 1)[::-1])
    put(shared, device).zero_()
    np.testing.assert_array_equal(shared, array)


@pytest.mark.gpu
def test_calls_that_overlap_on_a_gpu_make_the_bytes_of_calls_one_by_one(tmp_path: Path) -> None:
    from dino_ray.diffusion import bundled
    from dino_ray.upsample import load_net

    def replica() -> Replica:
        made = Replica(
            ReplicaSpec(upsampler=lambda: load_net("cuda"), denoiser=lambda: bundled.load(device="cuda"))
        )
        made.load()
        return made

    task = make_task(tmp_path, photograph(200, 200), tile=128)
    tiles = range(task.grid.n_tiles)
    one = replica()
    alone = [one.refine(task, Guide(), TileCall(tile, (tile,)))[0][0] for tile in tiles]
    other = replica()
    assert other.overlaps
    with ThreadPoolExecutor(2) as threads:
        done = [threads.submit(other.refine, task, Guide(), TileCall(tile, (tile,))) for tile in tiles]
        together = [each.result(120)[0][0] for each in done]
    np.testing.assert_array_equal(together, alone)
