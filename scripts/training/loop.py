"""One training loop for every stage: seeded by step, checkpointed, resumable to the bit.

Where several processes train together (``torch.distributed``), each runs it, with randomness of its own; the first one
keeps the log and the checkpoint, from which all of them go on.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed

WARM_UP_STEPS = 50
"""Steps in which the learning rate rises, and at whose end a budget in minutes becomes a number of steps."""
SAVE_EVERY_S = 120.0
LOG_EVERY = 50


class Stateful(Protocol):
    """A network, an optimizer, or anything else that can be saved and restored."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Budget:
    """How long a stage trains: a number of steps, or minutes, turned into one by timing the first few."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("a budget is either steps or minutes")


@dataclass(frozen=True)
class Stage:
    """Where and how one stage runs."""

    name: str
    work_dir: Path
    seed: int
    budget: Budget
    resume: bool
    stop_after: int | None = None
    """End early, after this many steps, leaving a checkpoint."""

    @property
    def checkpoint(self) -> Path:
        return self.work_dir / f"{self.name}.checkpoint.pt"

    @property
    def log(self) -> Path:
        return self.work_dir / f"{self.name}.log.jsonl"


@dataclass(frozen=True)
class Moment:
    """What a step may depend on; all randomness comes from here, so that a resumed run repeats it."""

    step: int
    progress: float
    """0 at the start of the stage, towards 1 at its end."""
    rng: np.random.Generator

    def rate(self, peak: float, hold: float = 0.0) -> float:
        """Learning rate: a short rise, then ``peak`` until the progress is ``hold``, then half a cosine."""
        rise = min((self.step + 1) / WARM_UP_STEPS, 1.0)
        fall = max(self.progress - hold, 0) / (1 - hold)
        return peak * rise * 0.5 * (1 + math.cos(math.pi * fall))


def train(
    stage: Stage, state: Mapping[str, Stateful], step_once: Callable[[Moment], Mapping[str, float]]
) -> int:
    """Run ``step_once`` until the budget is spent; returns the number of steps done.

    ``state`` is what a checkpoint holds. Each step has generators of its own, seeded by (seed, stage, step), and of one
    of several processes also by its number.
    """
    rank = _rank()
    stage.work_dir.mkdir(parents=True, exist_ok=True)
    step, total, elapsed = 0, stage.budget.steps, 0.0
    if stage.resume and stage.checkpoint.exists():
        saved = torch.load(stage.checkpoint, map_location="cpu", weights_only=True)
        for name, part in state.items():
            part.load_state_dict(saved["state"][name])
        step, total, elapsed = saved["step"], saved["total"], saved["elapsed"]
    elif rank == 0:
        stage.log.unlink(missing_ok=True)
    began = time.monotonic() - elapsed
    saved_at, sums, taken = time.monotonic(), dict[str, float](), list[float]()
    while total is None or step < total:
        if stage.stop_after is not None and step >= stage.stop_after:
            break
        key = (stage.seed, sum(stage.name.encode()), step, *((rank,) if rank else ()))
        torch.manual_seed(np.random.SeedSequence(key).generate_state(1, np.uint64)[0].item())
        moment = Moment(step, step / total if total else 0.0, np.random.default_rng(key))
        started = time.monotonic()
        for name, value in step_once(moment).items():
            sums[name] = sums.get(name, 0.0) + value / LOG_EVERY
        step += 1
        if total is None:
            taken.append(time.monotonic() - started)
        if total is None and step >= WARM_UP_STEPS:
            total = _agreed(_steps_in(stage.budget, median(taken)))
        if step % LOG_EVERY == 0 and rank == 0:
            _log(stage, step, total, time.monotonic() - began, sums)
            sums = {}
        if time.monotonic() - saved_at > SAVE_EVERY_S and rank == 0:
            _save(stage, state, step, total, time.monotonic() - began)
            saved_at = time.monotonic()
    if rank == 0:
        _save(stage, state, step, total, time.monotonic() - began)
    return step


def _rank() -> int:
    """Number of this process among those that train together; 0 where it is alone."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _agreed(steps: int) -> int:
    """The first process's number of steps: each has timed its own, and all must end with the same one."""
    if not torch.distributed.is_initialized():
        return steps
    first = [steps]
    torch.distributed.broadcast_object_list(first)
    return first[0]


def _steps_in(budget: Budget, seconds_per_step: float) -> int:
    assert budget.minutes is not None
    return max(int(budget.minutes * 60 / seconds_per_step), WARM_UP_STEPS + 1)


def _log(stage: Stage, step: int, total: int | None, elapsed: float, values: Mapping[str, float]) -> None:
    record = {"stage": stage.name, "step": step, "of": total, "s": round(elapsed, 1)}
    note(stage, record | {name: float(f"{value:.5g}") for name, value in values.items()})


def note(stage: Stage, record: Mapping[str, Any]) -> None:
    """Add one JSON line to the stage's log and to what the terminal shows."""
    line = json.dumps(record)
    with stage.log.open("a") as log:
        log.write(line + "\n")
    print(line, flush=True)


def _save(stage: Stage, state: Mapping[str, Stateful], step: int, total: int | None, elapsed: float) -> None:
    content = {
        "state": {name: part.state_dict() for name, part in state.items()},
        "step": step,
        "total": total,
        "elapsed": elapsed,
    }
    beside = stage.checkpoint.with_suffix(".tmp")
    torch.save(content, beside)
    os.replace(beside, stage.checkpoint)
