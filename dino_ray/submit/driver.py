"""The entrypoint of a submitted job, on the node that drives it: ``python -m dino_ray.submit.driver JOB``.

Reads its order, receives what is sent to it, has ``work`` do the job in a process of its own, offers the results, and
clears up, however it ends. What it prints are ``notes``. It holds no model and no connection to Ray, so that results
can wait for somebody to fetch them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dino_ray import __version__, places
from dino_ray.errors import DinoRayError, JobError, UsageError, describe_error, for_user
from dino_ray.jobfolder import SUFFIX
from dino_ray.stopping import INTERRUPTED, STOP_S, interrupt
from dino_ray.submit import pictures
from dino_ray.submit.notes import Accepted, Ended, ImageFailed, Interrupted, Note, Parcel, Ready, to_line
from dino_ray.submit.order import Order
from dino_ray.submit.parcels import Box, mail, pack, receive, sha256_of
from dino_ray.submit.standing import Tracker

WAIT_HOURS = 7 * 24.0
"""How long results wait to be fetched: a laptop may be closed for a week."""
ORDER_S = 60.0
"""The order is in the store before the job is submitted; a store that has none for so long has lost it."""
POLL_S = 0.5
CHILD_S = STOP_S + 2.0
"""By then, ``work`` has ended after a signal."""

_LINKS = "dino-ray"
"""Folder of links to results, in the folder of logs."""

Say = Callable[[Note], None]


def main(job: str, say: Say, box: Box, logs: Path) -> int:
    """Do a submitted job.

    Parameters
    ----------
    say
        Prints a note.
    box
        Where the order and what is sent arrive.
    logs
        Folder that Ray's dashboard serves.

    Returns
    -------
    int
        The exit code that ``upscale`` would have.
    """
    try:
        return _do(job, say, box, logs)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        told = for_user(error)
        say(ImageFailed(None, str(told), told.exit_code))
        code = told.exit_code
    say(Ended(code))
    return code


def _do(job: str, say: Say, box: Box, logs: Path) -> int:
    order = _order(job, box)
    say(Accepted(__version__, tuple((source.shown, target.shown) for source, target in order.images)))
    with _unstaged_unless_fetched(order) as leave_staged, _folder(order.folder) as folder:
        try:
            _receive(order, folder, job, box)
            code = _work(order, folder, say)
        except KeyboardInterrupt:
            if not order.keeps:
                say(Interrupted("nothing of the job is kept; --job-dir s3://bucket/job keeps finished cells"))
            raise
        with _offered(order, folder, logs / _LINKS / job) as parcels:
            if parcels:
                say(Ready(tuple(parcels), WAIT_HOURS))
            say(Ended(code))
            if parcels:
                _await_fetched(job, box, missed=any(not parcel.picture for parcel in parcels))
        leave_staged()
    return code


def _order(job: str, box: Box) -> Order:
    deadline = time.monotonic() + ORDER_S
    while (text := box.take(mail(job, "order"))) is None:
        if time.monotonic() > deadline:
            raise JobError("the order of this job is not in the cluster's store any more; submit again")
        time.sleep(POLL_S)
    return Order.from_json(text)


# ---- rooms that are given back


@contextlib.contextmanager
def _folder(name: str) -> Iterator[Path]:
    """A folder on this node for what is sent, its result and its work in progress; gone in the end.

    So is what drivers that were killed have left: their locks are free.
    """
    root = Path(tempfile.gettempdir(), f"dino-ray-{os.geteuid()}")
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.geteuid():  # the folder above is everybody's
        raise JobError(f"{root}: belongs to another user; set TMPDIR on the cluster")
    for other in root.glob("*.lock"):
        if other.stem != name:
            with contextlib.suppress(OSError), _held(other):
                shutil.rmtree(other.with_suffix(""), ignore_errors=True)
                other.unlink()
    folder, lock = root / name, root / f"{name}.lock"
    try:
        with _held(lock):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)
    except BlockingIOError as error:
        raise UsageError(
            "another job works on the same images with the same --job-dir; follow that one"
        ) from error


@contextlib.contextmanager
def _held(lock: Path) -> Iterator[None]:
    """Hold a file's lock.

    Raises
    ------
    BlockingIOError
        If another process holds it.
    """
    with open(lock, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextlib.contextmanager
def _unstaged_unless_fetched(order: Order) -> Iterator[Callable[[], None]]:
    """What lies in the object store for this job goes, unless it is called that there are results to be fetched."""
    left = False

    def leave() -> None:
        nonlocal left
        left = True

    try:
        yield leave
    finally:
        if order.staged is not None and not left:
            with contextlib.suppress(DinoRayError):
                places.remove_tree(order.staged)


# ---- the way of the images


def _receive(order: Order, folder: Path, job: str, box: Box) -> None:
    sent = [(n, source) for n, (source, _) in enumerate(order.images) if source.size is not None]
    need = sum(source.size or 0 for _, source in sent)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UsageError(
            f"the images have {need / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free in {folder.parent} on the "
            "cluster's head; set TMPDIR there to a larger disk, or use --storage or --shared-dir"
        )
    pairs = order.pairs(str(folder))
    for n, source in sent:
        target = Path(pairs[n][0])
        target.parent.mkdir(parents=True)
        try:
            receive(target, source.size or 0, box, lambda part, n=n: mail(job, n, part))  # type: ignore[misc]
        except OSError as error:
            raise JobError(
                f"{source.shown}: can't be kept on the cluster's head ({describe_error(error)})"
            ) from error
    for n, (_, target_there) in enumerate(order.images):
        if target_there.sent:
            Path(pairs[n][1]).parent.mkdir(parents=True)


def _work(order: Order, folder: Path, say: Say) -> int:
    """Run ``work`` and pass on what it says; returns its exit code."""
    command = [sys.executable, "-m", "dino_ray.submit.work", str(folder)]
    track = Tracker(len(order.images))
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(order.to_json() + "\n")
            child.stdin.flush()  # and left open: its end tells the child that this process is gone
            for line in child.stdout:
                _print(line.rstrip("\n"))
                if standing := track(line, time.monotonic()):
                    say(standing)
        except KeyboardInterrupt:
            _stop(child, order.keeps)
            raise
        except BrokenPipeError:
            pass
    if child.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise JobError(
            f"the job's process on the cluster's head was killed ({name}); is its memory large enough?"
        )
    return child.returncode


def _stop(child: subprocess.Popen[str], told: bool) -> None:
    """End the child, and pass on its last words if they are true once all is cleared up."""
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        rest, _ = child.communicate(timeout=CHILD_S)
    except subprocess.TimeoutExpired:
        child.kill()
        rest, _ = child.communicate()
    for line in rest.splitlines() if told else ():
        _print(line)


@contextlib.contextmanager
def _offered(order: Order, folder: Path, links: Path) -> Iterator[Sequence[Parcel]]:
    """Link results to where the dashboard serves them; the links are gone in the end."""
    parcels = []

    def offer(n: int, link: str, path: Path, packed: bool, picture: str = "") -> None:
        links.mkdir(parents=True, exist_ok=True)
        (links / link).symlink_to(path)
        name = f"{_LINKS}/{links.name}/{link}"
        parcels.append(Parcel(n, name, path.stat().st_size, sha256_of(path), packed, picture))

    try:
        for n, (_, target) in enumerate(order.images):
            made = folder / "out" / str(n)
            if target.sent and (names := sorted(filter(_is_result, os.listdir(made)))):
                result, packed = made / target.place, names != [target.place] or (made / names[0]).is_dir()
                if packed:
                    result = folder / "out" / f"{n}.tar"
                    pack(made, names, result)
                    shutil.rmtree(made)
                offer(n, str(n), result, packed)
        for number, (path, end) in enumerate(pictures.made(folder)):
            offer(0, f"picture-{number}", path, False, end)
        yield parcels
    finally:
        shutil.rmtree(links, ignore_errors=True)


def _is_result(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(SUFFIX)


def _await_fetched(job: str, box: Box, *, missed: bool) -> None:
    """Wait until all is fetched; ``missed``: whether the job has failed if that never happens."""
    deadline = time.monotonic() + WAIT_HOURS * 3600
    while box.take(mail(job, "fetched")) is None:
        if time.monotonic() > deadline:
            if not missed:
                return
            raise JobError(f"nobody fetched the results for {WAIT_HOURS:g} hours; they are removed")
        time.sleep(POLL_S)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    from dino_ray.submit.inbox import Inbox, log_folder

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    sys.exit(main(sys.argv[1], lambda note: _print(to_line(note)), Inbox(), log_folder()))
