"""Count what the published models take, by running their own code on the meta device.

``python scripts/count_footprints.py`` writes dino_ray/diffusion/footprints.json: two minutes on one core, no weights,
no network. To be run again when a model is added to dino_ray/diffusion/published, or diffusers changes one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dino_ray.diffusion import published
from dino_ray.diffusion.footprint import SIDES, TABLE, Part, Work, digest, written
from dino_ray.diffusion.metering import build, count, peak_bytes, peak_bytes_with_gradient
from dino_ray.diffusion.vae import BatchNormVae, KlVae, Place, QwenImageVae, Vae

TEXT_TOKENS = 512
"""Of a prompt, at most, for most models."""
VAE_SCALE = 8
"""canvas_px per latent."""
PATCH = 16
"""canvas_px per token."""


def components(name: str) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Of a published model: component, library, class and config of all that have parameters."""
    folder = published.folder(name)
    assert folder is not None
    index = json.loads((folder / "model_index.json").read_text())
    for path in sorted(folder.glob("*/config.json")):
        library, cls = index[path.parent.name]
        yield path.parent.name, library, cls, json.loads(path.read_text())


def counted(library: str, cls: str, config: Mapping[str, Any]) -> Part:
    """Parameters and work of one component."""
    model = build(library, cls, config)
    if cls in VAES:
        work = vae_work(model.to(torch.bfloat16))
    elif cls in STEPS:
        work = Work(step=tuple(step_bytes(model.to(torch.bfloat16), cls, config, side) for side in SIDES))
    else:
        work = Work()
    return Part(cls, count(model), work)


def blank(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def vae_work(model: Any) -> Work:
    """Of an autoencoder, as it is driven here: encoding, decoding, and decoding with a gradient."""
    vae = VAES[type(model).__name__](model, Place(torch.device("meta"), torch.bfloat16))

    def pixels(side: int) -> Tensor:
        return blank(1, 3, side, side, dtype=torch.float32)

    def encode(side: int) -> int:
        given = pixels(side)
        return peak_bytes(lambda: vae.encode(given), model)

    def decode(side: int, gradient: bool = False) -> int:
        with torch.no_grad():
            latents = vae.encode(pixels(side))
        if not gradient:
            return peak_bytes(lambda: vae.decode(latents), model)
        latents.requires_grad_()
        return peak_bytes_with_gradient(lambda: vae.decode(latents), model)

    return Work(
        encode=tuple(map(encode, SIDES)),
        decode=tuple(map(decode, SIDES)),
        sketch=tuple(decode(side, gradient=True) for side in SIDES),
    )


VAES: dict[str, Callable[[Any, Place], Vae]] = {
    "AutoencoderKL": KlVae,
    "AutoencoderKLFlux2": BatchNormVae,
    "AutoencoderKLQwenImage": QwenImageVae,
}
"""Who drives each."""


def step_bytes(model: nn.Module, cls: str, config: Mapping[str, Any], side: int) -> int:
    """Of one evaluation, for a tile of that side, canvas_px."""
    arguments = STEPS[cls](config, side)
    return peak_bytes(lambda: model(**arguments, return_dict=False), model)


def flux(config: Mapping[str, Any], side: int) -> dict[str, Any]:
    tokens = (side // PATCH) ** 2
    return {
        "hidden_states": blank(1, tokens, config["in_channels"]),
        "encoder_hidden_states": blank(1, TEXT_TOKENS, config["joint_attention_dim"]),
        "pooled_projections": blank(1, config["pooled_projection_dim"]),
        "timestep": blank(1),
        "guidance": blank(1) if config["guidance_embeds"] else None,
        "img_ids": blank(tokens, 3),
        "txt_ids": blank(TEXT_TOKENS, 3),
    }


def flux2(config: Mapping[str, Any], side: int) -> dict[str, Any]:
    tokens = (side // PATCH) ** 2
    return {
        "hidden_states": blank(1, tokens, config["in_channels"]),
        "encoder_hidden_states": blank(1, TEXT_TOKENS, config["joint_attention_dim"]),
        "timestep": blank(1),
        "guidance": blank(1) if config.get("guidance_embeds", True) else None,
        "img_ids": blank(tokens, 4),
        "txt_ids": blank(TEXT_TOKENS, 4),
    }


def qwen_image(config: Mapping[str, Any], side: int) -> dict[str, Any]:
    rows = side // PATCH
    return {
        "hidden_states": blank(1, rows**2, config["in_channels"]),
        "encoder_hidden_states": blank(1, TEXT_TOKENS, config["joint_attention_dim"]),
        "timestep": blank(1),
        "img_shapes": [[(1, rows, rows)]],
    }


def sd3(config: Mapping[str, Any], side: int) -> dict[str, Any]:
    latents = side // VAE_SCALE
    return {
        "hidden_states": blank(1, config["in_channels"], latents, latents),
        "encoder_hidden_states": blank(1, TEXT_TOKENS, config["joint_attention_dim"]),
        "pooled_projections": blank(1, config["pooled_projection_dim"]),
        "timestep": blank(1),
    }


def unet(config: Mapping[str, Any], side: int) -> dict[str, Any]:
    latents = side // VAE_SCALE
    added = None
    if config.get("addition_embed_type") == "text_time":
        sizes = 6 * config["addition_time_embed_dim"]
        pooled = config["projection_class_embeddings_input_dim"] - sizes
        added = {"text_embeds": blank(1, pooled), "time_ids": blank(1, 6)}
    return {
        "sample": blank(1, config["in_channels"], latents, latents),
        "timestep": blank(1),
        "encoder_hidden_states": blank(1, 77, config["cross_attention_dim"]),
        "added_cond_kwargs": added,
    }


def z_image(config: Mapping[str, Any], side: int) -> dict[str, Any]:
    latents = side // VAE_SCALE
    return {
        "x": [blank(config["in_channels"], 1, latents, latents)],
        "t": blank(1),
        "cap_feats": [blank(TEXT_TOKENS, config["cap_feat_dim"])],
    }


STEPS: dict[str, Callable[[Mapping[str, Any], int], dict[str, Any]]] = {
    "FluxTransformer2DModel": flux,
    "Flux2Transformer2DModel": flux2,
    "QwenImageTransformer2DModel": qwen_image,
    "SD3Transformer2DModel": sd3,
    "UNet2DConditionModel": unet,
    "ZImageTransformer2DModel": z_image,
}
"""What each class is asked."""


def main() -> None:
    """Count all, and write the table."""
    parts: dict[str, Part] = {}
    for name in published.names():
        for _, library, cls, config in components(name):
            if (key := digest(cls, config)) not in parts:
                parts[key] = counted(library, cls, config)
                print(f"{name}: {cls}, {parts[key].count.parameters:,} parameters, {parts[key].work}")
    Path(TABLE).write_text(written(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
