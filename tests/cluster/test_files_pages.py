"""Promises of the pages in cluster/: their commands name subcommands, options and files that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from launch_files import CLUSTER, ROOT, kubernetes, pages
from ray.scripts.scripts import cli as ray_cli

from dino_ray.cli import main
from dino_ray.config import UpscaleConfig

ENDS = {";", "|", "&&", "||", ">", ">>", "<", "&"}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every line of every block of shell, as words, with where it stands."""
    for page in pages():
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
                lexer.whitespace_split = True
                words = list(lexer)
                if words:
                    yield page.name, words


def calls(program: str) -> list[tuple[str, list[str]]]:
    """Arguments of each call of a program, however it is named or wrapped."""
    found = []
    for page, words in commands():
        for at, word in enumerate(words):
            follows = at == 0 or words[at - 1] in ENDS or "=" in words[at - 1] or wrapped(words, at)
            if follows and Path(word).name == program:
                end = next((n for n in range(at, len(words)) if words[n] in ENDS), len(words))
                found.append((page, words[at + 1 : end]))
    return found


def wrapped(words: list[str], at: int) -> bool:
    """Behind an image's name in `docker run`."""
    return words[0] in ("docker", "podman") and words[at - 1].startswith("registry.example.com/")


def parse(group: click.Command, arguments: list[str]) -> dict[str, object]:
    """As the program would, without doing anything: unknown subcommands and options raise. What was given."""
    assert isinstance(group, click.Group)
    name, *rest = arguments
    command = group.get_command(click.Context(group), name)
    assert command is not None, f"no such command: {name}"
    context = command.make_context(name, list(rest), resilient_parsing=False)
    if isinstance(command, click.Group):
        return parse(command, [*context.protected_args, *context.args])
    return {key: value for key, value in context.params.items() if value is not None}


def words_of(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " ".join(value)


def dino_ray_calls() -> list[tuple[str, list[str]]]:
    entrypoint = shlex.split(kubernetes("rayjob.yaml")["spec"]["entrypoint"])
    jobs = [
        (page, ["upscale", *words[next(n for n, w in enumerate(words) if w.endswith(".sbatch")) + 1 :]])
        for page, words in commands()
        if words[0] == "sbatch"
    ]
    return [*calls("dino-ray"), *jobs, ("rayjob.yaml", entrypoint[1:])]


@pytest.mark.parametrize(("page", "arguments"), dino_ray_calls(), ids=words_of)
def test_calls_of_dino_ray_are_understood(page: str, arguments: list[str]) -> None:
    given = parse(main, arguments)
    if arguments[0] in ("upscale", "submit"):
        UpscaleConfig.parse({k: v for k, v in given.items() if k in UpscaleConfig.model_fields}, where=page)


@pytest.mark.parametrize(("page", "arguments"), calls("ray"), ids=words_of)
def test_calls_of_ray_are_understood_by_this_ray(page: str, arguments: list[str]) -> None:
    parse(ray_cli, arguments)


def test_the_pages_do_call_both() -> None:
    assert {arguments[0] for _, arguments in dino_ray_calls()} >= {"upscale", "doctor", "submit", "status"}
    assert {arguments[0] for _, arguments in calls("ray")} >= {"start", "stop", "up", "down", "dashboard"}


def test_files_that_commands_name_exist() -> None:
    named = [
        w
        for _, words in commands()
        for w in words
        if re.match(r"(cluster|scripts|docs)/", w) and "*" not in w
    ]
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(CLUSTER)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if heading:
            headings = [
                h.lower().replace(" ", "-")
                for h in re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            ]
            assert heading in headings, link


def test_the_index_leads_to_every_page() -> None:
    index = (CLUSTER / "README.md").read_text()
    for page in pages():
        name = str(page.relative_to(CLUSTER))
        assert name == "README.md" or name in index, name
