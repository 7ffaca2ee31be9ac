"""Which names mean which models, what is refused and how, and what loading reads."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_tiny_flux

from dino_ray import hub
from dino_ray.diffusion import loading
from dino_ray.errors import JobError, UsageError


@pytest.fixture(scope="module", params=["schnell", "dev"])
def folder(request, tmp_path_factory):
    return make_tiny_flux(tmp_path_factory.mktemp("flux") / f"my-{request.param}", request.param)


@pytest.fixture
def spoiled(tmp_path):
    return make_tiny_flux(tmp_path / "spoiled")


def edit(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# Names


def test_every_kind_of_name_is_resolved(folder, tmp_path):
    assert loading.resolve("none").kind == "none"
    assert loading.resolve("bundled").kind == "bundled"
    dev = "black-forest-labs/FLUX.1-dev"
    assert loading.resolve("flux-dev") == loading.ModelRef(dev, "hub", dev)
    assert loading.resolve("someone/a-fine.tune_2").kind == "hub"
    assert loading.resolve(str(folder)) == loading.ModelRef(folder.name, "folder", str(folder))
    (tmp_path / "model.json").write_text("{}")
    assert loading.resolve(str(tmp_path)) == loading.ModelRef(tmp_path.name, "bundled", str(tmp_path))


def test_a_folder_shadows_a_hub_id_of_the_same_spelling(folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    spelling = f"{folder.parent.name}/{folder.name}"
    assert hub.REPO_ID.fullmatch(spelling)
    assert loading.resolve(spelling).kind == "folder"


@pytest.mark.parametrize("name", ["flux", "", "flux-dev-2", "no such"])
def test_an_unknown_name_lists_what_a_model_may_be(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        loading.describe(name)
    text = one_line(error)
    assert all(alias in text for alias in loading.ALIASES)
    assert "bundled" in text
    assert "model_index.json" in text


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "./absent", "~/absent-model", "a/b/c", "owner/x.safetensors"]
)
def test_a_missing_path_is_not_taken_for_a_hub_id(path):
    with pytest.raises(UsageError, match="no such"):
        loading.resolve(path)


def test_an_empty_file_is_refused(tmp_path):
    file = tmp_path / "flux.safetensors"
    file.touch()
    with pytest.raises(UsageError, match="can't be read"):
        loading.describe(str(file))


def test_the_catalogue_has_every_alias_and_what_ships():
    assert {model.alias for model in loading.KNOWN} == {*loading.ALIASES, "bundled", "none"}
    assert all(model.licence for model in loading.KNOWN)
    assert all(hub.REPO_ID.fullmatch(repo) for repo in loading.ALIASES.values())


def test_none_has_nothing_to_describe_or_load_or_encode():
    for call in (loading.describe, loading.load):
        with pytest.raises(ValueError, match="none"):
            call("none")
    assert loading.encode_text("none", "a prompt") == {}


# Folders


def test_a_folder_is_described_from_its_configs(folder):
    description = loading.describe(str(folder))
    assert description.name == folder.name
    assert (description.family, description.latent_scale, description.latent_channels) == ("flux", 8, 16)
    assert description.guidance == ("embedded" if "dev" in folder.name else "none")
    assert description == loading.load(str(folder)).description


def test_describing_imports_neither_torch_nor_diffusers(folder):
    program = (
        "import sys; from dino_ray.diffusion import loading; loading.describe(sys.argv[1]); "
        "print([name for name in ('torch', 'diffusers', 'transformers', 'ray') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_loading_a_replica_reads_no_text_encoder(tmp_path):
    textless = make_tiny_flux(tmp_path / "textless", text=False)
    loading.load(str(textless))
    with pytest.raises(UsageError, match=r"text_encoder/"):
        loading.describe(str(textless))
    with pytest.raises(UsageError, match=r"text_encoder/"):
        loading.encode_text(str(textless), "a prompt")


def test_encoding_text_reads_no_transformer(folder, tmp_path):
    copy = tmp_path / folder.name
    copy.mkdir()
    for part in folder.iterdir():
        (copy / part.name).symlink_to(part)
    (copy / "transformer").unlink()
    (copy / "transformer").mkdir()
    (copy / "transformer" / "config.json").write_text((folder / "transformer" / "config.json").read_text())
    assert loading.encode_text(str(copy), "a prompt").keys() == {"prompt_embeds", "pooled_prompt_embeds"}


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"model_index\.json"):
        loading.describe(str(tmp_path))


@pytest.mark.parametrize("pipeline", ["StableCascadeDecoderPipeline", "FluxFillPipeline", None])
def test_a_pipeline_that_cannot_be_driven_is_named_with_those_that_can(spoiled, pipeline):
    edit(spoiled / "model_index.json", _class_name=pipeline)
    with pytest.raises(UsageError) as error:
        loading.describe(str(spoiled))
    assert str(pipeline) in one_line(error)
    assert "FluxPipeline" in one_line(error)


@pytest.mark.parametrize("call", [loading.describe, loading.load])
@pytest.mark.parametrize("component", ["transformer", "vae"])
def test_pickles_are_refused_unread(spoiled, component, call):
    weights = spoiled / component / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UsageError) as error:
        call(str(spoiled))
    assert f"{component}/diffusion_pytorch_model.bin" in one_line(error)
    assert "pickle" in one_line(error)
    assert "safetensors" in one_line(error)


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_missing_weights_are_named_before_anything_is_loaded(spoiled, component):
    next((spoiled / component).glob("*.safetensors")).unlink()
    with pytest.raises(UsageError, match=f"{component}/"):
        loading.describe(str(spoiled))


def test_a_missing_shard_is_named(spoiled):
    index = {"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "part-2.safetensors"}}
    (spoiled / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"transformer/part-2\.safetensors is missing"):
        loading.describe(str(spoiled))


@pytest.mark.parametrize(
    "name", ["transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
)
def test_a_missing_or_damaged_config_is_named(spoiled, name):
    (spoiled / name).write_text("{")
    with pytest.raises(UsageError, match=name):
        loading.describe(str(spoiled))
    (spoiled / name).unlink()
    with pytest.raises(UsageError, match=f"{name} is missing"):
        loading.describe(str(spoiled))


@pytest.mark.parametrize("component", ["transformer", "vae"])
def test_truncated_weights_fail_with_their_place(spoiled, component):
    weights = spoiled / component / "diffusion_pytorch_model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(JobError) as error:
        loading.load(str(spoiled))
    assert str(spoiled / component) in one_line(error)


def test_weights_that_do_not_fit_their_config_fail_with_their_place(spoiled):
    edit(spoiled / "transformer" / "config.json", joint_attention_dim=48)
    with pytest.raises(JobError) as error:
        loading.load(str(spoiled))
    assert str(spoiled / "transformer") in one_line(error)


@pytest.mark.parametrize(
    ("component", "call"),
    [("transformer", loading.load), ("vae", loading.load), ("text_encoder", None), ("text_encoder_2", None)],
)
def test_weights_that_lack_a_tensor_fail_and_are_not_made_up(spoiled, component, call):
    path = next((spoiled / component).glob("*.safetensors"))
    tensors = load_file(path)
    lost = sorted(name for name in tensors if name.endswith(".weight"))[3]
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, path, {"format": "pt"})
    with pytest.raises(JobError, match="lack") as error:
        call(str(spoiled)) if call else loading.encode_text(str(spoiled), "a prompt")
    assert component in one_line(error)


def test_truncated_text_weights_fail_with_their_place(spoiled):
    weights = spoiled / "text_encoder_2" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(JobError, match="text_encoder_2"):
        loading.encode_text(str(spoiled), "a prompt")


def test_unknown_dtypes_and_absent_devices_are_refused(folder):
    with pytest.raises(UsageError, match="float8"):
        loading.load(str(folder), "cpu", "float8")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="cuda"):
            loading.load(str(folder), "cuda")


# Text


@pytest.mark.parametrize("prompt", ["", "a red fox, in the snow", "far too long " * 80])
def test_text_is_encoded_as_the_stock_pipeline_does(folder, prompt):
    from diffusers import FluxPipeline

    stock = FluxPipeline.from_pretrained(folder, transformer=None, vae=None)
    length = 512 if "dev" in folder.name else 256
    with torch.no_grad():
        sequence, pooled, _ = stock.encode_prompt(prompt, max_sequence_length=length)
    ours = loading.encode_text(str(folder), prompt, "cpu")
    assert torch.equal(ours["prompt_embeds"], sequence)
    assert torch.equal(ours["pooled_prompt_embeds"], pooled)
    assert sequence.shape == (1, length, 32)


def test_embeddings_travel_as_float32_arrays_whatever_they_were_computed_in(folder):
    exact = loading.encode_text(str(folder), "a fox", "cpu")
    coarse = loading.encode_text(str(folder), "a fox", "cpu", "bfloat16")
    for name, embedding in coarse.items():
        array = embedding.numpy()
        assert array.dtype == "float32"
        assert torch.equal(embedding.bfloat16().float(), embedding)
        assert 0 < abs(array - exact[name].numpy()).max() < 0.2


def test_a_prompt_that_is_cut_is_warned_about(folder, caplog):
    with caplog.at_level(logging.WARNING):
        loading.encode_text(str(folder), "a fox", "cpu")
        assert not caplog.records
        loading.encode_text(str(folder), "many words " * 200, "cpu")
    assert "its end is cut" in caplog.text


# The hub


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put_in_cache(cache: Path, repo: str) -> Path:
    """What a finished download of ``repo`` leaves."""
    commit = "0" * 40
    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    return make_tiny_flux(home / "snapshots" / commit)


def test_a_cached_model_works_offline(cache, offline):
    put_in_cache(cache, "someone/tiny-flux")
    description = loading.describe("someone/tiny-flux")
    assert description.name == "someone/tiny-flux"
    assert loading.load("someone/tiny-flux").description == description
    assert loading.encode_text("someone/tiny-flux", "a fox").keys() == {
        "prompt_embeds",
        "pooled_prompt_embeds",
    }


def test_an_alias_is_its_hub_id(cache, offline):
    put_in_cache(cache, loading.ALIASES["flux-schnell"])
    assert loading.describe("flux-schnell").name == "black-forest-labs/FLUX.1-schnell"


def test_cached_pickles_are_refused(cache, offline):
    weights = put_in_cache(cache, "someone/pickled") / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UsageError, match="pickle"):
        loading.describe("someone/pickled")


def test_offline_without_a_cache_says_how_to_get_the_model(cache, offline):
    for call in (loading.describe, loading.load, lambda model: loading.encode_text(model, "")):
        with pytest.raises(UsageError) as error:
            call("someone/unseen")
        assert "hf download someone/unseen" in one_line(error)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("GatedRepoError", "https://huggingface.co/black-forest-labs/FLUX.1-dev"),
        ("RepositoryNotFoundError", "check the spelling"),
        ("HfHubHTTPError", "try again later"),
    ],
)
def test_the_hubs_refusals_say_what_to_do(monkeypatch, name, advice):
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_, **__):
        raise getattr(errors, name)(
            "refused\nwith details", response=SimpleNamespace(headers={}, request=None)
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UsageError) as error:
        loading.describe("flux-dev")
    assert "black-forest-labs/FLUX.1-dev" in one_line(error)
    assert advice in one_line(error)
    if name == "GatedRepoError":
        assert "hf auth login" in one_line(error)


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), RuntimeError("connection reset\nagain")]
)
def test_a_download_that_breaks_off_can_be_resumed(monkeypatch, failure):
    import huggingface_hub

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(JobError) as error:
        loading.load("flux-dev")
    assert "resume" in one_line(error)


def test_online_only_configs_are_downloaded_to_describe(folder, monkeypatch):
    import huggingface_hub

    downloaded = []

    def snapshot_download(repo, *, allow_patterns, dry_run=False, local_files_only=False):
        assert not local_files_only
        if dry_run:
            return [SimpleNamespace(filename=name) for name in hub.names(folder, allow_patterns)]
        downloaded.extend(hub.names(folder, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loading.describe("flux-dev")
    assert sorted(set(downloaded)) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "vae/config.json",
    ]
    downloaded.clear()
    loading.load("flux-dev")
    assert not [name for name in downloaded if name.startswith("text")]
    downloaded.clear()
    loading.encode_text("flux-dev", "a fox")
    assert not [name for name in downloaded if name.startswith(("transformer/diff", "vae/diff"))]
