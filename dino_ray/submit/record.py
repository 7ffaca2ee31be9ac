"""What this machine remembers of the jobs it has submitted, so that their results can be brought home later.

Kept here, not asked of the cluster: where results are written, and what is removed from an object store, must not be
for others to say.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from dino_ray.errors import UsageError, describe_error
from dino_ray.places import is_url, local_path, write_local

_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Record:
    """A submitted job.

    Attributes
    ----------
    address
        Of the dashboard.
    targets
        Of each image, where its result is to be brought; None: it is written where it belongs.
    staged
        Folder of an object store that was made for the job.
    report
        Where the run report goes.
    several
        Whether the command named several images, so that the report is a list.
    refused
        Images that were not sent, and why; the report names them.
    elsewhere
        A file or a folder that the user names instead of the targets, when coming back to the job.
    """

    job: str
    address: str
    targets: tuple[str | None, ...]
    staged: str | None = None
    report: str | None = None
    several: bool = False
    refused: tuple[tuple[str, str], ...] = ()
    elsewhere: str | None = None

    def home(self, image: int, shown: str, images: int) -> Path | None:
        """Where a result is to be brought.

        Parameters
        ----------
        image, shown
            Its place in the order, and what the user called the result.
        images
            How many there are.

        Raises
        ------
        UsageError
            If several would be one file.
        """
        if self.elsewhere is None:
            target = self.targets[image] if image < len(self.targets) else None
            return None if target is None else Path(target)
        if os.path.isdir(self.elsewhere) or self.elsewhere.endswith("/"):
            name = os.path.basename(shown.replace("\\", "/"))
            if name in ("", ".", ".."):
                raise UsageError(f"-o {self.elsewhere}: the result has no name; name a file")
            os.makedirs(self.elsewhere, exist_ok=True)
            return Path(os.path.abspath(self.elsewhere), name)
        if images > 1:
            raise UsageError(f"-o {self.elsewhere}: there are {images} results; name a folder")
        return Path(os.path.abspath(self.elsewhere))

    def save(self) -> None:
        """Write it down.

        Raises
        ------
        UsageError
            If it can't be written.
        """
        path = _path(self.job)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_local(path, json.dumps(asdict(self)).encode())
        except OSError as error:
            raise UsageError(
                f"{path}: can't be written ({describe_error(error)}); set XDG_STATE_HOME to a folder of yours"
            ) from error

    def forget(self) -> None:
        """Remove it; the job is over and done with."""
        with contextlib.suppress(OSError):
            _path(self.job).unlink()


def report_place(named: str | None) -> str | None:
    """Where a report goes, whatever folder the command is in that comes back for it."""
    return named if named is None or is_url(named) else os.path.abspath(local_path(named))


def find(job: str) -> Record | None:
    """What is remembered of a job, if it was submitted here.

    Raises
    ------
    UsageError
        If the name is no job's, or what is remembered can't be read.
    """
    if not _JOB.fullmatch(job):
        raise UsageError(f"{job!r:.80}: is no job's name; 'dino-ray status' lists jobs")
    path = _path(job)
    try:
        raw = json.loads(path.read_bytes())
        refused = tuple((name, why) for name, why in raw.get("refused", ()))
        return Record(**{**raw, "targets": tuple(raw["targets"]), "refused": refused})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{path}: can't be read ({describe_error(error)}); remove it, and name -o"
        ) from error


def _path(job: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state, "dino-ray", "jobs", f"{job}.json")
