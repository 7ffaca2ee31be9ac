"""The effect of DINO, measured on a replica of a Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from fakes import Shade, make_task

from dino_ray.dino.features import FeatureLevel, FeatureMap
from dino_ray.engine.drive import drive
from dino_ray.engine.protocol import Guide, JobEvent, ReplicaSpec
from dino_ray.engine.ray import RayEngine
from dino_ray.upsample import Lanczos

pytestmark = [pytest.mark.ray]


class Indifferent(Shade):
    """Takes features and does nothing with them."""

    description = replace(Shade.description, dino_stride=16, dino_dim=8)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_the_effect_of_dino_is_measured_after_the_tiles(ray_here: None, tmp_path: Path) -> None:
    task = make_task(tmp_path)
    level = FeatureLevel(np.ones((2, 2, 4), np.float16), x0=8.0, y0=8.0, dx=16.0, dy=16.0)
    features = FeatureMap("made up", task.source.info.width, task.source.info.height, level, level)
    events: list[JobEvent] = []
    with RayEngine(ReplicaSpec(upsampler=Lanczos, denoiser=Indifferent), least=1, most=1) as engine:
        engine.prepare(task)
        guide = ray.put(Guide(features))
        drive(engine, task, guide, events.append)
        effect = engine.dino_effect(engine.share(task), guide, 1)
    assert effect.probe_tile == 1
    assert effect.effect == 0.0
