"""The command ``dino-ray``: parses and prints, decides nothing."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_ray import __version__
from dino_ray.config import UpscaleConfig
from dino_ray.errors import UsageError
from dino_ray.options import BareWrap, config_options, typed_options
from dino_ray.places import shown
from dino_ray.stopping import stopped_in_time
from dino_ray.submit.commands import cancel, status, submit
from dino_ray.terminal import (
    EXISTING,
    command,
    listener,
    log_option,
    progress_option,
    report_option,
    say_done,
)

if TYPE_CHECKING:
    from dino_ray.batch import Batch
    from dino_ray.settings import Settings


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dino-ray")
def main() -> None:
    """Upscale images of any size with diffusion models, on all your GPUs.

    Try: dino-ray upscale photo.jpg -o photo-2x.png
    """


@main.command(cls=BareWrap)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUTPUT",
    help="A file (.png .jpg .webp .tif .dzi .ome.zarr); a folder, which gets NAME@2x.png of each input; "
    "or a template such as 'out/{stem}@{scale}x.png', of {stem} {name} {suffix} {folder} {scale} {index}.",
)
@report_option
@log_option
@progress_option
@click.option(
    "--resume/--fresh",
    "go_on",
    default=None,
    help="Demand that there is a job to go on with, or discard one. Default: go on with it if there is one.",
)
@click.option("--strict", is_flag=True, help="Stop at the first image that fails.")
@command
@config_options  # fmt: skip
def upscale(
    inputs: Sequence[str],
    output: str,
    report: str | Path | None,
    log: str | None,
    progress: str,
    go_on: bool | None,
    strict: bool,
    config: UpscaleConfig,
) -> int:
    """Upscale images: files, folders, patterns such as 'scans/**/*.tif', or URLs.

    A job that was cut short leaves a folder beside its output; the same command again goes on from there.
    """
    started = time.monotonic()
    from dino_ray.batch import Batch
    from dino_ray.inputs import expand, make_folders, outputs
    from dino_ray.raster.export import default_suffix

    images = expand(inputs)
    results = outputs(images, output, config.scale, default_suffix(config.format))
    batch = Batch.check(
        [(image.path, result) for image, result in zip(images, results, strict=True)],
        config,
        report=report,
        existing=EXISTING[go_on],
        strict=strict,
        before_outputs=lambda: make_folders(results, output),
    )
    return _run(batch, progress, log, started)


@main.command()
@click.argument("folder", metavar="DIR")
@report_option
@log_option
@progress_option
@command
@typed_options("address", "workers", "gpus_per_worker")
def resume(
    folder: str, report: str | Path | None, log: str | None, progress: str, typed: dict[str, Any]
) -> int:
    """Go on with the job in DIR, a folder or an address, or with all in it, that an interruption has left."""
    from dino_ray.batch import Batch, check_replaced
    from dino_ray.jobfolder import check_owner, resumable

    code = 0
    report = report.absolute() if isinstance(report, Path) else report
    log = log and os.path.abspath(log)
    for place, manifest in resumable(folder):
        started = time.monotonic()
        check_owner(place)
        if not manifest.output:
            raise UsageError(f"{place}: its job returns an image to Python; the same call of upscale goes on")
        # One whose files all lie behind addresses goes on wherever it is resumed.
        with contextlib.nullcontext() if manifest.is_anywhere else _in_folder(manifest.cwd):
            config = UpscaleConfig.parse({**manifest.config, **typed, "job_dir": place}, where=place)
            said = report or manifest.report
            check_replaced(manifest.output, said)
            batch = Batch.check([(manifest.source, manifest.output)], config, report=said, existing="must")
            code = max(code, _run(batch, progress, log, started))
        if manifest.several:
            click.echo(
                f"{shown(manifest.output)}: was one of several images; their command goes on with the others",
                err=True,
            )
    return code


@contextlib.contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    """Names in a job are relative to where its command was given."""
    try:
        with contextlib.chdir(folder):
            yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{folder}: the job's command was given there, and the folder is gone") from error


def _run(batch: Batch, progress: str, log: str | None, started: float) -> int:
    """Work on a checked batch and say what came of it; returns the exit code."""
    if progress == "auto" and batch.images:
        _introduce(batch.settings)
        _download(batch)

    def finished(image: Any, canvas: Any, report: Any) -> None:
        if progress == "auto":
            say_done(report, before=canvas is None)

    from dino_ray.report.logs import log_file

    with log_file(log), stopped_in_time(batch.standing.left), listener(progress) as listen:
        batch.run(listen, finished, started)
    for name, error in batch.failures:
        named = str(error) if name in str(error) else f"{name}: {error}"
        click.echo(f"dino-ray: {named}", err=True)
    return max((error.exit_code for _, error in batch.failures), default=0)


@main.command(cls=BareWrap)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    metavar="OUTPUT",
    help="As of upscale: decides time, memory and size. Default: files of --format, or PNG.",
)
@click.option(
    "--calibrate/--no-calibrate",
    default=False,
    show_default=True,
    help="Rehearse a part of the job here, for some seconds, to foretell its time and memory.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, a list if there are several inputs.")
@command
@config_options
def plan(
    inputs: Sequence[str], output: str | None, calibrate: bool, as_json: bool, config: UpscaleConfig
) -> None:
    """Say what upscaling would do and need, without doing it."""
    from dino_ray.inputs import expand
    from dino_ray.preview import plan_jobs, totals

    previews = plan_jobs(expand(inputs), output, config, calibrate=calibrate)
    if as_json:
        said = [p.to_dict() for p in previews]
        click.echo(json.dumps(said if len(said) > 1 else said[0], indent=2, ensure_ascii=False))
        return
    for p in previews:
        click.echo(p.to_text())
    if len(previews) > 1:
        click.echo(totals(previews))


@main.command()
@click.option(
    "--address",
    default="local",
    show_default=True,
    metavar="TEXT",
    help="Ray cluster to check; local: that one can be started here; none: leave Ray out.",
)
@command  # fmt: skip
def doctor(address: str) -> int:
    """Check this machine, a cluster and the bundled models."""
    from dino_ray.doctor import examine

    sound = True
    for finding in examine(address):
        sound &= finding.sound
        click.echo(f"{finding.mark} {finding.what}: {finding.detail}")
    return 0 if sound else 1


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As a JSON list.")
@command
def models(as_json: bool) -> None:
    """List the models that can be named, and what each needs."""
    from dino_ray.models import MORE, NOTE, rows, table

    listed = rows()
    if as_json:
        click.echo(json.dumps([row.to_dict() for row in listed], indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(table(listed, console.width))
    console.print(f"\n{NOTE}\n{MORE}", markup=False)


@main.group()
def comfyui() -> None:
    """Nodes for ComfyUI."""


@comfyui.command("install")
@click.argument("path", metavar="PATH")
@command
def install_nodes(path: str) -> None:
    """Make the ComfyUI in PATH find the nodes: a thin folder in its custom_nodes."""
    from dino_ray.comfy.install import install

    click.echo(f"{install(path)}: ComfyUI shows the nodes from its next start on, under image/upscaling")


@comfyui.command("uninstall")
@click.argument("path", metavar="PATH")
@command
def uninstall_nodes(path: str) -> None:
    """Take them away again."""
    from dino_ray.comfy.install import uninstall

    gone = uninstall(path)
    click.echo(f"{gone}: removed" if gone else "nothing was installed there")


def _introduce(settings: Settings) -> None:
    if settings.model is not None and settings.model.name == "bundled":
        click.echo(
            "Using the bundled model: small, trained on generated images, made to run anywhere. "
            "For a real one: --model flux-schnell (see dino-ray models).",
            err=True,
        )


def _download(batch: Batch) -> None:
    """Fetch what is not here of the models, with its progress shown. A cluster's machines fetch their own, quietly."""
    settings = batch.settings
    if settings.model is None or batch.config.address not in ("local", "none"):
        return
    from dino_ray import hub
    from dino_ray.diffusion import downloading
    from dino_ray.dino import loading as dino_loading

    with hub.bars_shown() if sys.stderr.isatty() else contextlib.nullcontext():
        downloading.download(settings.model_place, settings.model_options)
        if settings.dino is not None:
            dino_loading.fetch(settings.dino)


main.add_command(submit)
main.add_command(status)
main.add_command(cancel)


if __name__ == "__main__":
    main()
