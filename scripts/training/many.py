"""The same training by several processes, on one machine or many: Ray Train places them and starts them anew.

What they share is ``torch.distributed``'s mean of their gradients, and the stage's folder: the first process writes the
checkpoint there, and all read it when one of them died and they begin again.
"""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.adapter import Course, train_adapter

ROOT = Path(__file__).resolve().parents[2]
MODULES = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
TRIES = 3
"""So often a training goes on after a process died, from the last checkpoint."""


def train_by_many(course: Course, workers: int, gpus_per_worker: float, address: str) -> None:
    """Train an adapter by ``workers`` processes, each with ``course.batch`` crops a step.

    Parameters
    ----------
    course
        Its pictures, model and folders have to be seen under the same names by all machines.
    address
        Of a Ray cluster; ``local`` starts one here.

    Raises
    ------
    JobError
        If it failed more often than is tried.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from dino_ray.engine.ray.cluster import connect, leave
    from dino_ray.errors import JobError, describe_error

    if not course.stage.resume:
        course.stage.checkpoint.unlink(missing_ok=True)
    # Whoever starts, at first or after a loss, goes on from what checkpoint there is.
    course = replace(course, stage=replace(course.stage, resume=True))
    os.environ["PYTHONPATH"] = MODULES  # for what is started here
    joined = connect(address)
    storage = course.stage.work_dir.resolve() / f"ray-{uuid.uuid4().hex[:8]}"
    try:
        TorchTrainer(
            _work,
            train_loop_config={"course": course},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=gpus_per_worker > 0,
                resources_per_worker={"GPU": gpus_per_worker} if gpus_per_worker else {"CPU": 1},
            ),
            run_config=RunConfig(
                name=course.stage.name,
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=TRIES),
                worker_runtime_env={"env_vars": {"PYTHONPATH": MODULES}},
            ),
        ).fit()
    except Exception as error:  # of Ray Train's own many kinds
        raise JobError(f"the training failed ({describe_error(error)}); go on with --resume") from error
    finally:
        if joined:
            leave()
        shutil.rmtree(storage, ignore_errors=True)  # Ray Train's own notes; ours are the stage's


def _work(config: dict[str, Any]) -> None:
    from ray.train.torch import get_device, prepare_model

    course: Course = config["course"]
    device = str(get_device())
    pictures = replace(course.pictures, device=device)
    train_adapter(replace(course, device=device, pictures=pictures), prepare_model)
