"""``dino-ray comfyui install``: a thin folder in ``custom_nodes`` that imports this package."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dino_ray.errors import UsageError

FOLDER = "dino_ray"
"""In ComfyUI's ``custom_nodes``."""

MARK = "# Written by dino-ray comfyui install."
"""First line of what is ours to replace and to remove."""

CONTENT = f'''{MARK} Remove this folder with: dino-ray comfyui uninstall
"""Shows ComfyUI the nodes of the package dino-ray, which is installed where ComfyUI's Python finds it."""

from dino_ray.comfy import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
'''


def install(comfyui: str | Path) -> Path:
    """Make a ComfyUI find the nodes; does nothing where it does already.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UsageError
        If that is no ComfyUI, or something of that name which is not ours is in the way, or nothing can be written.
    """
    folder = _folder(comfyui)
    init = folder / "__init__.py"
    try:
        if folder.exists() and not _is_ours(folder):
            raise UsageError(
                f"{folder}: is there and was not written by this command; where it is a checkout of dino_ray, ComfyUI "
                "finds the nodes already; else move it away"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if not init.is_file() or init.read_text(encoding="utf-8") != CONTENT:
            beside = folder / ".__init__.py.part"
            beside.write_text(CONTENT, encoding="utf-8")
            os.replace(beside, init)
    except OSError as error:
        raise UsageError(f"{folder}: can't be written ({error.strerror})") from error
    return folder


def uninstall(comfyui: str | Path) -> Path | None:
    """Remove what ``install`` made.

    Returns
    -------
    Path or None
        The folder; None: there was none.

    Raises
    ------
    UsageError
        If that is no ComfyUI, or what is there is not ours to remove.
    """
    folder = _folder(comfyui)
    if not folder.exists():
        return None
    if not _is_ours(folder):
        raise UsageError(f"{folder}: was not written by dino-ray comfyui install; remove it yourself")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise UsageError(f"{folder}: can't be removed ({error.strerror})") from error
    return folder


def _folder(comfyui: str | Path) -> Path:
    root = Path(comfyui).expanduser().absolute()
    if not (root / "main.py").is_file() or not (root / "comfy").is_dir():
        raise UsageError(
            f"{root}: is no ComfyUI: it has no main.py beside a folder comfy; name the folder that holds them"
        )
    return root / "custom_nodes" / FOLDER


def _is_ours(folder: Path) -> bool:
    """Whether nothing but what ``install`` writes, and what Python adds, lies there."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    there = {path.name for path in folder.iterdir()} - {"__pycache__", ".__init__.py.part"}
    if not there:
        return True
    init = folder / "__init__.py"
    return there == {"__init__.py"} and init.read_text(encoding="utf-8").startswith(MARK)
