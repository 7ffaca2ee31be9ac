"""Where names of models are looked for, what is said where they are not found, and when the network is asked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from single_files import header_only, original_checkpoint, save, weights
from tiny import make_tiny_flux
from tiny_stable_diffusion import make_tiny_stable_diffusion

from dino_ray import hub, identity
from dino_ray.config import UpscaleConfig
from dino_ray.diffusion import downloading, finding, loading, model_files
from dino_ray.diffusion.model_options import ModelOptions
from dino_ray.errors import UsageError
from dino_ray.loaders import replica_spec
from dino_ray.resolve import resolve

COMMIT, OTHER = "0" * 40, "1" * 40


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A machine without models: an empty cache, no folders of models, and a network that must not be asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("DINO_RAY_MODELS", "COMFYUI_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def forbidden(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", forbidden)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", forbidden)
    return tmp_path


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return make_tiny_flux(tmp_path_factory.mktemp("flux") / "flux", "dev")


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return make_tiny_stable_diffusion(tmp_path_factory.mktemp("sd") / "sd", "sd")


def put_in_cache(root: Path, repo: str, folder: Path, commit: str = COMMIT, ref: str = "main") -> Path:
    """What a finished download leaves."""
    home = root / "cache" / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / ref).write_text(commit)
    shutil.copytree(folder, home / "snapshots" / commit)
    return home / "snapshots" / commit


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return header_only(path, {"x": (1,)})


def message(name: str, option: str = "--model") -> str:
    with pytest.raises(UsageError) as caught:
        finding.located(name, option)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{option} {name}")
    return text


# Places


@pytest.mark.parametrize("name", ["my-tune", "my-tune.safetensors", "sub/deep.gguf", "sub/deep"])
def test_a_bare_name_is_found_in_the_users_folders_of_models(places, monkeypatch, name):
    files = [touch(places / "b" / "my-tune.safetensors"), touch(places / "b" / "sub" / "deep.gguf")]
    monkeypatch.setenv("DINO_RAY_MODELS", os.pathsep.join([str(places / "a"), str(places / "b")]))
    found = files["deep" in name]
    ref = loading.resolve(name)
    assert (ref.kind, ref.location, ref.name) == ("file", str(found), found.stem)


def test_a_folder_is_found_there_as_well(places, monkeypatch, flux):
    shutil.copytree(flux, places / "models" / "mine")
    monkeypatch.setenv("DINO_RAY_MODELS", str(places / "models"))
    assert loading.describe("mine").name == "mine"


@pytest.mark.parametrize("kind", ["checkpoints", "diffusion_models", "unet"])
@pytest.mark.parametrize("root", ["ComfyUI", "ComfyUI/models"])
def test_a_bare_name_is_found_in_a_comfyui(places, monkeypatch, kind, root):
    file = touch(places / "ComfyUI" / "models" / kind / "sub" / "model.safetensors")
    monkeypatch.setenv("COMFYUI_PATH", str(places / root))
    assert finding.located("sub/model.safetensors") == str(file)
    assert "no such file" in message("sub/model.safetensors", "--vae")


def test_vaes_are_found_in_comfyuis_own_folder_for_them(places, monkeypatch):
    file = touch(places / "models" / "vae" / "ae.safetensors")
    monkeypatch.setenv("COMFYUI_PATH", str(places))
    assert finding.located("ae", "--vae") == str(file)
    assert "no such file" in message("ae")


def test_comfyuis_file_of_more_folders_is_read(places, monkeypatch):
    (places / "comfy").mkdir()
    (places / "comfy" / "extra_model_paths.yaml").write_text(
        f"a111:\n  base_path: {places}/webui\n  checkpoints: |\n    models/one\n    models/two\n  vae: models/VAE\n"
        "relative:\n  unet: ../beside\nnotes: nothing\n"
    )
    files = [
        touch(places / "webui" / "models" / "two" / "tune.safetensors"),
        touch(places / "beside" / "u.gguf"),
    ]
    monkeypatch.setenv("COMFYUI_PATH", str(places / "comfy"))
    assert finding.located("tune") == str(files[0])
    assert finding.located("u.gguf") == str(files[1])
    (places / "comfy" / "extra_model_paths.yaml").write_text("a: [")
    assert "no such file" in message("tune")


def test_a_path_wins_over_everything_and_libraries_are_not_searched_for_one(places, monkeypatch):
    touch(places / "models" / "tune.safetensors")
    monkeypatch.setenv("DINO_RAY_MODELS", str(places / "models"))
    for path in (str(places / "tune.safetensors"), "./tune.safetensors", "../tune.safetensors"):
        assert "no such file" in message(path)
    here = touch(places / "here" / "tune.safetensors")
    for path in ("tune.safetensors", "./tune.safetensors", str(here)):
        assert finding.located(path) == str(here)


def test_a_name_that_is_nowhere_says_where_it_was_looked_for(places, monkeypatch):
    text = message("tune")
    assert "DINO_RAY_MODELS and COMFYUI_PATH would name more" in text
    monkeypatch.setenv("DINO_RAY_MODELS", os.pathsep.join([str(places / "a"), str(places / "b")]))
    monkeypatch.setenv("COMFYUI_PATH", str(places / "comfy"))
    text = message("tune")
    for place in ("here", "a", "b", "comfy/checkpoints", "comfy/unet", "cache"):
        assert str(places / place) in text
    assert "would name more" not in text


def test_a_name_that_means_several_lists_them(places, monkeypatch):
    files = [touch(places / name) for name in ("a/tune.safetensors", "a/tune.gguf", "b/tune.safetensors")]
    monkeypatch.setenv("DINO_RAY_MODELS", os.pathsep.join([str(places / "a"), str(places / "b")]))
    text = message("tune")
    assert "means 3 models" in text
    assert all(str(file) in text for file in files)
    assert "means 2 models" in message("tune.safetensors")
    assert finding.located("tune.gguf") == str(files[1])
    (places / "b" / "tune.safetensors").unlink()
    (places / "b" / "tune.safetensors").symlink_to(files[0])
    assert finding.located("tune.safetensors") == str(files[0])  # one file by two names


def test_a_pickle_is_found_only_for_want_of_another_file(places, monkeypatch):
    (places / "a").mkdir()
    (places / "a" / "tune.ckpt").touch()
    monkeypatch.setenv("DINO_RAY_MODELS", str(places / "a"))
    assert finding.located("tune") == str(places / "a" / "tune.ckpt")
    file = touch(places / "a" / "tune.safetensors")
    assert finding.located("tune") == str(file)


# The cache


def test_a_hub_id_in_the_cache_asks_no_network(places, flux):
    put_in_cache(places, "someone/tiny", flux)
    assert loading.describe("someone/tiny").name == "someone/tiny"
    loading.load("someone/tiny", "cpu")
    assert loading.encode_text("someone/tiny", "a fox")
    assert finding.located("tiny") == "someone/tiny"
    put_in_cache(places, "another/tiny", flux)
    assert "another/tiny, someone/tiny" in message("tiny")


def test_a_revision_is_another_model(places, flux, sd):
    put_in_cache(places, "someone/tiny", flux)
    put_in_cache(places, "someone/tiny", sd, OTHER, "v2")
    assert loading.describe("someone/tiny").family == "flux"
    for revision in ("v2", OTHER):
        name = f"someone/tiny@{revision}"
        assert loading.describe(name).family == "sd"
        assert finding.located(name) == name
        assert OTHER in identity.of_weights(name)
    assert COMMIT in identity.of_weights("someone/tiny")


def test_a_revision_is_asked_of_the_hub(flux, monkeypatch):
    asked = []

    def snapshot_download(repo, *, allow_patterns, revision, dry_run=False, local_files_only=False):
        asked.append((repo, revision))
        return (
            [SimpleNamespace(filename=name) for name in hub.names(flux, allow_patterns)]
            if dry_run
            else str(flux)
        )

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    loading.describe("someone/tiny@v2")
    loading.load("flux-dev@v2", "cpu")
    assert set(asked) == {("someone/tiny", "v2"), (loading.ALIASES["flux-dev"], "v2")}


@pytest.mark.parametrize(
    "lost",
    [
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder_2/config.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_what_a_broken_download_has_left_out_is_fetched(places, flux, monkeypatch, lost):
    cached = put_in_cache(places, "someone/tiny", flux)
    assert model_files.is_present("someone/tiny")
    (cached / lost).unlink()
    assert not model_files.is_present("someone/tiny")
    fetched = []

    def snapshot_download(repo, *, allow_patterns, local_files_only=False):
        fetched.extend(allow_patterns)
        shutil.copy(flux / lost, cached / lost)
        return str(cached)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    downloading.download("someone/tiny")
    assert any(pattern.startswith(lost.partition("/")[0]) for pattern in fetched)
    assert model_files.is_present("someone/tiny")
    fetched.clear()
    downloading.download("someone/tiny")
    assert fetched == []


def test_a_missing_shard_makes_a_cached_model_incomplete(places, flux):
    cached = put_in_cache(places, "someone/tiny", flux)
    index = cached / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "x-2.safetensors"}}')
    assert not model_files.is_present("someone/tiny")
    touch(cached / "transformer" / "x-2.safetensors")
    assert model_files.is_present("someone/tiny")


def test_whether_a_model_is_present_asks_no_network(places, flux):
    assert model_files.is_present("bundled")
    assert model_files.is_present(str(flux))
    assert not model_files.is_present("flux-dev")
    assert not model_files.is_present("no such model")
    put_in_cache(places, loading.ALIASES["flux-dev"], flux)
    assert model_files.is_present("flux-dev")
    assert not model_files.is_present("flux-dev@v2")


def test_other_types_of_the_same_weights_are_not_downloaded(flux, monkeypatch):
    import fnmatch

    asked = []

    def snapshot_download(repo, *, allow_patterns, dry_run=False, local_files_only=False):
        asked.extend(() if dry_run else allow_patterns)
        return (
            [SimpleNamespace(filename=name) for name in hub.names(flux, allow_patterns)]
            if dry_run
            else str(flux)
        )

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    downloading.download("flux-dev")

    def wanted(name):
        return any(fnmatch.fnmatch(name, pattern) for pattern in asked)

    for stem in ("transformer/diffusion_pytorch_model", "text_encoder/model"):
        assert wanted(f"{stem}.safetensors")
        assert wanted(f"{stem}-00001-of-00003.safetensors")
        for other in (".fp16.safetensors", ".fp16-00001-of-00002.safetensors", ".bin"):
            assert not wanted(stem + other)


# Downloads


def test_a_gated_model_says_which_licence_to_accept_and_where(monkeypatch):
    from huggingface_hub import errors

    def refuse(*_, **__):
        raise errors.GatedRepoError("no", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UsageError) as caught:
        loading.describe("flux-dev")
    text = str(caught.value)
    assert "FLUX.1 [dev] Non-Commercial License" in text
    assert "https://huggingface.co/black-forest-labs/FLUX.1-dev" in text
    assert text.count("hf auth login") == 1


@pytest.mark.parametrize("shown", [False, True])
def test_downloads_draw_bars_only_where_they_are_asked_to(flux, monkeypatch, shown):
    import contextlib

    from huggingface_hub.utils import are_progress_bars_disabled

    seen = []

    def snapshot_download(repo, **_):
        seen.append(not are_progress_bars_disabled())
        return str(flux)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    before = are_progress_bars_disabled()
    with hub.bars_shown() if shown else contextlib.nullcontext():
        downloading.download("flux-dev")
    assert seen
    assert set(seen) == {shown}
    assert are_progress_bars_disabled() == before


# Components


def test_what_a_file_lacks_comes_from_the_published_model_of_its_kind(places, flux, monkeypatch):
    """FLUX.1-dev's real shape, of zeros that take no room: told by its header, its other parts by the cache."""
    shapes = {"img_in.weight": (3072, 64), "guidance_in.in_layer.bias": (3072,),
              "double_blocks.0.img_attn.norm.key_norm.scale": (128,)}  # fmt: skip
    file = header_only(places / "flux1-dev.safetensors", shapes)
    put_in_cache(places, loading.ALIASES["flux-dev"], flux)
    description = loading.describe(str(file))
    assert (description.name, description.guidance, description.tile) == ("flux1-dev", "embedded", 1024)
    ref = loading.resolve(str(file))
    found = model_files.fetch(ref, ("transformer", "vae", "tokenizer"))
    assert found["transformer"].path == file
    assert found["transformer"].config.parent.name == "flux-dev"
    assert found["vae"].path.parent.name == found["tokenizer"].path.parent.name == COMMIT


