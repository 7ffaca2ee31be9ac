"""Qwen-Image and its editors as denoisers, against the stock pipelines on tiny random weights of the real classes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
import torch
from parity import batched, following, latents, refined
from tiny_qwen_image import PIPELINES, make_tiny_qwen_image
from transformers import ProcessorMixin, Qwen2VLImageProcessorPil, Qwen2VLProcessor

from dino_ray.diffusion import loading
from dino_ray.diffusion.denoiser import Conditioning, stacked
from dino_ray.diffusion.families.flux import pack, unpack
from dino_ray.errors import UsageError

H, W = 8, 12  # latent; not square, so that swapped axes show
SCALE = 4.25
PROMPTS = ("a red fox", "dull")


def picture(side):
    """Of 90 by 60 px, which is never reduced."""
    return np.random.default_rng(0).random((60, 90, 3), np.float32)


def image(size=(W * 8, H * 8)):
    return PIL.Image.fromarray((picture(0) * 255).round().astype(np.uint8)).resize(size)


class PicturesOnly(Qwen2VLProcessor):
    """The real processor, without its half for videos, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.image_token, self.video_token]
        )
        ProcessorMixin.__init__(self, image_processor, tokenizer)


@pytest.fixture(scope="module", params=PIPELINES)
def folder(request, tmp_path_factory):
    return make_tiny_qwen_image(tmp_path_factory.mktemp("qwen") / request.param, request.param)


@pytest.fixture(scope="module")
def denoiser(folder):
    return loading.load(str(folder), "cpu", "float32")


@pytest.fixture(scope="module")
def edits(denoiser):
    return denoiser.description.takes_reference


@pytest.fixture(scope="module")
def stock(folder, edits):
    import diffusers
    from transformers import Qwen2Tokenizer

    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    processor = {}
    if edits:
        halves = Qwen2VLImageProcessorPil, Qwen2Tokenizer
        processor = {
            "processor": PicturesOnly(*(half.from_pretrained(folder / "processor") for half in halves))
        }
    name = name if edits else "QwenImageImg2ImgPipeline"
    pipeline = getattr(diffusers, name).from_pretrained(folder, **processor)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def texts(folder):
    return loading.encode_texts(str(folder), PROMPTS, "cpu", picture=picture)


@pytest.fixture(scope="module")
def conditioning(texts, denoiser, edits):
    pixels = torch.from_numpy(np.asarray(image(), np.float32) / 255).permute(2, 0, 1)[None]
    positive, negative = (texts[prompt] for prompt in PROMPTS)
    reference = denoiser.encode(pixels) if edits else None
    return Conditioning(text=positive, negative=negative, cfg=SCALE, reference=reference)


def of_batch(conditioning, batch):
    reference = conditioning.reference
    return dataclasses.replace(
        conditioning, reference=None if reference is None else reference.expand(batch, -1, -1, -1)
    )


