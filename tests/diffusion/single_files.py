"""Single files of weights, in their authors' layout and in diffusers', made of what diffusers has saved."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

LAYERS = 1
"""Resnets in a block of the tiny UNets."""

_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
           "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
_EDGES = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
          "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
          "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
_VAE = (
    (r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)", r"\1.\2.block.\3"),
    (r"(down|up)_blocks\.(\d+)\.(down|up)samplers\.0", r"\1.\2.\3sample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)
_OPEN_CLIP = (
    (r"encoder\.layers\.", "transformer.resblocks."),
    (r"layer_norm([12])", r"ln_\1"),
    (r"fc1", "c_fc"),
    (r"fc2", "c_proj"),
    (r"self_attn", "attn"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"embeddings\.token_embedding", "token_embedding"),
    (r"final_layer_norm", "ln_final"),
)


def weights(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """A component's tensors."""
    return load_file(next((folder / part).glob("*.safetensors")))


def _unet_name(name: str) -> str:
    end = name.rpartition(".")[2]
    body = name.removesuffix(f".{end}")
    if body in _EDGES:
        return f"{_EDGES[body]}.{end}"
    kind, block, rest = re.fullmatch(r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.(.*)", name).groups()
    if kind == "mid_block":
        block, rest = None, f"{block}.{rest}" if block else rest
    layer, number, inner = re.fullmatch(r"(\w+)\.(\d+)\.(.*)", rest).groups()
    if layer == "resnets":
        head, _, tail = inner.partition(".")
        inner = f"{_RESNET[head]}.{tail}"
    if kind == "mid_block":
        return f"middle_block.{2 * int(number) if layer == 'resnets' else 1}.{inner}"
    first = int(block) * (LAYERS + 1)
    if layer == "downsamplers":
        return f"input_blocks.{first + LAYERS + 1}.0.op.{end}"
    side, place = ("input_blocks", first + 1) if kind == "down_blocks" else ("output_blocks", first)
    if layer == "upsamplers":
        return f"{side}.{place + LAYERS}.2.conv.{end}"
    return f"{side}.{place + int(number)}.{0 if layer == 'resnets' else 1}.{inner}"


def original_unet(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the authors of Stable Diffusion name them."""
    return {_unet_name(name): value for name, value in tensors.items()}


def original_vae(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the authors of latent diffusion name them; its attention's projections were convolutions."""
    top = max(int(found[1]) for name in tensors if (found := re.search(r"up_blocks\.(\d+)", name)))
    made = {}
    for name, value in tensors.items():
        for pattern, by in _VAE:
            name = re.sub(pattern, by, name)
        name = re.sub(r"\bup\.(\d+)", lambda found: f"up.{top - int(found[1])}", name)
        made[name] = (
            value[:, :, None, None] if re.search(r"attn_1\.\w+\.weight", name) and value.ndim == 2 else value
        )
    return made


def original_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As OpenAI's CLIP lies in a checkpoint."""
    return {f"text_model.{name.removeprefix('text_model.')}": value for name, value in tensors.items()}


def original_open_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As OpenCLIP names them, with query, key and value in one."""
    made, apart = {}, {}
    for name, value in tensors.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            made["text_projection"] = value.T.contiguous()
            continue
        for pattern, by in _OPEN_CLIP:
            name = re.sub(pattern, by, name)
        if found := re.fullmatch(r"(.*\.attn)\.([qkv])_proj\.(\w+)", name):
            apart.setdefault(f"{found[1]}.in_proj_{found[3]}", {})[found[2]] = value
        else:
            made[name] = value
    return made | {name: torch.cat([part[letter] for letter in "qkv"]) for name, part in apart.items()}


def original_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """A whole checkpoint of a tiny Stable Diffusion, in its authors' layout."""
    parts = {
        "model.diffusion_model.": original_unet(weights(folder, "unet")),
        "first_stage_model.": original_vae(weights(folder, "vae")),
    }
    if (folder / "text_encoder_2").is_dir():
        parts["conditioner.embedders.0.transformer."] = original_clip(weights(folder, "text_encoder"))
        parts["conditioner.embedders.1.model."] = original_open_clip(weights(folder, "text_encoder_2"))
    else:
        parts["cond_stage_model.transformer."] = original_clip(weights(folder, "text_encoder"))
    return {prefix + name: value for prefix, named in parts.items() for name, value in named.items()}


_FLUX2 = (
    (r"^transformer_blocks", "double_blocks"),
    (r"^single_transformer_blocks", "single_blocks"),
    (r"^x_embedder", "img_in"),
    (r"^context_embedder", "txt_in"),
    (r"^proj_out", "final_layer.linear"),
    (r"^norm_out.linear", "final_layer.adaLN_modulation.1"),
    (r"^time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    (r"^time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    (r"^time_guidance_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    (r"^time_guidance_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    (r"(_modulation\w*)\.linear", r"\1.lin"),
    (r"(double.*)attn\.norm_added_([qk])\.weight", r"\1txt_attn.norm.\2.scale"),
    (r"(double.*)attn\.norm_([qk])\.weight", r"\1img_attn.norm.\2.scale"),
    (r"(single.*)attn\.norm_([qk])\.weight", r"\1norm.\2.scale"),
    (r"norm\.q\.scale", "norm.query_norm.scale"),
    (r"norm\.k\.scale", "norm.key_norm.scale"),
    (r"(double.*)attn\.to_out\.0", r"\1img_attn.proj"),
    (r"(double.*)attn\.to_add_out", r"\1txt_attn.proj"),
    (r"(double.*)attn\.(to_([qkv]))\.", r"\1img_attn.\3."),
    (r"(double.*)attn\.(add_([qkv])_proj)\.", r"\1txt_attn.\3."),
    (r"ff_context\.linear_in", "txt_mlp.0"),
    (r"ff_context\.linear_out", "txt_mlp.2"),
    (r"ff\.linear_in", "img_mlp.0"),
    (r"ff\.linear_out", "img_mlp.2"),
    (r"attn\.to_qkv_mlp_proj", "linear1"),
    (r"(single.*)attn\.to_out", r"\1linear2"),
)
_Z_IMAGE = (
    (r"all_(final_layer|x_embedder)\.2-1", r"\1"),
    (r"attention\.to_out\.0", "attention.out"),
    (r"attention\.norm_([qk])", r"attention.\1_norm"),
    (r"attention\.to_([qkv])", r"attention.\1"),
)


def _renamed(tensors: dict[str, torch.Tensor], table: tuple[tuple[str, str], ...]) -> dict[str, torch.Tensor]:
    """With names replaced, one rule after the other, and query, key and value as one."""
    made, apart = {}, {}
    for name, value in tensors.items():
        for pattern, by in table:
            name = re.sub(pattern, by, name)
        if found := re.fullmatch(r"(.*(?:attn|attention))\.([qkv])\.(\w+)", name):
            apart.setdefault(f"{found[1]}.qkv.{found[3]}", {})[found[2]] = value
        else:
            made[name] = value
    return made | {name: torch.cat([part[letter] for letter in "qkv"]) for name, part in apart.items()}


def original_flux2(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As Black Forest Labs names FLUX.2's, with the last layer's shift before its scale."""
    made = _renamed(tensors, _FLUX2)
    last = "final_layer.adaLN_modulation.1.weight"
    scale, shift = made[last].chunk(2)
    return made | {last: torch.cat([shift, scale])}


def original_z_image(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the authors of Z-Image name them."""
    return _renamed(tensors, _Z_IMAGE)


def save(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    """Write a safetensors file."""
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path, metadata)
    return path


def save_gguf(path: Path, tensors: dict[str, torch.Tensor], architecture: str = "flux") -> Path:
    """Write a GGUF file: matrices with 8 bits a weight where their rows hold whole blocks, the rest as it is."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, value in tensors.items():
        array = value.float().numpy()
        if array.ndim == 2 and array.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def header_only(path: Path, shapes: dict[str, tuple[int, ...]], **metadata: str) -> Path:
    """A safetensors file of these bfloat16 tensors, all zeros, that takes no room on the disk."""
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + at)
    return path