def test_offline_a_lacking_component_says_how_to_get_it(places, flux, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(places / "cache"))
    shapes = {"img_in.weight": (3072, 64), "double_blocks.0.img_attn.norm.key_norm.scale": (128,)}
    file = header_only(places / "flux1-schnell.safetensors", shapes)
    with pytest.raises(UsageError, match=r"--components black-forest-labs/FLUX.1-schnell") as caught:
        loading.describe(str(file))
    assert "hf download black-forest-labs/FLUX.1-schnell" in str(caught.value)
    assert "can't be reached" in str(caught.value)


def test_components_may_be_a_cached_hub_id(places, sd):
    put_in_cache(places, "someone/sd", sd)
    file = save(places / "tune.safetensors", weights(sd, "unet"))
    options = ModelOptions(components="someone/sd")
    assert loading.describe(str(file), options=options).family == "sd"
    assert loading.load(str(file), "cpu", options=options)
    for wrong in (str(file), "bundled", "none"):
        with pytest.raises(UsageError, match="--components"):
            loading.describe(str(file), options=ModelOptions(components=wrong))


def test_a_vae_may_be_a_cached_hub_id_of_a_vae_or_of_a_model(places, sd):
    put_in_cache(places, "someone/sd", sd)
    put_in_cache(places, "someone/sd-vae", sd / "vae")
    for name in ("someone/sd", "someone/sd-vae"):
        options = ModelOptions(vae=name)
        loading.describe(str(sd), options=options)
        assert loading.load(str(sd), "cpu", options=options)._vae


