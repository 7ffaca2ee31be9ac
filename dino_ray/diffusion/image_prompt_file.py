"""Image prompts: which model reads them, where its files lie, and whether it is for a diffusion model. No torch.

Two kinds of model let a picture speak beside the prompt. IP-Adapters (Ye et al. 2023, arXiv:2308.06721) add an
attention of their own to what CLIP sees in it; FLUX.1 Redux makes more of the prompt's tokens of what SigLIP sees.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from dino_ray.diffusion import extras
from dino_ray.diffusion.extras import SUFFIX
from dino_ray.diffusion.families.family import Family, ImagePromptKind
from dino_ray.errors import UsageError

REDUX_PARTS = ("image_encoder", "image_embedder", "feature_extractor")
_REDUX_PIPELINE = "FluxPriorReduxPipeline"
_INDEX = "model_index.json"
_OPTION = "--image-prompt"

ENCODER = "image_encoder"
"""Folder of an IP-Adapter's CLIP, beside its file or one further up: as its authors publish it."""
_ENCODERS = (ENCODER, f"../{ENCODER}", f"../models/{ENCODER}")

CLIP_L = "openai/clip-vit-large-patch14"
CLIP_L_WIDTH = 768
"""FLUX.1's IP-Adapters read OpenAI's own CLIP, and come without."""

KINDS: Mapping[ImagePromptKind, str] = {
    "redux": "FLUX.1 Redux",
    "ip-adapter": "an IP-Adapter",
    "ip-adapter-plus": "an IP-Adapter Plus",
}
"""For people."""


@dataclass(frozen=True)
class ImagePrompt:
    """What ``--image-prompt`` and its companions ask for.

    Places are absolute paths, or ``owner/name/path`` on the hub.
    """

    kind: ImagePromptKind
    location: str
    """A folder of Redux, or the file of an IP-Adapter."""
    encoder: str
    """Folder of what looks at the picture."""
    of: Literal["image", "tile"]
    """What is looked at: the whole source, once; or each tile's base."""
    scale: float
    """How much it says, above 0; 1 is what it was trained with."""


@dataclass(frozen=True)
class _Header:
    """What an IP-Adapter's file says of itself."""

    kind: ImagePromptKind
    sees: int
    """Channels that it takes from CLIP."""
    reads: int
    """Channels of the tokens that it makes, as many as a text's."""


def parse(name: str, of: Literal["image", "tile"], scale: float) -> ImagePrompt:
    """What a model of image prompts is, from its configuration or its header.

    Raises
    ------
    UsageError
        Where there is no such model, it is damaged, or of a kind that is not applied.
    """
    path = extras.find(name, "ipadapter")
    if path is not None:
        place = os.path.abspath(path)
    elif extras.on_hub(name):
        place = name
    else:
        raise UsageError(
            f"{_OPTION} {name}: no such file or folder; give an IP-Adapter's {SUFFIX} file, a folder of FLUX.1 Redux, "
            f"or those of a Hugging Face hub: owner/name/file{SUFFIX}, owner/name"
        )
    if place.endswith(SUFFIX):
        header = _read_header(name, extras.inside(place, option=_OPTION))
        return ImagePrompt(header.kind, place, _find_encoder(name, place, header), of, scale)
    if path is not None and path.is_file():
        raise UsageError(
            f"{_OPTION} {name}: is no {SUFFIX} file, and reading other formats can run any code; get it as {SUFFIX}"
        )
    index = _json(name, extras.inside(place, _INDEX, option=_OPTION))
    if index.get("_class_name") != _REDUX_PIPELINE:
        raise UsageError(
            f"{_OPTION} {name}: is a {index.get('_class_name')}; folders of {_REDUX_PIPELINE} are read, and the "
            f"{SUFFIX} files of IP-Adapters"
        )
    return ImagePrompt("redux", place, f"{place}/{REDUX_PARTS[0]}", of, scale)


