"""Models of real classes and random weights that flow from noise to pictures, saved as diffusers saves them.

``python tests/diffusion/tiny_flows.py FOLDER [kontext|flux2|klein|klein-base|klein-kv|sd3|sd3.5|sd3-turbo]`` writes one
to try commands on.
"""

from __future__ import annotations

import json
import string
import sys
from pathlib import Path
from typing import Any

import torch
from tiny import TEXT_WIDTH, clip_encoder, make_tiny_flux, save_pipeline, t5_encoder

KLEIN = {
    "klein": "Flux2KleinPipeline",
    "klein-base": "Flux2KleinPipeline",
    "klein-kv": "Flux2KleinKVPipeline",
}
LAYERS = 31
"""Of the language models: FLUX.2 reads the thirtieth."""
CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make_tiny(folder: Path | str, kind: str) -> Path:
    """Write a tiny model; one latent is 8 canvas_px in FLUX's and 2 in SD3's."""
    folder = Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if kind == "kontext":
            return _kontext(folder)
        return _sd3(folder, kind) if kind.startswith("sd3") else _flux2(folder, kind)


def _kontext(folder: Path) -> Path:
    make_tiny_flux(folder, "dev")
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "FluxKontextPipeline"}))
    return folder


def _flux2(folder: Path, kind: str) -> Path:
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    vae = AutoencoderKLFlux2(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    vae.bn.running_mean.uniform_(-0.5, 0.5)  # as training would have left them, each another
    vae.bn.running_var.uniform_(0.5, 2.0)
    tokenizer, encoder = _qwen3() if kind in KLEIN else _mistral3()
    parts = {
        "transformer": Flux2Transformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=3 * TEXT_WIDTH, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=kind == "flux2",
        ),
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
    }  # fmt: skip
    more = {"is_distilled": kind == "klein"} if kind in ("klein", "klein-base") else {}
    folder = save_pipeline(folder, KLEIN.get(kind, "Flux2Pipeline"), parts, more=more)
    if kind == "flux2":  # whose tokenizer comes as half of a processor that reads pictures as well
        index = json.loads((folder / "model_index.json").read_text())
        index["tokenizer"] = ["transformers", "PixtralProcessor"]
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _letters(cls: Any, **more: Any) -> Any:
    """A tokenizer of single letters that knows how a chat is written."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<s>", "<pad>", *string.ascii_letters, *string.punctuation, " "]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return cls(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", pad_token="<pad>", chat_template=CHAT,
        model_max_length=512, padding_side="left", **more,
    )  # fmt: skip


def _sizes(vocabulary: int) -> dict[str, int]:
    return {
        "vocab_size": vocabulary, "hidden_size": TEXT_WIDTH, "intermediate_size": 2 * TEXT_WIDTH, "head_dim": 16,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip


def _qwen3() -> tuple[Any, Any]:
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = _letters(PreTrainedTokenizerFast)
    return tokenizer, Qwen3ForCausalLM(Qwen3Config(**_sizes(len(tokenizer))))


def _mistral3() -> tuple[Any, Any]:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PreTrainedTokenizerFast

    tokenizer = _letters(PreTrainedTokenizerFast)
    config = Mistral3Config(
        text_config={"model_type": "mistral", **_sizes(len(tokenizer))},
        vision_config={
            "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 1, "image_size": 32, "patch_size": 16,
        },
    )  # fmt: skip
    return tokenizer, Mistral3ForConditionalGeneration(config)


def _sd3(folder: Path, kind: str) -> Path:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    later = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if kind == "sd3.5" else {}
    wide = 3 * TEXT_WIDTH  # the CLIPs' tokens, side by side, are padded to T5's width
    parts = {
        "transformer": SD3Transformer2DModel(
            sample_size=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=wide,
            caption_projection_dim=32, pooled_projection_dim=2 * TEXT_WIDTH, pos_embed_max_size=48, **later,
        ),
        "vae": AutoencoderKL(
            latent_channels=16, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }  # fmt: skip
    parts["tokenizer"], parts["text_encoder"] = clip_encoder(projected=True)
    parts["tokenizer_2"], parts["text_encoder_2"] = clip_encoder(projected=True)
    if kind != "sd3.5":  # which is saved without T5 here
        parts["tokenizer_3"], parts["text_encoder_3"] = t5_encoder(wide)
    return save_pipeline(
        folder,
        "StableDiffusion3Pipeline",
        parts,
        ("tokenizer_3", "text_encoder_3", "image_encoder", "feature_extractor"),
    )


if __name__ == "__main__":
    make_tiny(*sys.argv[1:3])
