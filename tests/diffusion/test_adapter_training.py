"""Training an adapter: of any model and any folder, resumed where it stopped, alone or by several processes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import make_tiny_flux

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import train_adapter as command
from training import adapter as training
from training import pictures
from training.adapter_score import Row, evaluate, table
from training.loop import Budget

from dino_ray.diffusion import loading
from dino_ray.diffusion.adapter import DinoAdapter
from dino_ray.errors import UsageError

SCRIPT = Path(command.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_flux(tmp_path_factory.mktemp("flux") / "mine")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four images of odd sizes and kinds, one too small, and a file that is none."""
    place = tmp_path_factory.mktemp("photos")
    (place / "within").mkdir()
    rng = np.random.default_rng(0)
    for name, size in (
        ("a.png", (161, 140)),
        ("b.jpg", (150, 203)),
        ("within/c.webp", (140, 140)),
        ("d.tif", (180, 160)),
    ):
        rough = rng.integers(0, 256, (size[1] // 9, size[0] // 9, 3), np.uint8)
        Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC).save(place / name)
    Image.new("L", (40, 40)).save(place / "small.png")
    (place / "notes.txt").write_text("no image")
    return place


@pytest.fixture
def small_tiles(monkeypatch):
    """The tiny FLUX's tile is FLUX's own, for which no test has the time."""
    describe = loading.describe
    monkeypatch.setattr(
        loading, "describe", lambda *args: replace(describe(*args), tile=min(128, describe(*args).tile))
    )


def course_of(tmp_path, model, photos, **options):
    words = ["--out", "x.safetensors", "--model", model, "--images", photos, "--work-dir", tmp_path]
    words += ["--steps", "4", "--batch", "2", "--crop", "64", *options.pop("words", ())]
    args = command.arguments([str(word) for word in words])
    description = loading.describe(args.model)
    return command.plan(args, description, command.make_facts(args, description))


def weights(course):
    return training.trained(course).state_dict()


def test_a_folder_is_searched_for_what_can_be_learnt_from(photos):
    found = pictures.find(photos, 128, 2)
    assert [path.name for path in found] == ["a.png", "b.jpg", "d.tif", "c.webp"]
    learnt, judged = pictures.split(found, 0.3)
    assert len(judged) == 2
    assert {*learnt, *judged} == {*found}
    assert pictures.split(found[::-1], 0.3) == (learnt, judged)
    with pytest.raises(UsageError, match="2 are needed"):
        pictures.find(photos, 190, 2)


def test_pictures_are_prepared_once_and_travel_unprepared(photos, tmp_path, monkeypatch):
    import pickle

    some = pictures.Pictures(pictures.find(photos, 128, 2), "bundled", True, tmp_path)
    first = some[1]
    height, width, _ = first.truth.shape
    assert (width, height) == (144, 200)  # of 150 × 203
    assert first.base.shape == first.truth.shape
    assert (first.features.width, first.features.height) == (width // 2, height // 2)
    sent = pickle.loads(pickle.dumps(some))
    monkeypatch.setattr(pictures, "extract", None)  # anything computed again would fail
    again = sent[1]
    np.testing.assert_array_equal(again.base, first.base)
    np.testing.assert_array_equal(again.features.fine.tokens, first.features.fine.tokens)
    np.testing.assert_array_equal(
        again.features.crop(3, 5, 20, 20, 2, 2), first.features.crop(3, 5, 20, 20, 2, 2)
    )


def test_a_crop_that_a_picture_does_not_hold_is_refused_by_name(photos, tmp_path):
    some = pictures.Pictures(pictures.find(photos, 128, 2), "bundled", False, tmp_path)
    with pytest.raises(UsageError, match=r"--crop 152.*c\.webp"):
        some.crops(np.random.default_rng(0), [np.int64(3)], 152, 16)


@pytest.mark.parametrize("kind", ["bundled", "flux"])
def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(
    kind, folder, photos, tmp_path, small_tiles
):
    model = folder if kind == "flux" else kind
    at_once, _ = course_of(tmp_path / "at-once", model, photos)
    training.train_adapter(at_once)
    resumed, _ = course_of(tmp_path / "resumed", model, photos, words=["--resume"])
    training.train_adapter(replace(resumed, stage=replace(resumed.stage, stop_after=2)))
    halfway = weights(resumed)
    training.train_adapter(resumed)
    for name, weight in weights(at_once).items():
        assert torch.equal(weight, weights(resumed)[name]), name
    assert any(not torch.equal(weight, halfway[name]) for name, weight in weights(at_once).items())


def test_what_is_saved_is_the_moving_average(photos, tmp_path, small_tiles):
    course, _ = course_of(tmp_path, "bundled", photos)
    seen = []
    real = training.averaged

    def spied(adapter):
        average = real(adapter)
        step = average.update_parameters

        def update(model):
            seen.append(model.outer.bias.detach().clone())
            step(model)

        average.update_parameters = update
        return average

    training.averaged = spied
    try:
        training.train_adapter(course)
    finally:
        training.averaged = real
    expected = seen[0]
    for n, bias in enumerate(seen[1:], start=1):
        decay = min(training.AVERAGE_DECAY, (1 + n) / (training.AVERAGE_RISE + n))
        expected = torch.lerp(bias, expected, decay)
    torch.testing.assert_close(weights(course)["outer.bias"], expected)
    assert not torch.equal(weights(course)["outer.bias"], seen[-1])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_adapter_stays_in_float32_whatever_the_model_is_in(precision, photos, tmp_path, small_tiles):
    course, _ = course_of(tmp_path, "bundled", photos, words=["--precision", precision])
    training.train_adapter(course)
    for weight in weights(course).values():
        assert weight.dtype == torch.float32
        assert weight.isfinite().all()


def test_training_lowers_the_error_of_what_it_is_shown(photos, tmp_path, small_tiles):
    course, _ = course_of(tmp_path, "bundled", photos)
    course = replace(course, stage=replace(course.stage, budget=Budget(steps=40)), crop=32, rate=5e-3)
    training.train_adapter(course)
    model = loading.load("bundled")

    def loss(adapter):
        rows = evaluate(model, adapter, course.pictures, levels=(1.0,), crop=64, crops=8)
        return {row.tokens: row.loss for row in rows}

    torch.manual_seed(0)
    before, after = loss(DinoAdapter(course.facts)), loss(training.trained(course))
    assert after["none"] == before["none"]
    assert after["right"] < min(before["right"], before["none"])


def test_a_score_compares_like_with_like(photos, folder, tmp_path, small_tiles):
    course, held_out = course_of(tmp_path, folder, photos, words=["--held-out", photos])
    torch.manual_seed(0)
    adapter = DinoAdapter(course.facts)
    model = loading.load(str(folder), "cpu", "float32")
    rows, again = (
        evaluate(model, adapter, held_out, 3, text=course.text, crop=64, crops=4, levels=(0.5,))
        for _ in range(2)
    )
    assert rows == again
    assert [row.tokens for row in rows] == ["right", "other", "none"]
    assert len({row.loss for row in rows}) == 3
    assert all(-1 <= row.cosine <= 1 for row in rows)
    assert "0.25  right" in table([Row(0.25, "right", 0.1, 0.9, 30.0)])


def test_going_on_with_other_options_is_refused(photos, tmp_path, small_tiles):
    course, _ = course_of(tmp_path, "bundled", photos)
    command.check_same(course, 1)
    other, _ = course_of(tmp_path, "bundled", photos, words=["--batch", "3", "--resume"])
    with pytest.raises(UsageError, match="batch 2, not 3"):
        command.check_same(other, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.pt"], "must end in .safetensors"),
        (["--out", "/no/such/folder/x.safetensors"], "does not exist"),
        (["--model", "nonsense"], "no such file, folder or known name"),
        (["--model", "none"], "--model none"),
        (["--dino", "nonsense"], "--dino nonsense"),
        (["--crop", "50"], "multiple of 16"),
        (["--gpus", "1"], "--gpus is for more"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        command.main(["--out", "x.safetensors", "--steps", "1", *words])
    assert message in f"{caught.value} {capsys.readouterr().err}"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)  # two starts of Ray, each with its workers' imports
def test_two_processes_train_one_adapter_and_go_on_where_they_stopped(folder, photos, tmp_path):
    out = tmp_path / "two.safetensors"

    def run(steps, *more):
        options = ["--out", out, "--model", "bundled", "--images", photos, "--work-dir", tmp_path / "work"]
        options += ["--batch", "2", "--crop", "64", "--workers", "2", "--steps", steps, "--crops", "2", *more]
        words = [sys.executable, SCRIPT, *options]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return done.stdout

    text = run(3)
    first = load_file(out)
    assert "held_out" in text
    saved = torch.load(tmp_path / "work" / "adapter.checkpoint.pt", weights_only=True)
    assert saved["step"] == 3
    assert loading.describe("bundled", str(out)).dino == "bundled"
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert {row["held_out"]["tokens"] for row in rows if "held_out" in row} == {"right", "other", "none"}
    run(3, "--resume")  # nothing is left to do: the same weights
    assert all(torch.equal(weight, first[name]) for name, weight in load_file(out).items())
