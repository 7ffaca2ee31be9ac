"""What loading takes of the host's memory: weights once, and where they are left as they are, the file's own pages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

MB = 2**20
PARAMETERS = 329_099_328
SLACK_MB = 120  # of the allocator and of torch itself

MAKE = """
import sys, torch
from diffusers import FluxTransformer2DModel
torch.set_default_dtype(torch.bfloat16)
model = FluxTransformer2DModel(in_channels=64, num_layers=2, num_single_layers=4, attention_head_dim=128,
    num_attention_heads=12, joint_attention_dim=4096, pooled_projection_dim=768)
model.save_pretrained(sys.argv[1] + "/transformer")
"""

LOAD = """
import json, sys
from pathlib import Path
from diffusers import FluxTransformer2DModel
from dino_ray.diffusion.components import PartFiles, load_model
from dino_ray.diffusion.storage import Kept

def memory():
    lines = (line.split() for line in open("/proc/self/status"))
    return {line[0]: int(line[1]) / 1024 for line in lines if line[0] in ("VmRSS:", "VmHWM:", "RssAnon:")}

folder = Path(sys.argv[1]) / "transformer"
before = memory()
model = load_model(PartFiles("transformer", "diffusers", "FluxTransformer2DModel", folder), Kept(sys.argv[2]), "cpu")
loaded = memory()["RssAnon:"]
for weight in model.parameters():
    weight.sum()
after = memory()
print(json.dumps({
    "parameters": sum(weight.numel() for weight in model.parameters()),
    "own": max(loaded, after["RssAnon:"]) - before["RssAnon:"],
    "peak": after["VmHWM:"] - before["VmRSS:"],
}))
"""


def run(program, *args):
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("large"))
    run(MAKE, folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("dtype", "copies"), [("bf16", 0), ("fp16", 1), ("fp32", 2)])
def test_loading_holds_the_weights_once_beside_their_file(folder, dtype, copies):
    """``copies``: of memory of its own, in sizes of the file; what is mapped from the file is any process's."""
    seen = json.loads(run(LOAD, folder, dtype)[0])
    assert seen["parameters"] == PARAMETERS
    file = 2 * PARAMETERS / MB
    assert seen["own"] < copies * file + SLACK_MB
    assert seen["peak"] < (copies + 1) * file + SLACK_MB