# Options


def test_names_are_settled_to_what_means_the_same_on_every_machine(places, monkeypatch, sd):
    monkeypatch.setenv("DINO_RAY_MODELS", str(places / "models"))
    (places / "models").mkdir()
    file = save(places / "models" / "tune.safetensors", original_checkpoint(sd))
    shutil.copytree(sd, places / "models" / "parts")
    shutil.copytree(sd / "vae", places / "here" / "vae")
    config = UpscaleConfig(
        model="tune", components="parts", vae="vae", dino_strength=0, adaptive=0, verify=False
    )
    settings = resolve(config)
    assert settings.model_place == str(file)
    assert settings.model_options == ModelOptions(
        components=str(places / "models" / "parts"), vae=str(places / "here" / "vae")
    )
    monkeypatch.delenv("DINO_RAY_MODELS")
    monkeypatch.chdir(places)
    spec = replica_spec(config, settings)
    assert spec.denoiser is not None
    assert spec.denoiser().description.name == "tune"
    before = identity.of_pixels(str(file), config, settings, 8, False)
    assert {Path(name).name for name in before["weights"]} == {"tune.safetensors", "parts", "vae"}
    shutil.rmtree(places / "here" / "vae")
    shutil.copytree(sd / "vae", places / "here" / "vae", copy_function=shutil.copy)
    assert identity.of_pixels(str(file), config, settings, 8, False)["weights"] != before["weights"]


@pytest.mark.parametrize("option", [{"components": "x/y"}, {"vae": "x/y"}, {"allow_pickle": True}])
def test_without_a_model_they_are_refused(option):
    with pytest.raises(UsageError, match=f"--{next(iter(option)).replace('_', '-')}"):
        resolve(UpscaleConfig(model="none", **option))


@pytest.mark.parametrize("option", [{"components": "x/y"}, {"vae": "x/y"}])
def test_the_bundled_model_takes_no_other_parts(option):
    with pytest.raises(UsageError, match=f"--{next(iter(option))}"):
        resolve(UpscaleConfig(**option))
