"""``dino-ray submit``, ``status`` and ``cancel``: parse and print, decide nothing."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dino_ray.config import UpscaleConfig
from dino_ray.errors import Interrupted, UsageError
from dino_ray.options import BareWrap, config_options
from dino_ray.places import shown
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
    from dino_ray.submit.record import Record

_SHOWN_BYTES = 32 * 2**20
"""Files of this size and more have their way through the network shown."""

_ADDRESS_HELP = (
    "The cluster's dashboard, such as http://HEAD:8265. Default: where the job was submitted, "
    "RAY_API_SERVER_ADDRESS, or this machine's."
)

_address_option = click.option("--address", metavar="URL", help=_ADDRESS_HELP)


_HELP = """Upscale images on a Ray cluster: as upscale does, as a job that goes on without this machine.

\b
dino-ray submit photo.jpg -o photo-4x.tif --scale 4 --address http://HEAD:8265
dino-ray submit scans/*.tif -o out/ --detach
dino-ray submit --follow JOB

Nothing but the dashboard's port has to be reached: images go up and results come down through it, unless --storage or
--shared-dir names a better way. Results wait on the cluster for a week.
"""


@click.command(cls=BareWrap, help=_HELP)
@click.argument("inputs", nargs=-1, metavar="[INPUT]...")
@click.option(
    "-o", "--output", metavar="OUTPUT", help="As of upscale; with --follow, where results go instead."
)
@report_option
@log_option
@progress_option
@click.option(
    "--resume/--fresh",
    "go_on",
    default=None,
    help="Demand that there is a job to go on with, in --job-dir, or discard one.",
)
@click.option("--strict", is_flag=True, help="Stop at the first image that fails.")
@click.option("--detach", is_flag=True, help="Return once the job has started, and print its name.")
@click.option(
    "--follow",
    "job",
    metavar="JOB",
    help="Submit nothing: come back to a job, show its progress and bring its results home.",
)
@click.option(
    "--storage",
    metavar="URL",
    help="Folder of an object store, such as s3://bucket/jobs, that this machine and the cluster can write: files "
    "travel through it, and are removed.",
)
@click.option(
    "--shared-dir",
    "shared_dirs",
    metavar="DIR",
    multiple=True,
    help="Folder that this machine and all nodes see under the same name: files in it do not travel. Repeatable. "
    "--shared says so of every path.",
)
@click.option(
    "--env",
    metavar="NAME",
    multiple=True,
    help="Variable of this environment that the job gets, too; whoever may list jobs can read it. Repeatable.",
)
@click.option(
    "--ship", is_flag=True, help="Send dino-ray's own code, for a cluster that has but its dependencies."
)
@command
@config_options
def submit(
    inputs: Sequence[str],
    output: str | None,
    job: str | None,
    detach: bool,
    config: UpscaleConfig,
    **options: Any,
) -> int:
    """Submit a job, or come back to one; see ``_HELP``."""
    if job is not None:
        if inputs:
            raise UsageError("--follow: comes back to a job, and takes no INPUT; leave one of them out")
        address = config.address if "address" in config.model_fields_set else None
        return _follow(
            _recorded(job, address, output, options["report"]), options["progress"], options["log"]
        )
    if not inputs or output is None:
        raise UsageError("name the images to upscale, and with -o where results go; or a job, with --follow")
    return _submit(inputs, output, config, detach=detach, **options)


for _option in submit.params:
    if isinstance(_option, click.Option) and _option.name == "address":  # upscale's means another port
        _option.help, _option.metavar = _ADDRESS_HELP, "URL"


def _submit(
    inputs: Sequence[str],
    output: str,
    config: UpscaleConfig,
    *,
    report: Path | str | None,
    log: str | None,
    progress: str,
    go_on: bool | None,
    strict: bool,
    detach: bool,
    storage: str | None,
    shared_dirs: Sequence[str],
    env: Sequence[str],
    ship: bool,
) -> int:
    from dino_ray.inputs import expand, make_folders, outputs
    from dino_ray.raster.export import default_suffix
    from dino_ray.report.logs import log_file
    from dino_ray.submit import client, connection, dashboard, routes

    if detach and log is not None:
        raise UsageError(
            "--log: is written by who follows the job; leave out --detach, or name it with --follow"
        )
    with log_file(log):
        pass  # a log that can't be written is refused before anything is sent
    address = connection.named(config.address if "address" in config.model_fields_set else None)
    images = expand(inputs)
    results = outputs(images, output, config.scale, default_suffix(config.format))
    prepared = client.prepare(
        client.Request(
            images,
            list(map(str, results)),
            config,
            routes.means(config.shared, shared_dirs, storage),
            report=None if report is None else str(report),
            existing=EXISTING[go_on],
            strict=strict,
            env=env,
            ship=ship,
            before_outputs=lambda: make_folders(results, output),
        ),
        address,
    )
    _say_failures(prepared.failures)
    connected = dashboard.Dashboard(address)
    terminal = _Terminal(progress)
    with contextlib.suppress(client.DriverGone):  # following it says why
        client.start(connected, prepared, terminal.sending)
    job = prepared.record.job
    if detach:
        click.echo(job)
        click.echo(f"follow it with: dino-ray submit --follow {job}", err=True)
        code = 0
    else:
        click.echo(_submitted(job, progress), err=True)
        code = _follow(prepared.record, progress, log)
    return max([code, *(error.exit_code for _, error in prepared.failures)])


def _submitted(job: str, progress: str) -> str:
    """The job's name; as JSON to those who read every line as such."""
    if progress != "json":
        return f"submitted as {job}"
    return json.dumps({"event": "Submitted", "time": round(time.time(), 3), "job": job})


def _recorded(job: str, address: str | None, output: str | None, report: Path | str | None) -> Record:
    """What is known of a job here, and what the user says instead."""
    from dataclasses import replace

    from dino_ray.submit import connection, record

    found = record.find(job) or record.Record(job, "", ())
    if address is not None or not found.address:
        found = replace(found, address=connection.named(address))
    if report is not None:
        found = replace(found, report=record.report_place(str(report)))
    return found if output is None else replace(found, elsewhere=output)


def _follow(remembered: Record, progress: str, log: str | None) -> int:
    from dino_ray.report.logs import log_file
    from dino_ray.submit.dashboard import Dashboard
    from dino_ray.submit.follow import follow

    job = remembered.job
    connected = Dashboard(remembered.address)
    try:
        with log_file(log), listener(progress) as listen:
            return follow(connected, remembered, listen, _Terminal(progress))
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(
            f"{job} goes on without you; come back with 'dino-ray submit --follow {job}', stop it with "
            f"'dino-ray cancel {job}'"
        ) from None


@click.command()
@click.argument("job", metavar="[JOB|DIR]", required=False)
@_address_option
@click.option("--json", "as_json", is_flag=True, help="As a JSON list.")
@command
def status(job: str | None, address: str | None, as_json: bool) -> None:
    """Say where jobs are: all of a cluster, one of them, or those whose folder is DIR.

    The folder of a job, such as photo-4x.tif.dino-ray, lies beside its output while it is not finished.
    """
    from dino_ray.submit import status as jobs

    if job is not None and jobs.is_folder(job):
        found = jobs.folders(job)
        click.echo(_json(found) if as_json else "\n".join(each.to_text() for each in found))
        return
    from dino_ray.submit.dashboard import Dashboard

    on_cluster = jobs.jobs(Dashboard(_address_of(job, address)), job)
    if as_json:
        click.echo(_json(on_cluster))
    elif not on_cluster:
        click.echo("no job of dino-ray's" if job is None else f"{job}: is no job of dino-ray's", err=True)
    else:
        click.echo("\n".join(jobs.table(on_cluster)))


@click.command()
@click.argument("job", metavar="JOB")
@_address_option
@command
def cancel(job: str, address: str | None) -> None:
    """Stop a job on a cluster, or give up results that wait there, and remove what it left."""
    from dino_ray.submit.cancel import cancel as stop
    from dino_ray.submit.dashboard import Dashboard

    click.echo(stop(Dashboard(_address_of(job, address)), job), err=True)


def _address_of(job: str | None, address: str | None) -> str:
    """The dashboard that is named, or the one that a job was submitted to from here."""
    from dino_ray.submit import connection, record

    remembered = record.find(job) if job is not None and address is None else None
    return remembered.address if remembered is not None else connection.named(address)


def _json(found: Sequence[Any]) -> str:
    return json.dumps([each.to_dict() for each in found], indent=2, ensure_ascii=False)


def _say_failures(failures: Sequence[tuple[str, Exception]]) -> None:
    for name, error in failures:
        _say(name, str(error))


def _say(name: str | None, text: str) -> None:
    # To what is stderr now: err=True would write into the bars.
    named = shown(text if name is None or name in text else f"{name}: {text}")
    click.echo(f"dino-ray: {named}", file=sys.stderr)


class _Terminal:
    """Shows what is no event: files on their way, results, failures."""

    def __init__(self, progress: str) -> None:
        self._speaks = progress == "auto"
        self._gone: dict[str, int] = {}

    def sending(self, name: str, n_bytes: int, of: int) -> None:
        self._show(f"sending {name}", n_bytes, of)

    def fetching(self, name: str, n_bytes: int, of: int) -> None:
        self._show(f"fetching {name}", n_bytes, of)

    def finished(self, report: Any, *, before: bool) -> None:
        if self._speaks:
            say_done(report, before=before)

    def failed(self, name: str | None, text: str) -> None:
        _say(name, text)

    def said(self, text: str) -> None:
        if self._speaks:
            _say(None, text)

    def _show(self, what: str, n_bytes: int, of: int) -> None:
        """A line per tenth of a file that takes a while."""
        before = self._gone.get(what, 0)
        self._gone[what] = before + n_bytes
        if self._speaks and of >= _SHOWN_BYTES and 10 * (before + n_bytes) // of > 10 * before // of:
            click.echo(f"{what}: {(before + n_bytes) / of:.0%} of {of / 1e6:,.0f} MB", file=sys.stderr)
