"""Promises of the options: one place, clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino_ray.config import UpscaleConfig
from dino_ray.errors import UsageError
from dino_ray.resolve import resolve


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": 40}, r"--scale must be less than or equal to 16, not 40"),
        ({"scale": 0.5}, r"--scale must be greater than or equal to 1"),
        ({"scale": "nan"}, r"--scale must be a finite number"),
        ({"scale": "two"}, r"--scale must be a valid number, not 'two'"),
        ({"workers": 0}, r"--workers must be a number from 1 to 4096 or auto, not 0"),
        ({"seed": -1}, r"--seed must be"),
        ({"base": "magic"}, r"--base must be 'auto', 'net' or 'lanczos', not 'magic'"),
        ({"sacle": 2}, r"unknown option 'sacle'; the options are scale, "),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        UpscaleConfig.parse(options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "none", "steps": 3}, "--steps needs a diffusion model"),
        ({"model": "none", "denoise": 0.5}, "--denoise needs a diffusion model"),
        ({"model": "none", "prompt": "a cat"}, "--prompt needs a diffusion model"),
        ({"model": "none", "threads": 4}, "--threads has nothing to act on"),
        ({"sampler": "heun"}, "--sampler heun: differs from euler from --steps 2 on"),
        ({"denoise": 0, "steps": 5}, "--steps has nothing to act on"),
        ({"dino": "bundled", "dino_strength": 0}, "--dino: --dino-strength 0 uses no features"),
        ({"device": "cpu", "gpus_per_worker": 1}, "--gpus-per-worker: --device cpu uses none"),
        ({"model": "none", "tile": 100}, "--tile 100: must be a multiple of 16"),
        ({"model": "none", "tile": 64, "overlap": 48}, "--overlap 48: must be 0 to 32"),
        ({"model": "nonesuch"}, "--model nonesuch: unknown model"),
        ({"model": "bundled", "prompt": "a cat"}, "--prompt: the model bundled takes no text"),
        ({"model": "bundled", "cfg": 3}, "--cfg: the model bundled takes no guidance scale"),
        ({"model": "bundled", "dino": "/nowhere"}, "/nowhere"),
    ],
)
def test_what_the_model_cannot_honour_is_refused_before_any_work(
    options: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        resolve(UpscaleConfig.parse(options))


def test_denoise_0_needs_no_model_and_strength_0_no_dino() -> None:
    assert resolve(UpscaleConfig(denoise=0)).model is None
    assert resolve(UpscaleConfig(denoise=0)).dino is None
    assert resolve(UpscaleConfig(dino_strength=0)).dino is None
    assert resolve(UpscaleConfig()).dino == "bundled"


def test_a_small_tile_brings_its_overlap_down_with_it() -> None:
    assert resolve(UpscaleConfig(tile=48)).overlap == 16


def test_a_config_file_sets_options_and_typed_ones_win(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("scale: 4\ndino-strength: 0.5\n")
    config = UpscaleConfig.from_yaml(file, {"scale": "3"})
    assert (config.scale, config.dino_strength) == (3, 0.5)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("scale: [", "no valid YAML"),
        ("- 2", "expected a mapping"),
        ("sclae: 2", "job.yaml: unknown option 'sclae'"),
    ],
)
def test_a_bad_config_file_is_named(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=says):
        UpscaleConfig.from_yaml(file, {})


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.yaml: can't be read"):
        UpscaleConfig.from_yaml(tmp_path / "no.yaml", {})
