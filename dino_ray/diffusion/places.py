"""Where models lie on this machine: the user's folders of models, and a ComfyUI's. No torch, no network."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_ray.diffusion.weight_header import PICKLES, SUFFIXES

log = logging.getLogger(__name__)

FOLDERS, COMFYUI = "DINO_RAY_MODELS", "COMFYUI_PATH"
"""Environment variables: folders of models, separated as in PATH; and where ComfyUI is installed."""

_COMFYUI_KINDS: Mapping[str, tuple[str, ...]] = {
    "--model": ("checkpoints", "diffusion_models", "unet", "diffusers"),
    "--components": ("diffusers",),
    "--vae": ("vae",),
    "--lora": ("loras",),
    "--image-prompt": ("ipadapter",),
}
"""Folders in ComfyUI's ``models`` for what an option names."""

_EXTRA = "extra_model_paths.yaml"


@dataclass(frozen=True)
class Library:
    """A folder that names are looked for in."""

    path: Path
    source: str
    """What it was named by."""

    def find(self, name: str) -> list[Path]:
        """Files and folders that ``name`` means here, its suffix left out or not; pickles only for want of others."""
        whole = self.path / name
        if whole.exists():
            return [whole]
        found = [path for suffix in SUFFIXES if (path := whole.with_name(whole.name + suffix)).is_file()]
        return [path for path in found if path.suffix not in PICKLES] or found


def libraries(option: str) -> list[Library]:
    """All folders that what an option names is looked for in, in order, each once."""
    found: dict[Path, Library] = {}
    for library in (*_own(), *_comfyui(option)):
        found.setdefault(library.path, library)
    return list(found.values())


def unset() -> list[str]:
    """Which of the environment variables are not set: more places to look in."""
    return [name for name in (FOLDERS, COMFYUI) if not os.environ.get(name)]


def _own() -> Iterator[Library]:
    for path in os.environ.get(FOLDERS, "").split(os.pathsep):
        if path:
            yield Library(Path(path).expanduser(), FOLDERS)


def _comfyui(option: str) -> Iterator[Library]:
    named = os.environ.get(COMFYUI)
    if not named:
        return
    root = Path(named).expanduser()
    kinds = _COMFYUI_KINDS.get(option, ())
    models = root / "models" if (root / "models").is_dir() else root
    for kind in kinds:
        yield Library(models / kind, COMFYUI)
    for section in _extra_paths(root / _EXTRA).values():
        base = root / os.path.expandvars(os.path.expanduser(str(section.get("base_path", "."))))
        for kind in kinds:
            for line in str(section.get(kind) or "").splitlines():
                if line.strip():
                    yield Library(base / line.strip(), _EXTRA)


def _extra_paths(file: Path) -> dict[str, dict[str, Any]]:
    """The sections of ComfyUI's file of more folders; none where there is no such file or it can't be read."""
    import yaml

    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        log.warning("%s: can't be read (%s): its folders are not searched", file, error)
        return {}
    sections = loaded.items() if isinstance(loaded, dict) else ()
    return {str(name): section for name, section in sections if isinstance(section, dict)}