def check(prompt: ImagePrompt, model: str, family: Family | None, config: Mapping[str, Any]) -> None:
    """See that it is for a model.

    Parameters
    ----------
    family
        None: the model takes no image prompts.
    config
        Of what predicts.

    Raises
    ------
    UsageError
        Where it is for another, or its own files are not whole.
    """
    option = f"{_OPTION} {prompt.location}"
    kinds = {} if family is None else family.image_prompts
    if prompt.kind not in kinds:
        takes = ", ".join(KINDS[kind] for kind in kinds) or "none"
        raise UsageError(
            f"{option}: is {KINDS[prompt.kind]}, of the kinds of image prompts the model {model} takes {takes}; "
            "leave it out, or name a model that does"
        )
    if prompt.kind == "redux":
        embedder = _json(
            prompt.location, extras.inside(prompt.location, "image_embedder/config.json", option=_OPTION)
        )
        reads = int(embedder.get("txt_in_features", 4096))
    else:
        reads = _read_header(prompt.location, extras.inside(prompt.location, option=_OPTION)).reads
    if (width := kinds[prompt.kind](config)) != reads:
        raise UsageError(
            f"{option}: makes tokens of {reads} channels, the model {model} reads {width}; "
            "use the one that was made for this model"
        )


def files(prompt: ImagePrompt) -> Mapping[str, Path]:
    """Its files on this machine, by component, downloaded first where they have to be: an IP-Adapter's ``adapter``
    and ``image_encoder``; of Redux, ``REDUX_PARTS``.

    Raises
    ------
    UsageError
        Where one is missing, or has pickles alone.
    """
    if prompt.kind == "redux":
        return {
            part: _weights(f"{prompt.location}/{part}", part != "feature_extractor") for part in REDUX_PARTS
        }
    return {
        "adapter": extras.inside(prompt.location, option=_OPTION),
        ENCODER: _weights(prompt.encoder, needed=True),
    }


def _weights(place: str, needed: bool) -> Path:
    folder = extras.inside(place, f"*{SUFFIX}", "*.json", option=_OPTION)
    if needed and not any(folder.glob(f"*{SUFFIX}")):
        raise UsageError(f"{_OPTION} {place}: has no {SUFFIX} file; get the whole model again")
    return folder


def _read_header(name: str, path: Path) -> _Header:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{_OPTION} {name}: can't be read as safetensors ({error}); get it again") from error
    looks = {
        key.partition(".")[2]: shape
        for key, shape in shapes.items()
        if key.startswith(("image_proj.", "ip_adapter_proj_model."))
    }
    reads = [
        shape[1]
        for key, shape in shapes.items()
        if key.endswith(("to_k_ip.weight", "double_stream_k_proj.weight"))
    ]
    known: Mapping[str, ImagePromptKind] = {
        "proj.weight": "ip-adapter",
        "proj_in.weight": "ip-adapter-plus",
        "proj.0.weight": "ip-adapter-plus",
    }
    kind = next((key for key in known if key in looks), None)
    of_faces = "norm.weight" in looks and "proj.2.weight" in looks  # which read no CLIP
    if not reads or kind is None or of_faces or any("lora" in key for key in shapes):
        raise UsageError(
            f"{_OPTION} {name}: is no IP-Adapter of the plain, plus or full-face kind; give one, or FLUX.1 Redux"
        )
    return _Header(known[kind], looks[kind][1], reads[0])


def _find_encoder(name: str, place: str, header: _Header) -> str:
    """Folder of the CLIP whose width the adapter was trained on."""
    folder = PurePosixPath(place).parent
    places = [os.path.normpath(folder / each) for each in _ENCODERS]
    if not os.path.isabs(place):
        owner, repo = place.split("/")[:2]
        places = [each for each in places if each.startswith(f"{owner}/{repo}/")]
    for each in places:
        config = extras.inside(each, "config.json", option=_OPTION)
        if config.is_file() and _sees(_json(name, config), header.kind) == header.sees:
            return each
    if header.kind == "ip-adapter" and header.sees == CLIP_L_WIDTH:
        return CLIP_L
    raise UsageError(
        f"{_OPTION} {name}: needs the CLIP that it was trained with, of {header.sees} channels, in {ENCODER}/ beside "
        f"it; looked in {', '.join(places)}"
    )


def _sees(config: Mapping[str, Any], kind: ImagePromptKind) -> int:
    vision = config.get("vision_config", config)
    return int(vision.get("projection_dim" if kind == "ip-adapter" else "hidden_size", 0))


def _json(name: str, path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{_OPTION} {name}: {path.name} can't be read ({error}); get it again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{_OPTION} {name}: {path.name} holds no JSON object; get it again")
    return content
