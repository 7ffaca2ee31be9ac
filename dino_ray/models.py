"""``dino-ray models``: what is known of the models that have a short name, computed from their configuration files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from dino_ray import fitting
from dino_ray.diffusion import fit, model_files, presence, published
from dino_ray.diffusion.catalogue import KNOWN, KnownModel
from dino_ray.diffusion.dtypes import Dtypes
from dino_ray.diffusion.fit import Way
from dino_ray.diffusion.sizing import sizes
from dino_ray.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

WAYS = {
    "fp32": Way("fp32"),
    "bf16": Way(),
    "fp8": Way("fp8"),
    "int8": Way(quantize="torchao-int8"),
    "nf4": Way(quantize="nf4"),
    "group": Way(offload="group"),
    "sequential": Way(offload="sequential"),
}
"""What memory is said of, and by which name."""


@dataclass(frozen=True)
class Row:
    """One model. Memory and downloads in GB, 10⁹ bytes."""

    alias: str
    repo: str | None
    family: str
    licence: str
    accept: str | None
    """Page where its licence is to be accepted before it can be downloaded; None: there is no need."""
    tile: int | None
    """canvas_px."""
    steps: int | None
    denoise: float | None
    noise_levels: tuple[float, float] | None
    """Lowest and highest ``--denoise``, but for 0."""
    cfg: float | None
    """None: it takes none."""
    parameters: int | None
    """Of what predicts."""
    memory_gb: dict[str, float]
    """Of a replica's GPU at the model's own tile size, by how it is kept: weights, work and `fit.RESERVE`; a
    batch and DINO add to it."""
    text_gb: float | None
    """Of its text encoders in bf16, which one worker holds before the model is loaded."""
    download_gb: float | None
    here: bool
    """Whether all of it is on this machine."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def rows() -> list[Row]:
    """All models of the catalogue whose family is driven here, in its order."""
    return [row for known in KNOWN for row in _rows(known)]


def _rows(known: KnownModel) -> Iterator[Row]:
    if known.repo is None:
        yield _shipped(known)
        return
    folder = published.folder(known.alias)
    if folder is None:
        return
    ref = model_files.resolve(str(folder))
    try:
        family, configs = model_files.family_and_configs(ref)
    except UsageError:
        return  # its family is not driven here
    found = sizes(ref)
    description = family.describe(known.alias, configs)
    wanted = fitting.demand(found, description, fitting.Job(description.tile, 1, None, None, 0.0), Dtypes())
    least, most = description.noise_levels
    yield Row(
        alias=known.alias,
        repo=known.repo,
        family=family.title,
        licence=known.licence,
        accept=known.page if known.gated else None,
        tile=description.tile,
        steps=description.steps,
        denoise=description.denoise,
        noise_levels=(round(least, 3), round(most, 3)),
        cfg=description.cfg,
        parameters=found.core.count.parameters,
        memory_gb={name: _gb(fit.replica_needs(wanted, way) + fit.RESERVE) for name, way in WAYS.items()},
        text_gb=_gb(fit.text_needs(wanted, Way())),
        download_gb=_gb(presence.download_bytes(known, found)),
        here=model_files.is_present(known.repo),
    )


def _shipped(known: KnownModel) -> Row:
    """What comes with the package."""
    row = Row(
        alias=known.alias,
        repo=None,
        family="ships with the package",
        licence=known.licence,
        accept=None,
        tile=None,
        steps=None,
        denoise=None,
        noise_levels=None,
        cfg=None,
        parameters=None,
        memory_gb={},
        text_gb=None,
        download_gb=None,
        here=True,
    )
    if known.alias != "bundled":
        return row
    from dino_ray.diffusion import bundled

    made = bundled.describe(None)
    return replace(
        row, tile=made.tile, steps=made.steps, denoise=made.denoise, noise_levels=made.noise_levels
    )


def _gb(n_bytes: float) -> float:
    return round(n_bytes / fitting.GB, 1)


# ---- as a table

COLUMNS = ("bf16", "int8", "nf4", "group")
"""Ways whose memory people are shown."""

NOTE = (
    "Memory is a replica's, GB of its GPU with tiles of the model's own size; guidance by DINO (--dino-strength) and "
    "--batch add to it. Text encoders lie on one worker, before the model. --fit picks what fits; dino-ray plan says "
    "what it picked."
)

MORE = "--model also takes a diffusers folder, a .safetensors or GGUF file, or a hub id of a model of these families."


def _cells(row: Row) -> list[str]:
    """Of a row, in the order of `_heads`."""

    def said(value: Any) -> str:
        return "" if value is None else f"{value:g}"

    def gb(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    memory = [gb(row.memory_gb.get(name)) for name in COLUMNS]
    chosen = (said(row.tile), said(row.steps), said(row.denoise), said(row.cfg))
    return [*chosen, *memory, gb(row.text_gb), gb(row.download_gb)]


_HEADS = ("tile", "steps", "denoise", "cfg", *COLUMNS, "text", "download")


def table(listed: Sequence[Row], width: int) -> Table:
    """For a terminal of ``width`` columns: a narrow one gets a block of lines per model."""
    from rich.table import Table
    from rich.text import Text

    if width < WIDE:
        made = Table.grid()
        for row in listed:
            made.add_row(Text(row.alias + (" (here)" if row.here else ""), "bold"))
            for line in _lines(row):
                made.add_row(Text(f"  {line}"))
        return made
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("model", no_wrap=True)
    made.add_column("here")
    for head in _HEADS:
        made.add_column(head, justify="right", no_wrap=True)
    made.add_column("licence")
    for family, alike in groupby(listed, lambda row: row.family):
        made.add_row(Text(family, "bold"))
        for row in alike:
            licence = row.licence + (" (accept on its page)" if row.accept else "")
            here = "yes" if row.here else ""
            made.add_row(*map(Text, (f"  {row.alias}", here, *_cells(row), licence)))
    return made


WIDE = 120
"""Columns of a terminal from which on a model fits a line."""


def _lines(row: Row) -> Iterator[str]:
    yield f"{row.family}{f', {row.repo}' if row.repo else ''}"
    named = [f"{head} {cell}" for head, cell in zip(_HEADS, _cells(row), strict=True) if cell]
    if named:
        yield "  ".join(named)
    yield f"licence: {row.licence}{f'; accept it at {row.accept}' if row.accept else ''}"


BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"
"""What the table lies between in ``docs/models.md``."""


def renewed(page: str) -> str:
    """``docs/models.md`` with its table as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown(rows())}{END}{after}"


def markdown(listed: Sequence[Row]) -> str:
    """The table of ``docs/models.md``: without what depends on the machine."""
    heads = ("`--model`", "hub", "licence", *_HEADS)
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * 3}{' ---: |' * len(_HEADS)}"]
    for row in listed:
        hub = f"[{row.repo}](https://huggingface.co/{row.repo})" if row.repo else row.family
        licence = row.licence + (" (gated)" if row.accept else "")
        lines.append(f"| {' | '.join((f'`{row.alias}`', hub, licence, *_cells(row)))} |")
    return "\n".join(lines) + "\n"
