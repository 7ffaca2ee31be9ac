"""All that a result's pixels depend on: options, source, weights, software. What a resumed job must find unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dino_ray import __version__, hub, places
from dino_ray.config import UpscaleConfig, option_name
from dino_ray.diffusion.lora_file import local_path
from dino_ray.errors import JobError, UsageError
from dino_ray.resolve import NO_MODEL
from dino_ray.settings import Settings

_SETTLED = (
    *(
        "scale",
        "base",
        "net",
        "denoise",
        "steps",
        "sampler",
        "prompt",
        "regions",
        "captioner",
        "control_scale",
        "control_range",
        "negative_prompt",
        "cfg",
        "tile",
        "overlap",
        "dino",
        "dino_strength",
        "dino_adapter",
        "adaptive",
        "verify",
        "consistency",
        "color_lock",
        "seed",
        "batch",
    ),
)
"""Options as ``resolve`` has settled them."""
_GIVEN = (
    *("model", "controlnet", "compile", "attention", "step_cache"),
    *("threads", "page", "to_srgb"),
)
"""Options as they were given."""
_IMAGE_PROMPT = ("image_prompt", "image_prompt_of", "image_prompt_scale")

_OF_MODEL = ("components", "vae")
"""Options of the model, as ``resolve`` has settled them."""

_SOFTWARE = ("numpy", "pyvips-binary")
_MODEL_SOFTWARE = ("torch", "diffusers", "transformers")

_READ_BYTES = 2**20
_HASHED_BYTES = 2**28
"""Weights of up to this size are hashed, which takes under a second."""
_WEIGHT_SUFFIXES = (".safetensors", ".json", ".bin")
_REMOTE_FACTS = ("size", "ETag", "LastModified", "last_modified", "mtime", "md5Hash", "Content-MD5")
"""What file systems behind URLs say of a file that changes when the file does."""


def of_pixels(
    source: str | np.ndarray,
    config: UpscaleConfig,
    settings: Settings,
    depth: int,
    wrap: bool,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """What the pixels of one image's result depend on, by the names under which a message says it.

    Parameters
    ----------
    depth
        Bits per sample of the canvas.
    wrap
        Whether its left and right edges meet.
    stop
        Asked while a large source is hashed; once it says yes, ``JobError`` is raised.
    """
    packages = (*_SOFTWARE, *(_MODEL_SOFTWARE if config.model != "none" or settings.base == "net" else ()))
    return {
        **{option_name(name): getattr(settings, name) for name in _SETTLED},
        **{option_name(name): getattr(config, name) for name in _GIVEN},
        "--lora": [f"{lora.location}:{lora.weight:g}" for lora in settings.model_options.loras],
        **{option_name(name): getattr(config, name) for name in _IMAGE_PROMPT},
        **{option_name(name): getattr(settings.model_options, name) for name in _OF_MODEL},
        "--dtype": str(settings.dtype),
        "--quantize": settings.model_options.quantize,
        "--vae-tile": settings.model_options.vae_tile,
        "--depth": depth,
        "--wrap": "on" if wrap else "off",
        "a source of": of_source(source, stop),
        "weights": {
            name: of_weights(name)
            for name in (
                *_models(settings),
                config.controlnet,
                settings.dino,
                settings.dino_adapter,
                settings.sketch,
            )
            if name
        }
        | {lora.location: of_weights(str(local_path(lora))) for lora in settings.model_options.loras}
        | _image_prompt_weights(settings),
        "thresholds of DINO": _thresholds(settings.dino),
        "dino-ray": __version__,
        **{package: _version(package) for package in packages},
    }


def _image_prompt_weights(settings: Settings) -> dict[str, str]:
    prompt = settings.model_options.image_prompt
    if prompt is None:
        return {}
    from dino_ray.diffusion import image_prompt_file

    return {part: of_weights(str(path)) for part, path in image_prompt_file.files(prompt).items()}


def _models(settings: Settings) -> list[str]:
    """All that the diffusion model's weights come from."""
    if settings.model_place == NO_MODEL:
        return [NO_MODEL]
    from dino_ray.diffusion import model_files

    return model_files.weight_places(model_files.resolve(settings.model_place, settings.model_options))


def _thresholds(dino: str | None) -> dict[str, Any] | None:
    """Those stored with a DINO model, by which it guides and judges."""
    if dino is None:
        return None
    from dino_ray.dino.calibration import find

    stored = find(dino)
    return None if stored is None else stored.to_dict()


def of_source(source: str | np.ndarray, stop: Callable[[], bool] = lambda: False) -> str:
    """What tells a source from another, and from its own earlier state: a hash, or what its server says of it.

    Raises
    ------
    UsageError
        If a file can't be read.
    JobError
        If it was stopped.
    """
    if isinstance(source, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(source).data)
        return f"{source.shape} {source.dtype}, SHA-256 {digest.hexdigest()}"
    if places.is_url(source):
        return _of_remote(source)
    digest = hashlib.sha256()
    try:
        with open(source, "rb") as file:
            while block := file.read(_READ_BYTES):
                if stop():
                    raise JobError(f"{source}: was not read to its end; start again")
                digest.update(block)
            size = file.tell()
    except OSError as error:
        raise UsageError(f"{source}: cannot be read ({error.strerror})") from error
    return f"{size} bytes, SHA-256 {digest.hexdigest()}"


def _of_remote(url: str) -> str:
    with places.explained(url, "read"):
        files, path = places.filesystem(url)
        facts = files.info(path)
    return ", ".join(f"{name} {facts[name]}" for name in _REMOTE_FACTS if facts.get(name) is not None)


def of_weights(model: str) -> str:
    """What tells a folder or a file of weights from its own earlier state; of a hub's model, its commit."""
    folder = Path(model).expanduser()
    if folder.is_file():
        return _of_file(folder)
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted(folder.rglob("*")):
            if path.suffix in _WEIGHT_SUFFIXES and path.is_file():
                facts = path.stat()
                digest.update(f"{path.relative_to(folder)} {facts.st_size} {facts.st_mtime_ns}\n".encode())
        return f"of state {digest.hexdigest()[:16]}"
    return _commit(model) or model


def _of_file(path: Path) -> str:
    """By its content, or what tells that it changed where reading it would take a minute."""
    facts = path.stat()
    if facts.st_size > _HASHED_BYTES:
        return f"of {facts.st_size} bytes, changed at {facts.st_mtime_ns} ns"
    return f"of SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def _commit(repo: str) -> str | None:
    """Commit of a hub's model, from the cache that its configuration was read from."""
    from dino_ray.diffusion import catalogue
    from dino_ray.dino import loading as dino_loading

    found = hub.parse(catalogue.ALIASES.get(repo) or dino_loading.ALIASES.get(repo, repo))
    if found is None:
        return None  # it ships with the package, whose version is noted
    folder = found.cached("model_index.json", "config.json")
    return None if folder is None else f"of commit {folder.name}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # vendored, or a build of another name
        return "unknown"
