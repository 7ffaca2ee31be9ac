"""Promises of the pages for users: what they show and say of options is there, and so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dino_ray.config import PRESET_STEPS, PRESETS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_of_a_page_are_there_and_load_quickly(page: Path) -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
    for picture in pictures:
        assert (page.parent / picture).stat().st_size < 300_000, picture


def test_the_page_about_dino_has_the_presets_as_they_are() -> None:
    rows = re.findall(r"^\| `(\w+)`[^|]*\|(.+)\|$", (ROOT / "docs" / "dino.md").read_text(), re.MULTILINE)
    told = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    steps = {1: "the model's", 2: "twice the model's"}
    for name, values in PRESETS.items():
        numbers = [f"{values[option]:g}" for option in ("denoise", "dino_strength", "adaptive")]
        assert told[name] == [*numbers, steps[PRESET_STEPS[name]]]


def test_commands_of_the_page_about_models_have_options_that_there_are() -> None:
    from dino_ray.config import UpscaleConfig, option_name

    known = {*map(option_name, UpscaleConfig.model_fields), "--config"}
    page = (ROOT / "docs" / "models.md").read_text()
    commands = re.findall(r"^dino-ray upscale (?:.*\\\n)*.*$", page, re.MULTILINE)
    assert commands
    for command in commands:
        assert set(re.findall(r"--[a-z][a-z-]*", command)) <= known, command
