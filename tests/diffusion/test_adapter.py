"""A DINO adapter: tokens that count where they lie and fade with strength; files that fit one model and no other."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import LATENT_CHANNELS, TEXT_WIDTH, make_tiny_flux

from dino_ray.config import UpscaleConfig
from dino_ray.diffusion import adapter as adapters
from dino_ray.diffusion import adapter_file, bundled, loading
from dino_ray.diffusion.adapter import DinoAdapter
from dino_ray.diffusion.adapter_file import AdapterFacts
from dino_ray.diffusion.context import DINO_AXIS, lay_out
from dino_ray.diffusion.denoiser import Conditioning, DinoTokens
from dino_ray.errors import UsageError
from dino_ray.identity import of_pixels
from dino_ray.resolve import resolve

CHANNELS = 256  # of the bundled DINO's two levels
SIDE_H, SIDE_W = 16, 24  # latent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_flux(tmp_path_factory.mktemp("flux") / "mine")


def facts_for(model, **changes):
    target = loading.adapter_target(loading.resolve(str(model)))
    facts = AdapterFacts(
        dino="bundled",
        channels=CHANNELS,
        hidden=24,
        width=target.width,
        stride=32,
        family=target.family,
        model=target.name,
        fingerprint=adapter_file.fingerprint(target.transformer),
    )
    return dataclasses.replace(facts, **changes)


def made(facts):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapter = DinoAdapter(facts)
        adapter.outer.weight.data *= 30  # as trained ones: tokens that differ
    return adapter


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters") / "mine.safetensors"
    adapters.save(made(facts_for(folder)), path)
    return path


@pytest.fixture(scope="module")
def plain(folder):
    return loading.load(str(folder), "cpu", "float32")


@pytest.fixture(scope="module")
def denoiser(folder, file):
    return loading.load(str(folder), "cpu", "float32", str(file))


@pytest.fixture(scope="module")
def text(folder):
    return loading.encode_text(str(folder), "a red fox", "cpu")


def latents(batch=1):
    return torch.randn(batch, LATENT_CHANNELS, SIDE_H, SIDE_W, generator=torch.Generator().manual_seed(0))


def features(seed=1, rows=4, cols=6):
    return torch.randn(1, rows, cols, CHANNELS, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def predict(denoiser, text):
    def call(tokens, strength=1.0):
        dino = None if tokens is None else DinoTokens(tokens, strength)
        return denoiser.predict(latents(), 0.5, Conditioning(text, dino=dino))

    return call


def apart(one, other):
    return (one - other).abs().mean().item()


# What tokens do


def test_without_tokens_a_model_with_an_adapter_is_the_model_to_the_byte(plain, predict, text):
    assert torch.equal(predict(None), plain.predict(latents(), 0.5, Conditioning(text)))


def test_tokens_of_another_image_change_the_prediction(predict):
    assert apart(predict(features(1)), predict(features(2))) > 1e-4


def test_strength_fades_tokens_out_to_no_tokens(predict):
    without = predict(None)
    distances = [apart(predict(features(), strength), without) for strength in (1e-6, 0.3, 1.0)]
    assert distances[0] < 1e-5
    assert distances[0] < distances[1] < distances[2]


def test_where_a_token_lies_matters(predict):
    assert apart(predict(features()), predict(features().roll(1, dims=2))) > 1e-5


def test_text_keeps_its_place_and_tokens_follow_at_that_of_their_patches():
    words = torch.randn(1, 2, 8)
    context = lay_out(words, DinoTokens(torch.ones(1, 1, 2, 8), 0.5), (2, 4))
    assert torch.equal(context.tokens[:, :2], words)
    assert context.positions.tolist() == [[0, 0, 0], [0, 0, 0], [DINO_AXIS, 0.5, 0.5], [DINO_AXIS, 0.5, 2.5]]
    bias = context.attention(3)["attention_mask"].flatten()
    assert bias.tolist() == pytest.approx([0, 0, -0.6931472, -0.6931472, 0, 0, 0])


def test_a_batch_gives_what_its_tiles_give_alone(denoiser, text):
    x, tokens = latents(2), torch.cat([features(1), features(2)])
    together = denoiser.predict(x, 0.5, Conditioning(text, dino=DinoTokens(tokens, 0.7)))
    alone = [
        denoiser.predict(x[i : i + 1], 0.5, Conditioning(text, dino=DinoTokens(tokens[i : i + 1], 0.7)))
        for i in range(2)
    ]
    assert (together - torch.cat(alone)).abs().max() < 1e-5


def test_a_model_in_bfloat16_keeps_the_adapter_in_float32(folder, file, text, predict):
    half = loading.load(str(folder), "cpu", "bfloat16", str(file))
    x0 = half.predict(latents(), 0.5, Conditioning(text, dino=DinoTokens(features(), 1.0)))
    assert x0.dtype == torch.float32
    assert 0 < (x0 - predict(features())).abs().max() < 0.2


def test_gradients_reach_the_adapter_and_nothing_of_the_model(plain, text, folder):
    adapter = made(facts_for(folder))
    trained = plain.adapted(adapter, adapter.facts)
    trained.predict(latents(), 0.5, Conditioning(text, dino=DinoTokens(features(), 1.0))).sum().backward()
    assert all(weight.grad.abs().max() > 0 for weight in adapter.parameters())
    assert not any(weight.requires_grad for weight in plain._core.parameters())


def test_the_bundled_model_takes_adapted_tokens_for_its_own(tmp_path):
    adapter = made(facts_for("bundled", channels=48))  # of some other DINO
    adapters.save(adapter, tmp_path / "b.safetensors")
    denoiser = loading.load("bundled", "cpu", adapter=str(tmp_path / "b.safetensors"))
    assert denoiser.description.dino_dim == 48
    tokens = torch.randn(1, 2, 2, 48, generator=torch.Generator().manual_seed(0))
    z = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = denoiser.predict(z, 0.5, Conditioning(dino=DinoTokens(tokens, 1.0)))
        same = bundled.load().predict(z, 0.5, Conditioning(dino=DinoTokens(adapter(tokens), 1.0)))
    assert torch.equal(ours, same)


# What is described, saved and refused


def test_a_saved_adapter_predicts_as_before(plain, denoiser, text, folder):
    adapter = made(facts_for(folder))
    before = plain.adapted(adapter, adapter.facts)
    conditioning = Conditioning(text, dino=DinoTokens(features(), 1.0))
    assert torch.equal(
        before.predict(latents(), 0.5, conditioning), denoiser.predict(latents(), 0.5, conditioning)
    )


def test_a_description_says_what_the_adapter_asks_for(folder, file, denoiser, plain):
    described = loading.describe(str(folder), str(file))
    assert (described.dino, described.dino_dim, described.dino_stride) == ("bundled", CHANNELS, 32)
    assert described == denoiser.description
    assert loading.describe(str(folder)) == plain.description
    assert plain.description.dino_dim is None


def test_describing_an_adapter_imports_no_torch(folder, file):
    code = (
        "import sys; from dino_ray.diffusion import loading; loading.describe(*sys.argv[1:]); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(file)], check=True)


def refusal(folder, path):
    with pytest.raises(UsageError) as caught:
        loading.describe(str(folder), str(path))
    text = str(caught.value)
    assert "\n" not in text
    assert f"--dino-adapter {path}" in text
    with pytest.raises(UsageError):
        loading.load(str(folder), "cpu", adapter=str(path))
    return text


def test_an_adapter_of_another_model_is_refused(folder, tmp_path, file):
    assert "family" in refusal("bundled", file)
    adapters.save(made(facts_for(folder, width=TEXT_WIDTH + 8)), tmp_path / "wide.safetensors")
    assert "width" in refusal(folder, tmp_path / "wide.safetensors")
    other = shutil.copytree(folder, tmp_path / "other")
    weights = next((other / "transformer").glob("*.safetensors"))
    tensors = load_file(weights)
    tensors["proj_out.weight"] += 1
    save_file(tensors, weights, {"format": "pt"})
    message = refusal(other, file)
    assert "mine" in message
    assert "other" in message


def test_the_same_weights_elsewhere_and_in_other_shards_are_the_same_model(folder, tmp_path, file):
    from diffusers import FluxTransformer2DModel

    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "transformer")
    FluxTransformer2DModel.from_pretrained(folder / "transformer").save_pretrained(
        copy / "transformer", max_shard_size="40KB"
    )
    assert len(list((copy / "transformer").glob("*.safetensors"))) > 1
    assert loading.describe(str(copy), str(file)).dino_dim == CHANNELS


def test_weights_that_are_not_here_yet_are_looked_at_once_they_are(folder, file):
    far = adapter_file.Target("owner/name", "flux", TEXT_WIDTH, None)
    assert adapter_file.describe(file, far) == facts_for(folder)
    with pytest.raises(UsageError, match="weights"):
        adapter_file.describe(file, dataclasses.replace(far, transformer=bundled.FOLDER / "transformer"))


@pytest.mark.parametrize("spoilt", ["missing", "foreign", "shape"])
def test_an_adapter_is_never_completed_by_random_weights(folder, tmp_path, file, spoilt):
    tensors = load_file(file)
    name = "inner.bias"
    if spoilt == "missing":
        del tensors[name]
    elif spoilt == "foreign":
        name = "extra"
        tensors[name] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(5)
    save_file(tensors, tmp_path / "s.safetensors", facts_for(folder).metadata())
    assert name in refusal(folder, tmp_path / "s.safetensors")


def test_what_is_no_adapter_is_refused(folder, tmp_path):
    assert "no such file" in refusal(folder, tmp_path / "absent.safetensors")
    torch.save({"outer.weight": torch.zeros(2)}, tmp_path / "pickle.pt")
    assert "run any code" in refusal(folder, tmp_path / "pickle.pt")
    (tmp_path / "pickle.pt").rename(tmp_path / "disguised.safetensors")
    assert "can't be read" in refusal(folder, tmp_path / "disguised.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "lora.safetensors", {"format": "pt"})
    assert "format dino_ray.adapter/1" in refusal(folder, tmp_path / "lora.safetensors")
    metadata = facts_for(folder).metadata() | {"channels": "many"}
    save_file({"w": torch.zeros(2)}, tmp_path / "odd.safetensors", metadata)
    assert "channels='many'" in refusal(folder, tmp_path / "odd.safetensors")


# Options


def asked(folder, file, **options):
    return resolve(UpscaleConfig(model=str(folder), dino_adapter=str(file), **options))


def test_auto_takes_the_adapters_dino(folder, file, tmp_path):
    settings = asked(folder, file)
    assert (settings.dino, settings.dino_strength) == ("bundled", 1.0)
    assert settings.dino_tokens
    assert not resolve(UpscaleConfig(model=str(folder))).dino_tokens
    small = tmp_path / "small-dino"
    small.mkdir()
    config = json.loads(((bundled.FOLDER.parents[2] / "dino" / "weights") / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    adapters.save(made(facts_for(folder, channels=128, dino=str(small))), tmp_path / "a.safetensors")
    assert asked(folder, tmp_path / "a.safetensors").dino == str(small)
    with pytest.raises(
        UsageError, match=r"--dino .*small-dino: its features have 64 channels, and the adapter"
    ):
        asked(folder, file, dino=str(small))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "none"}, "--dino-adapter needs a diffusion model"),
        ({"denoise": 0}, "--dino-adapter has nothing to act on"),
        ({"dino_strength": 0}, "--dino-adapter: --dino-strength 0"),
    ],
)
def test_an_adapter_that_could_not_act_is_refused(folder, file, options, message):
    with pytest.raises(UsageError, match=message):
        asked(folder=options.pop("model", folder), file=file, **options)


def test_a_dino_of_the_right_width_that_is_not_the_adapters_is_warned_of(folder, file, tmp_path, caplog):
    other = tmp_path / "other-dino"
    shutil.copytree(bundled.FOLDER.parents[2] / "dino" / "weights", other)
    assert asked(folder, file, dino=str(other)).dino == str(other)
    assert "the adapter was trained with bundled" in caplog.text


def test_an_upscale_shows_the_adapters_effect_and_names_it(folder, tmp_path):
    import numpy as np

    import dino_ray

    path = tmp_path / "coarse.safetensors"
    adapters.save(made(facts_for(folder, stride=64)), path)  # wider than the tile: still one token
    source = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    options = {
        "model": str(folder),
        "denoise": 0.9,
        "tile": 32,
        "overlap": 16,
        "address": "none",
        "depth": 16,
    }
    options |= {"verify": False, "adaptive": 0, "consistency": 0}  # which would undo what random weights do
    plain, _ = dino_ray.upscale(source, **options)
    image, report = dino_ray.upscale(source, dino_adapter=str(path), **options)
    assert (np.asarray(image) != np.asarray(plain)).any()
    assert report.dino["effect"] > 0
    assert report.settings["dino_adapter"] == str(path)


def test_another_adapter_is_another_result(folder, file, tmp_path):
    import numpy as np

    copy = shutil.copy(file, tmp_path / "a.safetensors")
    config = UpscaleConfig(model=str(folder), dino_adapter=str(copy))
    source = np.zeros((8, 8, 3), np.uint8)

    def identity():
        return of_pixels(source, config, resolve(config), 8, wrap=False)

    before = identity()
    assert before["--dino-adapter"] == str(copy)
    adapter = made(facts_for(folder))
    adapter.outer.bias.data += 1
    adapters.save(adapter, copy)
    assert identity()["weights"] != before["weights"]
