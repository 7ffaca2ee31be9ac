"""Promises of the whole command with Kontext, FLUX.2 and SD3 of tiny size, from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner
from skimage import data
from tiny_flows import make_tiny

from dino_ray.cli import main


@pytest.mark.parametrize(
    ("kind", "family", "tile", "words"),
    [
        ("kontext", "flux-kontext", 64, ["--prompt", "make it red"]),
        ("flux2", "flux2", 64, ["--prompt", "make it red"]),
        ("klein-base", "flux2", 64, ["--negative-prompt", "blur"]),
        ("sd3", "sd3", 32, ["--negative-prompt", "blur"]),
    ],
)
def test_a_folder_runs_through_the_whole_command_and_its_words_count(
    tmp_path: Path, kind: str, family: str, tile: int, words: list[str]
) -> None:
    folder = make_tiny(tmp_path / "model", kind)
    source = tmp_path / "in.png"
    PIL.Image.fromarray(data.astronaut()[:24, :40]).save(source)

    def upscaled(name: str, *more: str) -> tuple[np.ndarray, dict]:
        output, report = tmp_path / f"{name}.png", tmp_path / f"{name}.json"
        args = ["upscale", source, "-o", output, "--model", folder, "--steps", "2", "--tile", tile, "--overlap", "16",
                "--base", "lanczos", "--address", "none", "--consistency", "0", "--adaptive", "0", "--no-verify",
                "--dino-strength", "0", "--color-lock", "off", "--report", report, *more]  # fmt: skip
        result = CliRunner().invoke(main, [str(arg) for arg in args])
        assert result.exit_code == 0, result.output
        return np.asarray(PIL.Image.open(output)), json.loads(report.read_text())

    plain, said = upscaled("plain")
    assert said["model"]["family"] == family
    assert said["tiles"] > 1
    assert {"text", "encode", "steps", "decode"} <= set(said["stages"])
    assert plain.shape == (48, 80, 3)
    told, _ = upscaled("told", *words)
    assert (told != plain).any()


def test_kontext_takes_no_adapter(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model", "kontext")
    source = tmp_path / "in.png"
    PIL.Image.new("RGB", (8, 8)).save(source)
    args = [
        "upscale",
        source,
        "-o",
        tmp_path / "out.png",
        "--model",
        folder,
        "--dino-adapter",
        tmp_path / "a.safetensors",
    ]
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == 2
    assert "adapters are for FLUX.1" in result.stderr
