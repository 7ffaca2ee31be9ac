"""The command ``dino-ray``: parses and prints, decides nothing."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

import click

from dino_ray import __version__
from dino_ray.config import UpscaleConfig, option_name
from dino_ray.errors import DinoRayError, UsageError

if TYPE_CHECKING:
    from dino_ray.resolve import Settings

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells have it."""

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dino-ray")
def main() -> None:
    """Upscale images of any size with diffusion models, on all your GPUs.

    Try: dino-ray upscale photo.jpg -o photo-2x.png
    """


def _command(function: Command) -> Command:
    """A subcommand whose failures are one line on stderr, and a traceback only with --debug."""

    @click.option("--debug", is_flag=True, help="Show tracebacks and debug messages.")
    @functools.wraps(function)
    def run(*args: Any, debug: bool, **kwargs: Any) -> None:
        logging.basicConfig(format="dino-ray: %(message)s", level=logging.WARNING)
        logging.getLogger("dino_ray").setLevel(logging.DEBUG if debug else logging.INFO)
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            sys.exit(function(*args, **kwargs) or 0)
        except KeyboardInterrupt:
            click.echo("dino-ray: interrupted; no output was written for the image in work", err=True)
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


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _config_options(function: Command) -> Command:
    """One option per field of the config, and --config for a file of them; passes ``config`` on."""

    @functools.wraps(function)
    def run(*args: Any, config_file: Path | None, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in UpscaleConfig.model_fields}
        typed = {name: value for name, value in given.items() if value is not None}
        config = UpscaleConfig.from_yaml(config_file, typed) if config_file else UpscaleConfig.parse(typed)
        return function(*args, config=config, **kwargs)

    options: list[Callable[[Any], Any]] = [
        click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE.yaml",
                     help="Options from a file, by the names above; what is typed wins."),
    ]  # fmt: skip
    for name, field in reversed(UpscaleConfig.model_fields.items()):
        shown = "what suits the model" if field.default is None else field.default
        default = f"  [default: {shown}]" if shown != "" else ""
        options.append(
            click.option(
                option_name(name),
                name,
                metavar=_metavar(field.annotation),
                help=f"{field.description}{default}",
            )
        )
    for option in options:
        run = option(run)
    return run  # type: ignore[return-value]


