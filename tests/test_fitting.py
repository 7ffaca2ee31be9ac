"""Promises of --fit: what it decides is what is run, and said; and it decides nothing that it was not left."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from single_files import header_only
from tiny import make_tiny_flux

from dino_ray import fitting
from dino_ray.cli import main
from dino_ray.config import UpscaleConfig
from dino_ray.diffusion import fit, gpu_memory, metering, model_files, published, sizing
from dino_ray.diffusion.dtypes import Dtypes
from dino_ray.errors import UsageError
from dino_ray.loaders import replica_spec
from dino_ray.resolve import resolve
from dino_ray.settings import Settings

FLUX = str(published.folder("flux-dev"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (90, 60), "teal").save(path)
    return path


def dino_ray(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def settled(**options: Any) -> Settings:
    """Of FLUX.1-dev, planned for."""
    return resolve(
        UpscaleConfig.parse({"model": FLUX, "dino": "bundled", "address": "none", **options}), planning=True
    )


@pytest.mark.parametrize(
    ("given", "n_bytes"),
    [("24GB", 24e9), ("24 GB", 24e9), ("23.5G", 23.5e9), ("16GiB", 16 * 2**30), ("800MB", 800e6)],
)
def test_sizes_are_read_as_people_write_them(given: str, n_bytes: float) -> None:
    assert fitting.size(given) == n_bytes
    assert UpscaleConfig.parse({"fit": given}).fit == given


@pytest.mark.parametrize("given", ["", "24", "GB", "lots", "-4GB", "24TB"])
def test_what_is_no_size_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="--fit"):
        UpscaleConfig.parse({"fit": given})


def test_yamls_bare_off_means_off() -> None:
    assert UpscaleConfig.parse({"fit": False}).fit == "off"


def test_flux_is_whole_on_a_large_gpu_and_quantised_on_one_of_24_gb() -> None:
    large, small, tiny = (settled(fit=size) for size in ("80GB", "24GB", "8GB"))
    assert large.model_options.quantize is None
    assert large.dtype == Dtypes()
    assert small.model_options.quantize == "torchao-int8"
    assert tiny.model_options.offload == "group"
    assert large.gpu_bytes["replica"] > 24e9 > small.gpu_bytes["replica"] > 8e9 > tiny.gpu_bytes["replica"]


def test_what_is_decided_is_what_replicas_load() -> None:
    config = UpscaleConfig.parse({"model": FLUX, "dino": "bundled", "address": "none", "fit": "24GB"})
    settings = resolve(config, planning=True)
    assert settings.fit is not None
    assert "24.0 GB free; bf16 takes" in settings.fit
    spec = replica_spec(config, settings)
    assert spec.denoiser is not None
    assert spec.text is not None
    assert settings.model_options in spec.denoiser.args  # type: ignore[attr-defined]
    assert settings.model_options in spec.text.args  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("option", "value"),
    [("quantize", "nf4"), ("offload", "sequential"), ("vae_tile", 256), ("dtype", "fp8")],
)
def test_what_the_user_has_said_stays(option: str, value: Any) -> None:
    settings = settled(fit="24GB", **{option: value})
    kept = settings.dtype if option == "dtype" else getattr(settings.model_options, option)
    assert str(kept) == str(value)


def test_offload_none_rules_offloading_out() -> None:
    with pytest.raises(UsageError, match=r"--fit 7GB: 7\.0 GB free; .* leave --dtype, .*--offload"):
        settled(fit="7GB", offload="none")


def test_off_leaves_all_as_it_is_and_tells_what_it_takes() -> None:
    settings = settled(fit="off")
    assert settings.fit is None
    assert settings.model_options.quantize is None
    assert settings.gpu_bytes["replica"] > 24e9


def test_what_fits_nowhere_is_refused_with_what_would() -> None:
    with pytest.raises(UsageError, match=r"--fit 3GB: 3\.0 GB free; .* takes \d\.\d GB at least .*fits"):
        settled(fit="3GB")


def test_guidance_batches_and_larger_dino_models_count(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sizing.sizes(model_files.resolve(FLUX))
    model = settled(fit="off").model
    assert model is not None

    def needs(
        batch: int, dino: str | None, strength: float, sketch: str | None = "tiny", tile: int = 1024
    ) -> float:
        job = fitting.Job(tile, batch, sketch, dino, strength)
        return fit.replica_needs(fitting.demand(found, model, job, Dtypes()), fit.Way())

    plain = needs(1, None, 0.0)
    assert needs(2, "bundled", 0.5) > needs(1, "bundled", 0.5) > plain
    assert needs(1, "bundled", 0.5, None) > needs(1, "bundled", 0.5), (
        "a whole VAE keeps more than a small decoder"
    )
    assert needs(1, None, 0.0, tile=2048) > plain


def test_a_gpu_is_asked_and_a_share_of_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_memory, "look", lambda: gpu_memory.Gpu("test", 40 * 10**9))
    monkeypatch.setattr(fitting, "_host_free", lambda: None)
    assert settled().model_options.quantize is None
    half = settled(address="local", gpus_per_worker=0.5, quantize="torchao-int8")
    assert "20.0 GB free" in (half.fit or "")


def test_a_gpu_is_looked_at_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_memory, "DRIVERS", (__file__,))
    said = {
        "here": 'a word of a library\n{"name": "A100", "free": 42}',
        "none": "null",
        "broken": "Traceback",
    }
    found = []
    for answer in said.values():
        done = subprocess.CompletedProcess([], 0, answer, "")
        monkeypatch.setattr(subprocess, "run", lambda *args, done=done, **kwargs: done)
        found.append(gpu_memory.look())
    assert found == [gpu_memory.Gpu("A100", 42), None, None]


@pytest.mark.gpu
def test_what_is_free_of_a_real_gpu_is_seen() -> None:
    import torch

    found = gpu_memory.look()
    assert found is not None
    total = torch.cuda.get_device_properties(0).total_memory
    assert 0 < found.free <= total
    held = torch.empty(10**9, dtype=torch.uint8, device="cuda")
    less = gpu_memory.look()
    assert less is not None
    assert found.free - less.free >= 0.9e9
    del held
    again = gpu_memory.look()
    assert again is not None
    assert again.free - less.free >= 0.9e9, "what torch keeps of it for later is free"


def test_a_model_that_nobody_counted_costs_no_time_where_nothing_is_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_flux(tmp_path / "tiny")
    monkeypatch.setattr(metering, "build", lambda *args: pytest.fail("it was counted"))
    options = {"model": str(folder), "dino": "bundled", "address": "none", "device": "cpu"}
    assert resolve(UpscaleConfig.parse(options)).fit is None


def test_without_a_gpu_nothing_is_decided_and_a_word_said_of_a_large_model_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu_memory, "look", lambda: None)
    settings = settled()
    assert settings.fit is None
    assert [r.message for r in caplog.records if "--fit auto: there is no GPU here" in r.message]
    caplog.clear()
    settled(model=str(published.folder("sd15")))
    assert not [r.message for r in caplog.records if "--fit" in r.message]


def test_the_decision_is_logged_once_in_a_run(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    folder = make_tiny_flux(tmp_path / "tiny")
    caplog.set_level(logging.INFO, "dino_ray")
    options = {"model": str(folder), "dino": "bundled", "address": "none", "device": "cpu", "fit": "24GB"}
    settings = resolve(UpscaleConfig.parse(options))
    said = [r.message for r in caplog.records if r.message.startswith("--fit")]
    assert said == [settings.fit]


def test_the_decision_is_part_of_a_job_that_goes_on(tmp_path: Path) -> None:
    folder = make_tiny_flux(tmp_path / "tiny")
    options = {
        "model": str(folder),
        "dino_strength": 0,
        "dino": "bundled",
        "address": "none",
        "device": "cpu",
    }
    fitted = resolve(UpscaleConfig.parse({**options, "fit": "2.5GB"})).fitted
    assert fitted["fit"] == "off"
    again = resolve(UpscaleConfig.parse({**options, **fitted}))
    assert again.model_options.vae_tile == fitted["vae_tile"] == 512


def test_a_model_whose_files_are_quantised_already_is_left_as_it_is(tmp_path: Path) -> None:
    folder = make_tiny_flux(tmp_path / "tiny")
    config_file = folder / "transformer" / "config.json"
    content = json.loads(config_file.read_text()) | {"quantization_config": {"quant_method": "torchao"}}
    config_file.write_text(json.dumps(content))
    options = {"model": str(folder), "dino": "bundled", "address": "none", "device": "cpu", "fit": "2GB"}
    assert resolve(UpscaleConfig.parse(options), planning=True).fit is None


def test_the_bundled_model_needs_no_fitting() -> None:
    with pytest.raises(UsageError, match="--fit 24GB: the bundled model"):
        resolve(UpscaleConfig.parse({"fit": "24GB"}))
    with pytest.raises(UsageError, match="--fit needs a diffusion model"):
        resolve(UpscaleConfig.parse({"model": "none", "fit": "24GB"}))


def test_a_plan_of_a_model_that_is_not_here_is_made_without_a_network(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *args, **kwargs: pytest.fail("a network was asked")
    )
    args = ("plan", photo, "--model", "flux-dev", "--dino", "bundled", "--address", "none", "--fit", "24GB")
    text = dino_ray(*args)
    assert text.exit_code == 0, text.output
    assert "fit     --fit 24GB: 24.0 GB free" in text.stdout
    assert "weights are not here: the first run fetches about 33.7 GB" in text.stdout
    said = json.loads(dino_ray(*args, "--json").stdout)
    assert said["fit"].startswith("--fit 24GB")
    assert said["download_mb"] == pytest.approx(33_700, rel=0.01)
    assert set(said["gpu_mb"]) == {"replica", "text"}
    assert said["peak_rss_mb"]["replica"] > 12_000, "on a CPU, a replica holds the weights, in int8"


def test_configuration_files_alone_are_not_run(photo: Path, tmp_path: Path) -> None:
    done = dino_ray("upscale", photo, "-o", tmp_path / "o.png", "--model", FLUX, "--fit", "off", "--address", "none",
                    "--dino", "bundled")  # fmt: skip
    assert done.exit_code != 0
    assert "configuration files alone" in done.output


def test_a_single_file_is_quantised_only_in_ways_that_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {"img_in.weight": (3072, 64), "double_blocks.0.img_attn.norm.key_norm.scale": (128,)}
    file = header_only(tmp_path / "flux.safetensors", {**shapes, "guidance_in.in_layer.bias": (3072,)})

    def chosen(fit: str, **model: str) -> str | None:
        return settled(fit=fit, **model).model_options.quantize

    alone = {"model": str(file), "components": FLUX}
    for installed, of_folder, of_file in (
        (("nf4", "int8", "torchao-int8"), "torchao-int8", "torchao-int8"),
        (("nf4", "int8"), "int8", None),
    ):
        monkeypatch.setattr(fitting.storage, "quantizers", lambda here=installed: dict.fromkeys(here, True))
        assert (chosen("24GB"), chosen("24GB", **alone)) == (of_folder, of_file)
        assert (chosen("14GB"), chosen("14GB", **alone)) == ("nf4", None)
