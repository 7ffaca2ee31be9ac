"""Tables and verdicts of benches, as a Markdown document."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Figures:
    """What a section of a bench found."""

    tables: Sequence[Table]
    verdicts: Sequence[str]
    """From ``verdict``."""


@dataclass(frozen=True)
class Section:
    """A part of a document; heading and introduction are the docstring of the function that measured it."""

    heading: str
    introduction: str
    figures: Figures

    @classmethod
    def of(cls, measure: Callable[..., Any], figures: Figures) -> Section:
        heading, _, rest = inspect.cleandoc(measure.__doc__ or measure.__name__).partition("\n\n")
        return cls(heading.removesuffix("."), rest.replace("\n", " "), figures)


def verdict(good: bool, what: str) -> str:
    return f"{'reached' if good else 'MISSED'}: {what}"


def missed(verdicts: Sequence[str]) -> bool:
    return any(line.startswith("MISSED") for line in verdicts)


def document(title: str, introduction: str, command: str, sections: Sequence[Section]) -> str:
    """All of it, with the command that makes it anew."""
    parts = [f"# {title}", introduction, f"Made by\n\n```sh\n{command}\n```"]
    for section in sections:
        parts.append(f"## {section.heading}")
        if section.introduction:
            parts.append(section.introduction)
        parts += [part for table in section.figures.tables for part in _titled(table)]
        if section.figures.verdicts:
            parts.append("\n".join(f"- {line}" for line in section.figures.verdicts))
    return "\n\n".join(parts) + "\n"


def _titled(table: Table) -> list[str]:
    return [f"**{table.title}**", in_markdown(table)] if table.title else [in_markdown(table)]


def in_markdown(table: Table) -> str:
    """A table of plain text, its columns justified as they are on a terminal."""
    rows = zip(*([_cell(cell) for cell in column.cells] for column in table.columns), strict=True)
    lines = [
        [_cell(column.header) for column in table.columns],
        ["---:" if column.justify == "right" else "---" for column in table.columns],
        *([f"**{cell}**" if cell and row.style == "bold" else cell for cell in cells]
          for cells, row in zip(rows, table.rows, strict=True)),
    ]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(content: object) -> str:
    return str(content).replace("|", "\\|")
