"""Where the files of what goes with a model lie: LoRAs, and models of image prompts. No torch.

A place is an absolute path, or ``owner/name/path`` on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dino_ray import hub
from dino_ray.diffusion import places

SUFFIX = ".safetensors"

_OPTIONS = {"loras": "--lora", "ipadapter": "--image-prompt"}
"""Folders of ComfyUI, and what names the files in them."""


def find(name: str, kind: str) -> Path | None:
    """A file or a folder of that name: as a path, or else among the user's models, its suffix left out or not.

    Parameters
    ----------
    kind
        Folder that such models have among others: ``loras``.
    """
    for path in (Path(name).expanduser(), *(folder / name for folder in libraries(kind))):
        if path.exists():
            return path
        if (whole := path.with_name(path.name + SUFFIX)).is_file():
            return whole
    return None


def libraries(kind: str) -> Iterator[Path]:
    """Folders that bare names are looked for in, in order."""
    for library in places.libraries(_OPTIONS[kind]):
        yield library.path
        if library.source == places.FOLDERS:
            yield library.path / kind


def on_hub(name: str) -> bool:
    """Whether a name is spelled as ``owner/name`` or a file or folder of it."""
    parts = name.split("/")
    return len(parts) > 1 and all(parts) and hub.REPO_ID.fullmatch("/".join(parts[:2])) is not None


def listing(repo: str, option: str) -> list[Path]:
    """The safetensors files at the top of a repository of the hub."""
    return [Path(file) for file in hub.listing(hub.Repo(repo, option=option), [f"*{SUFFIX}"])]


def inside(place: str, *patterns: str, option: str) -> Path:
    """Where a file or a folder lies on this machine, downloaded first where it has to be.

    Parameters
    ----------
    patterns
        What of a folder is needed. One that names a single file of it leads to that.
    option
        For messages.
    """
    file = patterns[0] if len(patterns) == 1 and "*" not in patterns[0] else ""
    if Path(place).is_absolute():
        return Path(place) / file
    owner, repo, *path = place.split("/")
    wanted = ["/".join([*path, pattern]) for pattern in patterns] or ["/".join(path)]
    whole = hub.snapshot(
        hub.Repo(f"{owner}/{repo}", option=option),
        wanted,
        whole=lambda folder: all(any(folder.glob(pattern)) for pattern in wanted),
    )
    return whole.joinpath(*path, file)
