"""What the driver of a job takes out of the cluster's key-value store, and where its results can be seen from outside.

Uses Ray's own client of that store: connecting a whole driver would take seconds and hold a hundred megabytes for as
long as results wait to be fetched.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dino_ray.errors import JobError

_LONGEST_PATH = 1024
"""Of the buffer that macOS wants for a file's path."""


class Inbox:
    """The store of packages of the cluster that this job runs on."""

    def __init__(self) -> None:
        from ray._raylet import GcsClient

        self._client = GcsClient(address=os.environ["RAY_ADDRESS"])

    def take(self, name: str) -> bytes | None:
        """The content under a name, which is gone from the store then; None if there is nothing."""
        key = f"gcs://{name}".encode()
        content: bytes | None = self._client.internal_kv_get(key, None)
        if content is not None:
            self._client.internal_kv_del(key, False, None)
        return content


def log_folder() -> Path:
    """The folder of logs that Ray's dashboard serves: where this process's own output is a file.

    Raises
    ------
    JobError
        If its output goes elsewhere: then it is no job of Ray's.
    """
    try:
        if hasattr(fcntl, "F_GETPATH"):  # macOS
            raw = fcntl.fcntl(1, fcntl.F_GETPATH, bytes(_LONGEST_PATH))
            path = Path(os.fsdecode(raw.rstrip(b"\0")))
        else:
            path = Path(os.readlink("/proc/self/fd/1"))
    except OSError as error:
        raise JobError(f"the log of the job was not found ({error.strerror})") from error
    if not path.name.startswith("job-driver-"):
        raise JobError(f"the output of this process is {path}, no log of a Ray job; it is started by submit")
    return path.parent
