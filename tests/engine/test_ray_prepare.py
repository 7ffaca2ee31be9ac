"""Promises of the Ray engine about calls that one replica takes for all: another takes over from one that can't."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
from fakes import make_task, shade
from ray_fakes import Slow, cluster_of

from dino_ray.dino.features import FeatureLevel, FeatureMap
from dino_ray.engine.protocol import Guide, ReplicaSpec
from dino_ray.engine.ray import RayEngine
from dino_ray.errors import JobError
from dino_ray.upsample import Lanczos

pytestmark = [pytest.mark.ray]

HANGS_S = 1000.0
PATIENCE_S = 120.0


class Stuck(Slow):
    """Takes features, and no end."""

    description = replace(Slow.description, dino_stride=16, dino_dim=8)


def here() -> str:
    return str(ray.get_runtime_context().get_node_id())


def asked_on(asked: Path) -> list[str]:
    """Nodes where an encoder was asked, in order."""
    return asked.read_text().split() if asked.exists() else []


def hang_when_first_asked(asked: Path, prompts: object, picture: object) -> dict[str, dict[str, np.ndarray]]:
    first = not asked.exists()
    asked.touch()
    if first:
        time.sleep(HANGS_S)
    return {}


def miss(asked: Path, nodes: int, prompts: object, picture: object) -> dict[str, dict[str, np.ndarray]]:
    """Weights that are missing on so many nodes: the ones that are asked first."""
    before = asked_on(asked)
    if len(before) >= nodes:
        return {}
    asked.write_text(" ".join([*before, here()]))
    raise FileNotFoundError(f"no such weights, {len(before)}")


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    """Of one replica each, beside a head that carries none."""
    with cluster_of(head_cpus=0, others=2):
        yield


def test_a_replica_that_hangs_over_an_image_is_replaced_and_the_image_prepared(
    two_nodes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dino_ray.engine.ray.engine.FEATURES_S", 5.0)
    # Starts fast, and so answers in time when it does not hang.
    spec = ReplicaSpec(
        upsampler=Lanczos, torch=False, text=partial(hang_when_first_asked, tmp_path / "asked")
    )
    with RayEngine(spec, least=1, most=1) as engine:
        engine.prepare(make_task(tmp_path))
        (member,) = engine.members.values()
        assert member.lives > 1


def test_what_is_missing_on_one_node_is_looked_for_on_another(two_nodes: None, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    with RayEngine(replace(shade(), text=partial(miss, asked, 1)), least=2, most=2) as engine:
        engine.prepare(make_task(tmp_path))
        assert len(engine.members) == 2
    assert len(asked_on(asked)) == 1


def test_what_is_missing_on_every_node_is_told_as_the_first_found_it(two_nodes: None, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    with (
        RayEngine(replace(shade(), text=partial(miss, asked, 3)), least=2, most=2) as engine,
        pytest.raises(JobError, match="no such weights, 0"),
    ):
        engine.prepare(make_task(tmp_path))
    assert len(set(asked_on(asked))) == len(asked_on(asked)) == 2


def test_a_replica_that_hangs_over_the_effect_of_dino_is_replaced(
    two_nodes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dino_ray.engine.ray.engine.EFFECT_S", 1.0)
    task = make_task(tmp_path)
    level = FeatureLevel(np.ones((2, 2, 4), np.float16), x0=8.0, y0=8.0, dx=16.0, dy=16.0)
    features = FeatureMap("made up", task.source.info.width, task.source.info.height, level, level)
    spec = ReplicaSpec(upsampler=Lanczos, denoiser=partial(Stuck, HANGS_S))
    with RayEngine(spec, least=1, most=1) as engine:
        engine.prepare(task)
        end = time.monotonic() + PATIENCE_S
        while not engine.ready:
            assert time.monotonic() < end, engine.describe()
            engine.wait(1)
        with pytest.raises(JobError, match="did not measure the effect of DINO"):
            engine.dino_effect(engine.share(task), ray.put(Guide(features)), 1)
        (member,) = engine.members.values()
        assert member.lives == 2