def _metavar(annotation: Any) -> str:
    """What to type: ``NUMBER``, ``TEXT``, or the choices."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    text = str(annotation)
    if "int" in text:
        return "N|auto" if "auto" in text else "N"
    return "X" if "float" in text else "TEXT"


@main.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUTPUT",
    help="A file (.png .jpg .webp .tif); for several inputs a folder, which gets NAME@2x.png of each.",
)
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the run report as JSON; of several inputs, a JSON list.",
)
@click.option(
    "--progress",
    type=click.Choice(["auto", "json", "none"]),
    default="auto",
    show_default=True,
    help="Bars or lines on stderr, or every event as a line of JSON.",
)
@_command
@_config_options  # fmt: skip
def upscale(
    inputs: Sequence[Path], output: str, report: Path | None, progress: str, config: UpscaleConfig
) -> int:
    """Upscale one or more images."""
    started = time.monotonic()
    from dino_ray.files import check_place, write_whole
    from dino_ray.job import check_file, upscale_images
    from dino_ray.resolve import resolve

    pairs = _pairs(inputs, output, config.scale)
    if report is not None:
        check_place(report, "--report")
        if any(_same(report, file) for pair in pairs for file in pair):
            raise UsageError(f"--report {report}: is an input or an output; name another file")
    settings = resolve(config)
    images = [check_file(*pair, settings) for pair in pairs]
    if progress == "auto":
        _introduce(settings)
    reports: list[Any] = []

    def finished(image: Any, canvas: Any, image_report: Any) -> None:
        reports.append(image_report)
        if progress == "auto":
            _say_done(image_report)

    try:
        with _listener(progress) as listen:
            failures = upscale_images(images, config, settings, listen, finished, started)
    finally:  # what was done before an interruption is reported too
        if report is not None and reports:
            said = [asdict(done) for done in reports]
            body = json.dumps(said if len(images) > 1 else said[0], indent=2, ensure_ascii=False)
            write_whole(report, (body + "\n").encode(errors="backslashreplace"), "--report")
    for image, error in failures:
        named = str(error) if str(image.source) in str(error) else f"{image.source}: {error}"
        click.echo(f"dino-ray: {named}", err=True)
    return max((error.exit_code for _, error in failures), default=0)


@main.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="INPUT...")
@click.option("--json", "as_json", is_flag=True, help="As JSON, a list if there are several inputs.")
@_command
@_config_options
def plan(inputs: Sequence[Path], as_json: bool, config: UpscaleConfig) -> None:
    """Say what upscaling would do and need, without doing it."""
    from dino_ray.preview import preview
    from dino_ray.resolve import resolve

    settings = resolve(config)
    workers = 1 if config.workers == "auto" else config.workers
    previews = [preview(path, settings, workers) for path in inputs]
    if as_json:
        click.echo(
            json.dumps(
                [p.to_dict() for p in previews] if len(previews) > 1 else previews[0].to_dict(), indent=2
            )
        )
        return
    for p in previews:
        click.echo(p.to_text())


@main.command()
@click.option(
    "--address",
    default="local",
    show_default=True,
    metavar="TEXT",
    help="Ray cluster to check; local: that one can be started here; none: leave Ray out.",
)
@_command  # fmt: skip
def doctor(address: str) -> int:
    """Check this machine, a cluster and the bundled models."""
    from dino_ray.doctor import examine

    sound = True
    for finding in examine(address):
        sound &= finding.sound
        click.echo(f"{'ok  ' if finding.sound else 'BAD '} {finding.what}: {finding.detail}")
    return 0 if sound else 1


@main.command()
@_command
def models() -> None:
    """List the models that can be named, and what each needs."""
    from dino_ray.diffusion.catalogue import KNOWN

    for known in KNOWN:
        click.echo(
            f"{known.alias:14}{known.repo or ''}\n{'':14}needs {known.needs}\n{'':14}licence: {known.licence}\n"
        )
    click.echo("--model also takes a folder with model_index.json, or any hub id of a FLUX.1 model.")


def _pairs(inputs: Sequence[Path], output: str, scale: float) -> list[tuple[Path, Path]]:
    """Each input with its output file.

    Raises
    ------
    UsageError
        If several inputs are to become one file.
    """
    if not output:
        raise UsageError("-o: is empty; name a file, or for several inputs a folder")
    target = Path(output)
    if not (target.is_dir() or output.endswith("/") or len(inputs) > 1):
        return [(inputs[0], target)]
    if not target.is_dir():
        why = "the folder does not exist" if output.endswith("/") else f"{len(inputs)} inputs need a folder"
        raise UsageError(f"-o {output}: {why}; create it first")
    pairs = [(path, target / f"{path.stem}@{scale:g}x.png") for path in inputs]
    taken: dict[Path, Path] = {}
    for path, result in pairs:
        overwritten = next((other for other in inputs if _same(result, other)), None)
        if overwritten is not None:
            raise UsageError(f"{path} would be written over the input {overwritten}; name another folder")
        if result in taken:
            raise UsageError(
                f"{taken[result]} and {path} would both become {result}; upscale them one by one"
            )
        taken[result] = path
    return pairs


def _same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, which need not exist."""
    return os.path.realpath(one) == os.path.realpath(other)


@contextlib.contextmanager
def _listener(progress: str) -> Iterator[Any]:
    from dino_ray.report import progress as shown

    if progress == "json":
        yield shown.json_lines(sys.stderr)
    elif progress == "none":
        yield lambda event: None
    elif sys.stderr.isatty():
        with shown.bars(sys.stderr) as listen:
            yield listen
    else:
        yield shown.plain_lines(sys.stderr)


def _introduce(settings: Settings) -> None:
    if settings.model is not None and settings.model.name == "bundled":
        click.echo(
            "Using the bundled model: small, trained on generated images, made to run anywhere. "
            "For a real one: --model flux-schnell (see dino-ray models).",
            err=True,
        )


def _say_done(report: Any) -> None:
    click.echo(
        f"{report.output}: {report.width} × {report.height}, {report.tiles} tiles on {report.workers} "
        f"worker{'s' if report.workers > 1 else ''}, {report.wall_s:.1f} s "
        f"({report.first_tile_s:.1f} s to the first tile; the models alone {report.model_s_per_worker:.1f} s)",
        err=True,
    )
    if report.poisoned:
        tiles = ", ".join(map(str, report.poisoned))
        click.echo(
            f"warning: the model failed on tiles {tiles}; the base stands there (see --report)", err=True
        )


if __name__ == "__main__":
    main()