def theirs(stock, conditioning, sigmas, start, edits, monkeypatch):
    """Latents of the stock pipeline, from where ours start."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

    batch = len(start)
    # The reference is of the tile's size, and not of a megapixel.
    monkeypatch.setattr(edit, "calculate_dimensions", lambda area, ratio: (W * 8, H * 8, None))
    monkeypatch.setattr(plus, "calculate_dimensions", lambda area, ratio: (W * 8, H * 8))
    given = {"image": image()} if edits else {"image": torch.zeros(batch, 3, H * 8, W * 8), "strength": 1.0}
    negative = {f"negative_{name}": value for name, value in batched(conditioning.negative, batch).items()}
    with following(stock.scheduler, sigmas):
        tokens = stock(
            height=H * 8,
            width=W * 8,
            latents=pack(start),
            num_inference_steps=len(sigmas) - 1,
            true_cfg_scale=conditioning.cfg,
            output_type="latent",
            **given,
            **batched(conditioning.text, batch),
            **negative,
        ).images
    return unpack(tokens, H, W)


@pytest.mark.parametrize(("denoise", "steps"), [(0.25, 3), (0.6, 4), (1.0, 3)])
def test_our_loop_gives_the_latents_of_the_stock_pipeline(
    denoiser, conditioning, stock, edits, denoise, steps, monkeypatch
):
    batch = 1 if "Plus" in type(stock).__name__ else 2  # which takes one at a time
    told = of_batch(conditioning, batch)
    sigmas, start, ours = refined(denoiser, told, denoise, steps, H, W, batch)
    stocks = theirs(stock, told, sigmas, start, edits, monkeypatch)
    assert (stocks - ours).abs().max() < 1e-4
    assert (ours - start).abs().max() > 0.05  # the model did something


def test_prompts_of_different_lengths_in_one_batch_count_as_each_alone(
    denoiser, conditioning, texts, stock, edits, monkeypatch
):
    first, second = (texts[prompt] for prompt in PROMPTS)
    assert first["prompt_embeds"].shape[1] != second["prompt_embeds"].shape[1]
    told = of_batch(dataclasses.replace(conditioning, text=stacked([first, second])), 2)
    sigmas, start, ours = refined(denoiser, told, 1.0, 2, H, W)
    for i, text in enumerate((first, second)):
        own = dataclasses.replace(conditioning, text=text)
        alone = denoiser.predict(start[i : i + 1], 1.0, own)
        assert (denoiser.predict(start, 1.0, told)[i] - alone[0]).abs().max() < 1e-5
    if not edits:
        assert (theirs(stock, told, sigmas, start, edits, monkeypatch) - ours).abs().max() < 1e-4


@pytest.mark.parametrize("steps", [2, 8, 50])
def test_from_any_level_of_the_stock_schedule_ours_goes_on_as_it_does(denoiser, stock, steps):
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

    mu = calculate_shift(H * W // 4, 256, 8192, 0.5, 0.9)
    stock.scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], mu=mu)
    whole = stock.scheduler.sigmas
    assert whole[-2] == pytest.approx(0.02, abs=1e-6)
    for done in range(0, steps, max(1, steps // 4)):
        ours = denoiser.sigmas(float(whole[done]), steps - done, (H, W))
        torch.testing.assert_close(ours, whole[done:], rtol=0, atol=3e-6)


@pytest.mark.parametrize("denoise", [1.0, 0.25, 0.0201, 0.02, 0.005])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_levels_go_down_from_any_start_to_nothing(denoiser, denoise, steps):
    sigmas = denoiser.sigmas(denoise, steps, (H, W))
    assert len(sigmas) == steps + 1
    assert sigmas[0] == torch.tensor(denoise)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_the_prompts_embeddings_are_the_stock_pipelines(stock, texts, edits):
    if not edits:
        for prompt in PROMPTS:
            assert torch.equal(texts[prompt]["prompt_embeds"], stock.encode_prompt(prompt)[0])
        return
    side = 1024 if type(stock).__name__ == "QwenImageEditPipeline" else 384
    size = {1024: (1248, 832), 384: (480, 320)}[side]  # of a picture half as wide again as it is high
    seen = stock.image_processor.resize(image((90, 60)), size[1], size[0])
    unaware = stock.encode_prompt(PROMPTS[0], seen)[0]

    def tell(encoder, args, told):
        kinds = stock.processor.create_mm_token_type_ids(told["input_ids"].tolist())
        return args, told | {"mm_token_type_ids": torch.as_tensor(np.array(kinds))}

    hook = stock.text_encoder.register_forward_pre_hook(tell, with_kwargs=True)
    for prompt in PROMPTS:
        expected = stock.encode_prompt(prompt, seen)[0]
        assert torch.equal(texts[prompt]["prompt_embeds"], expected)
    hook.remove()
    assert (texts[PROMPTS[0]]["prompt_embeds"] - unaware).abs().max() > 1e-3  # rows and columns count


def test_what_the_text_encoder_sees_reaches_the_embeddings(folder, texts, edits):
    others = loading.encode_texts(str(folder), PROMPTS[:1], "cpu", picture=lambda side: picture(side)[::-1])
    same = torch.equal(others[PROMPTS[0]]["prompt_embeds"], texts[PROMPTS[0]]["prompt_embeds"])
    assert same != edits


def test_text_negative_scale_reference_and_level_reach_the_model(denoiser, conditioning, edits):
    x = latents(denoiser, H, W)
    reference = denoiser.predict(x, 0.5, conditioning)

    def change(**changes):
        told = dataclasses.replace(conditioning, **changes)
        return (denoiser.predict(x, 0.5, told) - reference).abs().max()

    assert change(cfg=1.5) > 1e-3
    for what in ("text", "negative"):
        text = getattr(conditioning, what)
        assert change(**{what: text | {"prompt_embeds": -text["prompt_embeds"]}}) > 1e-4
    if edits:
        assert change(reference=conditioning.reference.flip(-1)) > 1e-3
    with pytest.raises(ValueError, match="reference"):
        denoiser.predict(x, 0.5, dataclasses.replace(conditioning, reference=None if edits else x))
    velocity = (x - reference) / 0.5
    assert ((x - denoiser.predict(x, 0.9, conditioning)) / 0.9 - velocity).abs().max() > 1e-3


def test_guidance_keeps_the_length_of_each_token(denoiser, conditioning):
    x = latents(denoiser, H, W)
    lengths = [
        pack(x - denoiser.predict(x, 1.0, dataclasses.replace(conditioning, cfg=cfg))).norm(dim=-1)
        for cfg in (1.0, 8.0)
    ]
    torch.testing.assert_close(*lengths, rtol=1e-4, atol=1e-4)


def test_at_a_scale_of_1_the_model_is_asked_once(denoiser, conditioning):
    calls = []
    hook = denoiser._core.register_forward_pre_hook(lambda *args: calls.append(1))
    denoiser.predict(latents(denoiser, H, W), 0.3, dataclasses.replace(conditioning, cfg=1.0, negative={}))
    hook.remove()
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("transformer", {"guidance_embeds": True}, "guidance_embeds"),
        ("transformer", {"in_channels": 128}, "128 channels"),
        ("transformer", {"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel"),
        ("vae", {"_class_name": "AutoencoderKL"}, "AutoencoderKLQwenImage"),
        ("vae", {"input_channels": 4}, "transparency"),
    ],
)
def test_what_is_not_driven_is_refused_by_its_configs(tmp_path, part, change, says):
    folder = make_tiny_qwen_image(tmp_path / "model")
    config = folder / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UsageError, match=says):
        loading.describe(str(folder))


def test_an_editor_without_its_processor_is_refused(tmp_path):
    folder = make_tiny_qwen_image(tmp_path / "model", "edit")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"processor": [None, None]}))
    with pytest.raises(UsageError, match="no processor"):
        loading.describe(str(folder))


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_whole_job_asks_with_a_negative_prompt_and_shows_an_editor_the_picture(kind, tmp_path, monkeypatch):
    import dino_ray
    from dino_ray.diffusion.families.qwen_image_text import PictureReader

    folder = make_tiny_qwen_image(tmp_path / "model", kind)
    seen, once = [], PictureReader.__call__
    monkeypatch.setattr(
        PictureReader,
        "__call__",
        lambda self, text, images, **more: seen.append(images) or once(self, text, images, **more),
    )
    source = np.asarray(image((48, 32)))
    how = {"model": str(folder), "address": "none", "base": "lanczos", "tile": 64, "overlap": 16, "steps": 1,
           "dino_strength": 0, "adaptive": 0, "verify": False, "consistency": 0}  # fmt: skip
    made, report = dino_ray.upscale(source, negative_prompt="fog", **how)
    assert made.shape[:2] == (64, 96)
    assert report.tiles > 1
    assert report.stages["text"].count == 1
    if kind == "qwen-image":
        assert not seen
        other, _ = dino_ray.upscale(source, negative_prompt="flat, dull, far too smooth", **how)
        assert (made != other).any()
        return
    assert len(seen) == 2  # for the prompt and the negative one
    small = np.asarray(seen[0].resize((48, 32)), float)
    assert np.abs(small - source).mean() < 16
    with pytest.raises(UsageError, match="draws each tile anew"):
        dino_ray.upscale(source, denoise=0.5, **how)
