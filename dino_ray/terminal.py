"""What the commands share: failures in one line, options, progress and results on the terminal."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from dino_ray.errors import DinoRayError
from dino_ray.places import is_url, local_path
from dino_ray.stopping import INTERRUPTED, interrupt

if TYPE_CHECKING:
    from dino_ray.jobfolder import Existing

EXISTING: dict[bool | None, Existing] = {None: "resume", True: "must", False: "fresh"}
"""What --resume, --fresh or neither ask for."""

Command = TypeVar("Command", bound=Callable[..., Any])


def command(function: Command) -> Command:
    """A subcommand whose failures are one line on stderr, and a traceback only with --debug."""

    @click.option("--debug", is_flag=True, help="Show tracebacks and debug messages.")
    @functools.wraps(function)
    def run(*args: Any, debug: bool, **kwargs: Any) -> None:
        logging.basicConfig(format="dino-ray: %(message)s", level=logging.WARNING)
        logging.getLogger("dino_ray").setLevel(logging.DEBUG if debug else logging.INFO)
        if not debug:
            _hush_libraries()
        signal.signal(signal.SIGTERM, interrupt)
        try:
            sys.exit(function(*args, **kwargs) or 0)
        except KeyboardInterrupt as stop:
            said = str(stop) or "interrupted; nothing was done yet, and nothing is left behind"
            click.echo(f"dino-ray: {said}", err=True)
            sys.exit(INTERRUPTED)
        except DinoRayError as error:
            if debug:
                raise
            click.echo(f"dino-ray: {error}", err=True)
            sys.exit(error.exit_code)
        except Exception as error:
            if debug:
                raise
            click.echo(
                f"dino-ray: internal error, {type(error).__name__}: {error} (--debug shows where)", err=True
            )
            sys.exit(1)

    return run  # type: ignore[return-value]


def _hush_libraries() -> None:
    """Keep what libraries warn of, such as GPU kernels that a machine without a GPU can't load, off the terminal."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_ours_or_an_error)
    logging.getLogger("torch.utils._pytree").setLevel(
        logging.ERROR
    )  # its parent is set anew when torch loads
    for library in ("DIFFUSERS", "TRANSFORMERS"):  # which have handlers of their own; workers inherit it
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def _is_ours_or_an_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or record.name.partition(".")[0] == __package__


def _place(ctx: click.Context, param: click.Parameter, value: str | None) -> str | Path | None:
    """A path as such; an address, which a path would spoil, as it is."""
    return value if value is None or is_url(value) else local_path(value)


report_option = click.option(
    "--report",
    metavar="FILE",
    callback=_place,
    help="Write the run report as JSON, to a file or an address; of several inputs, a JSON list.",
)
log_option = click.option(
    "--log",
    metavar="FILE",
    help="Append every event and message to a file, as lines of JSON.",
)
progress_option = click.option(
    "--progress",
    type=click.Choice(["auto", "json", "none"]),
    default="auto",
    show_default=True,
    help="Bars or lines on stderr, or every event as a line of JSON.",
)


@contextlib.contextmanager
def listener(progress: str) -> Iterator[Any]:
    from dino_ray.report import progress as shown

    if progress == "json":
        yield shown.json_lines(sys.stderr)
    elif progress == "none":
        yield lambda event: None
    elif sys.stderr.isatty():
        with shown.bars(sys.stderr) as listen, _logging_to(sys.stderr):
            yield listen
    else:
        yield shown.plain_lines(sys.stderr)


@contextlib.contextmanager
def _logging_to(stream: IO[str]) -> Iterator[None]:
    """Have log messages go to a stream: the one that ``bars`` put in place of stderr writes above them."""
    handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    before = [handler.setStream(stream) for handler in handlers]
    try:
        yield
    finally:
        for handler, own in zip(handlers, before, strict=True):
            if own is not None:
                handler.setStream(own)


def say_done(report: Any, *, before: bool) -> None:
    # To what is stderr now: err=True would write into the bars.
    if before:
        click.echo(f"{report.output}: was finished by an earlier run", file=sys.stderr)
        return
    click.echo(
        f"{report.output}: {report.width} × {report.height}, {report.tiles} tiles on {report.workers} "
        f"worker{'s' if report.workers != 1 else ''}, {report.wall_s:.1f} s "
        f"({report.first_tile_s:.1f} s to the first tile; the models alone {report.model_s_per_worker:.1f} s)",
        file=sys.stderr,
    )
    from dino_ray.report.narration import in_one_line

    if found := in_one_line(report):
        click.echo(f"fidelity: {found}", file=sys.stderr)
    if report.poisoned:
        tiles = ", ".join(map(str, report.poisoned))
        click.echo(
            f"warning: the model failed on tiles {tiles}; the base stands there (see --report)",
            file=sys.stderr,
        )
