"""Promises of the bench of a GPU, of what can be seen without one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "bench"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / "gpu.py"), *options], capture_output=True, text=True, check=False
    )


def test_a_steps_work_is_what_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.syspath_prepend(str(SCRIPTS))
    from gpu_model import DENOISE, FLUX_1, TERA, TINY, make

    assert FLUX_1.step_flop() / TERA == pytest.approx(74.4, abs=0.05)
    bench = make(replace(TINY, tile=256, double=2, single=3, overlap=32), "cpu", 2)
    bench.stock.transformer.set_attention_backend("_native_math")  # torch does not count its CPU's own kernel
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            bench.denoiser.predict(bench.start(1), DENOISE, bench.conditioning())
    finally:
        bench.stock.transformer.set_attention_backend("native")
    assert counter.get_total_flops() == pytest.approx(bench.geometry.step_flop(), rel=0.04)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_it_says_so_in_a_line() -> None:
    done = run()
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("needs a CUDA GPU")


@pytest.mark.slow
def test_every_line_of_it_runs_on_a_tiny_model() -> None:
    done = run("--tiny", "--steps", "2", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (
        [row["batch"] for row in figures["eager"]]
        == [row["batch"] for row in figures["compiled"]]
        == [1, 2, 4]
    )
    assert set(figures["loops"]) == {"latents", "pixels"}
    assert figures["apart"] < 1e-4
    assert figures["job"]["tiles"] == 64
    assert figures["job"]["poisoned"] == 0
    assert len(figures["verdicts"]) == 7
