"""Promises of the options: one place, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_tiny_flux

from dino_ray import identity
from dino_ray.config import PRESETS, UpscaleConfig
from dino_ray.errors import UsageError
from dino_ray.raster.source import SourceInfo
from dino_ray.resolve import resolve
from dino_ray.workers import Workers


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": 40}, r"--scale must be less than or equal to 16, not 40"),
        ({"scale": 0.5}, r"--scale must be greater than or equal to 1"),
        ({"scale": "nan"}, r"--scale must be a finite number"),
        ({"scale": "two"}, r"--scale must be a valid number, not 'two'"),
        (
            {"workers": 0},
            r"--workers must be a number such as 4, a range such as 2:16, or auto, within 1 to 4096, not 0",
        ),
        ({"workers": "16:2"}, r"--workers must be .*, not '16:2'"),
        ({"workers": "2:"}, r"--workers must be .*, not '2:'"),
        ({"workers": True}, r"--workers must be .*, not True"),
        ({"batch": 0}, r"--batch must be greater than or equal to 1"),
        ({"seed": -1}, r"--seed must be"),
        ({"base": "magic"}, r"--base must be 'auto', 'net' or 'lanczos', not 'magic'"),
        ({"net": "old"}, r"--net must be 'auto', 'clean' or 'worn', not 'old'"),
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
        ({"model": "none", "batch": 4}, "--batch needs a diffusion model"),
        ({"denoise": 0, "batch": 4}, "--batch has nothing to act on"),
        ({"address": "none", "workers": "2:3"}, "--workers 2:3: --address none has one worker"),
        ({"model": "none", "threads": 4}, "--threads has nothing to act on"),
        ({"model": "none", "net": "worn"}, "--net has nothing to act on: the base is Lanczos's"),
        ({"scale": 1, "net": "worn"}, "--net has nothing to act on at --scale 1"),
        ({"base": "lanczos", "net": "clean"}, "--net has nothing to act on: the base is Lanczos's"),
        ({"sampler": "heun"}, "--sampler heun: differs from euler from --steps 2 on"),
        ({"denoise": 0, "steps": 5}, "--steps has nothing to act on"),
        ({"denoise": 0, "preset": "creative"}, "--preset has nothing to act on"),
        ({"denoise": 0, "consistency": 1}, "--consistency has nothing to act on"),
        ({"denoise": 0, "verify": True}, "--verify has nothing to act on"),
        ({"denoise": 0, "color_lock": "off"}, "--color-lock has nothing to act on"),
        ({"model": "none", "preset": "creative"}, "--preset needs a diffusion model"),
        ({"model": "none", "consistency": 1}, "--consistency needs a diffusion model"),
        ({"model": "none", "adaptive": 0.1}, "--adaptive needs a diffusion model"),
        (
            {"dino": "bundled", "dino_strength": 0, "adaptive": 0, "verify": False},
            "--dino: nothing uses it with --dino-strength 0",
        ),
        ({"device": "cpu", "gpus_per_worker": 1}, "--gpus-per-worker: --device cpu uses none"),
        ({"model": "none", "tile": 100}, "--tile 100: must be a multiple of 16"),
        ({"model": "none", "tile": 64, "overlap": 48}, "--overlap 48: must be 0 to 32"),
        ({"model": "nonesuch"}, "--model nonesuch: no such file, folder or known name"),
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


def test_denoise_0_needs_no_model_and_no_dino_is_loaded_for_nothing() -> None:
    assert resolve(UpscaleConfig(denoise=0)).model is None
    assert resolve(UpscaleConfig(denoise=0)).dino is None
    assert resolve(UpscaleConfig(dino_strength=0, adaptive=0, verify=False)).dino is None
    for asked in ({"dino_strength": 0.1}, {"adaptive": 0.1}, {"verify": True}):
        nothing = {"dino_strength": 0, "adaptive": 0, "verify": False}
        assert resolve(UpscaleConfig(**{**nothing, **asked})).dino == "bundled", asked
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


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [("auto", 1, None), (4, 4, 4), ("4", 4, 4), ("2:16", 2, 16), (" 3:3 ", 3, 3), (Workers(2, 5), 2, 5)],
)
def test_workers_are_a_number_or_a_range(value: object, least: int, most: int | None) -> None:
    config = UpscaleConfig.parse({"workers": value})
    assert config.workers == Workers(least, most)
    written = json.loads(json.dumps(config.model_dump()))
    assert UpscaleConfig.parse(written) == config


PRESET = {"denoise": 0.45, "dino_strength": 0.3, "adaptive": 0.25}


def test_a_preset_sets_what_is_not_given_in_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("preset: creative\ndenoise: 0.2\n")
    config = UpscaleConfig.from_yaml(file, {"adaptive": "0.5"})
    assert (config.denoise, config.dino_strength, config.adaptive) == (0.2, 0.3, 0.5)
    assert resolve(config).steps == 2 * resolve(UpscaleConfig()).steps
    assert resolve(UpscaleConfig(preset="creative", steps=3)).steps == 3
    assert UpscaleConfig(preset="creative", denoise=0.25).denoise == 0.25, "a default, but a given one"


@pytest.mark.parametrize("given", [{}, {"denoise": 0.25}, {"adaptive": 0.9, "steps": 5}])
def test_a_preset_means_the_same_when_what_was_given_is_read_again(given: dict[str, object]) -> None:
    config = UpscaleConfig(preset="creative", **given)
    assert config.model_fields_set == {"preset", *given}
    assert config.model_dump(include=set(PRESET)) == {
        **PRESET,
        **{k: v for k, v in given.items() if k in PRESET},
    }
    for written in (config.model_dump(mode="json", exclude_unset=True), config.model_dump(mode="json")):
        again = UpscaleConfig.parse(json.loads(json.dumps(written)))
        assert resolve(again) == resolve(config)
    changed = UpscaleConfig.parse({**config.model_dump(exclude_unset=True), "preset": "conservative"})
    assert changed.denoise == given.get("denoise", 0.15), "of another preset, what that one says"


def test_off_is_off_in_a_file_as_it_is_typed(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("color-lock: off\nverify: off\nwrap: off\n")
    config = UpscaleConfig.from_yaml(file, {})
    assert (config.color_lock, config.verify, config.wrap) == ("off", False, "off")


@given(st.integers(1, 50), st.one_of(st.none(), st.integers(0, 50)), st.integers(1, 50))
def test_there_are_no_idle_workers_but_those_asked_for_outright(
    least: int, more: int | None, tiles: int
) -> None:
    workers = Workers(least, least + more) if more is not None else Workers()
    at_least, at_most = workers.bounds(tiles)
    assert at_least == workers.least <= at_most <= max(at_least, tiles)
    assert workers.most is None or at_most <= workers.most
    assert Workers.parse(str(workers)) == workers


def test_a_range_in_a_file_is_no_number_of_base_60(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("workers: 2:16\nseed: 12\nscale: 3\ndenoise: 0.5\nshared: false\n")
    config = UpscaleConfig.from_yaml(file, {})
    assert (config.workers, config.seed, config.scale) == (Workers(2, 16), 12, 3)
    assert (config.denoise, config.shared) == (0.5, False)


def test_the_batch_is_among_what_pixels_depend_on() -> None:
    def pixels(**options: object) -> dict[str, object]:
        config = UpscaleConfig.parse(options)
        return identity.of_pixels(np.zeros((2, 2, 3), np.uint8), config, resolve(config), 8, wrap=False)

    one, four = pixels(), pixels(batch=4)
    assert {name for name in one if one[name] != four[name]} == {"--batch"}
    assert one == pixels(workers="2:16")


def test_a_preset_fills_in_what_is_not_given(tmp_path: Path) -> None:
    preset = UpscaleConfig.parse({"preset": "creative"})
    assert (preset.denoise, preset.dino_strength, preset.adaptive) == tuple(PRESETS["creative"].values())
    assert UpscaleConfig.parse({"preset": "creative", "denoise": 0.2}).denoise == 0.2
    assert resolve(preset).steps == 2 * resolve(UpscaleConfig()).steps
    assert resolve(UpscaleConfig.parse({"preset": "creative", "steps": 1})).steps == 1
    file = tmp_path / "job.yaml"
    file.write_text("preset: conservative\n")
    assert UpscaleConfig.from_yaml(file, {"adaptive": 0.1}).denoise == PRESETS["conservative"]["denoise"]
    assert UpscaleConfig.from_yaml(file, {"adaptive": 0.1}).adaptive == 0.1


def test_a_preset_and_what_it_filled_in_mean_the_same_when_read_again() -> None:
    config = UpscaleConfig.parse({"preset": "creative", "denoise": 0.25})
    assert UpscaleConfig.parse(config.model_dump()) == config


def test_consistency_follows_the_scale_unless_it_is_given() -> None:
    found = [resolve(UpscaleConfig(scale=scale)).consistency for scale in (1, 1.25, 1.5, 4)]
    assert found == [0, 0.5, 1, 1]
    assert resolve(UpscaleConfig(scale=1, consistency=0.3)).consistency == 0.3


def test_a_prompt_of_many_tiles_is_warned_of_and_one_of_a_single_tile_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = str(make_tiny_flux(tmp_path / "model", "schnell"))
    settings = resolve(UpscaleConfig.parse({"model": model, "prompt": "a harbour", "tile": 64, "scale": 1}))
    settings.layout(SourceInfo("s", 64, 64, 3, "uint8", False))
    assert "--prompt is told" not in caplog.text
    settings.layout(SourceInfo("s", 640, 64, 3, "uint8", False))
    assert "--prompt is told to each of the" in caplog.text
