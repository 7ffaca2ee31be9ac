"""Configuration files of published models, laid out as diffusers saves a pipeline, without weights and tokenizers.

By them a model is described, and its memory counted, before any of it is downloaded. They state facts of models that
the catalogue names; a test builds components from them and counts their parameters.
"""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).parent


def folder(name: str) -> Path | None:
    """The folder with the configuration files of a model of the catalogue; None where there are none."""
    found = _ROOT / name
    return found if name and (found / "model_index.json").is_file() else None


def holds(location: str) -> bool:
    """Whether a model's folder is one of these: it has no weights."""
    return Path(location).parent == _ROOT


def names() -> tuple[str, ...]:
    """Models whose configuration files are here, by the catalogue's names."""
    return tuple(sorted(path.parent.name for path in _ROOT.glob("*/model_index.json")))
