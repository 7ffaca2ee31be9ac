"""A cluster, as its dashboard's HTTP port shows it: jobs, logs, and a store for parcels. Needs ``ray[default]``."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from dino_ray.errors import JobError, UsageError, describe_error
from dino_ray.submit.connection import Unreachable, connect, refused

AGENT_S = 60.0
"""A head that has just started finds no agent for a job for some seconds."""
RETRY_S = 1.0
DOWNLOAD_S = 7 * 24 * 3600
"""Ray ends a file that is being read after this; its own default would be 30 s."""

_NOT_FOUND, _FIRST_ERROR = 404, 400

State = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class JobState:
    """One job, as Ray knows it. Times in Unix seconds."""

    id: str
    state: State
    message: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    node: str | None = None
    """Of its driver; None until that starts."""
    started: float | None = None
    ended: float | None = None

    @property
    def over(self) -> bool:
        return self.state in ("STOPPED", "SUCCEEDED", "FAILED")


class Dashboard:
    """A connection to a cluster's dashboard.

    Raises
    ------
    UsageError
        If nothing answers at the address within seconds, it asks for a token that is missing or wrong, or its Ray is
        too old.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._client = connect(address)

    # ---- jobs

    def start(self, job: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Submit a job; a head that has only just started is given the time to find its agent."""
        deadline = time.monotonic() + AGENT_S
        while True:
            try:
                self._call(
                    lambda: self._client.submit_job(
                        entrypoint=entrypoint, submission_id=job, runtime_env=runtime_env, metadata=metadata
                    )
                )
            except JobError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)
            else:
                return

    def job(self, job: str) -> JobState:
        """The state of a job.

        Raises
        ------
        UsageError
            If the cluster has no such job.
        """
        return _state(self._json("GET", f"/api/jobs/{quote(job, safe='')}", absent=_absent(job)))

    def jobs(self) -> list[JobState]:
        """All jobs that were submitted and are remembered, newest first."""
        listed = [_state(entry) for entry in self._json("GET", "/api/jobs/") if entry.get("submission_id")]
        return sorted(listed, key=lambda job: job.started or 0, reverse=True)

    def stop(self, job: str) -> bool:
        """Have a job stopped; returns at once, with whether it was running."""
        answer = self._json("POST", f"/api/jobs/{quote(job, safe='')}/stop", absent=_absent(job))
        return bool(answer.get("stopped"))

    # ---- logs

    def tail(self, job: str) -> AsyncIterator[str]:
        """The job's log from its beginning, in pieces that may end within a line, until the job is over."""
        tail: AsyncIterator[str] = self._client.tail_job_logs(job)
        return tail

    def last_lines(self, job: JobState, lines: int) -> list[str]:
        """The end of a job's log; empty while it has none."""
        if job.node is None:
            return []
        path = f"/api/v0/logs/file?node_id={job.node}&submission_id={quote(job.id, safe='')}&lines={lines}"
        try:
            answer = self._request("GET", path)
        except JobError:  # the node is gone, and the log with it
            return []
        return str(answer.content.decode(errors="replace")).splitlines()

    def file(self, node: str, name: str, block: int) -> Iterator[bytes]:
        """A file below the folder of logs of a node, as a stream of blocks of at most that many bytes."""
        path = (
            f"/api/v0/logs/file?node_id={node}&filename={quote(name, safe='')}&lines=-1&timeout={DOWNLOAD_S}"
        )
        answer = self._request("GET", path, stream=True)
        with answer:
            try:
                yield from answer.iter_content(block)
            except Exception as error:
                raise Unreachable(
                    f"{self.address}: the connection broke ({describe_error(error)}); try again"
                ) from error

    # ---- the store

    def put(self, name: str, content: bytes) -> None:
        """Store a package under a name."""
        self._request("PUT", f"/api/packages/gcs/{name}", data=content)

    def holds(self, name: str) -> bool:
        """Whether there is a package of that name.

        Asking also has Ray keep it for ten minutes, or if it comes later, and then remove it, unless a job needs it:
        so a name that is asked for first is of something that does not stay for ever.
        """
        return bool(
            self._request("GET", f"/api/packages/gcs/{name}", also=_NOT_FOUND).status_code != _NOT_FOUND
        )

    # ----

    def _json(self, method: str, path: str, absent: UsageError | None = None) -> Any:
        also = _NOT_FOUND if absent is not None else None
        answer = self._request(method, path, also=also)
        if answer.status_code == _NOT_FOUND and absent is not None:
            raise absent
        return answer.json()

    def _request(self, method: str, path: str, also: int | None = None, **options: Any) -> Any:
        """Send a request; raises for every status from 400 on, but ``also``."""
        answer = self._call(lambda: self._client._do_request(method, path, **options))
        if answer.status_code >= _FIRST_ERROR and answer.status_code != also:
            reason = answer.text.strip().splitlines()[-1:] or [f"HTTP status {answer.status_code}"]
            raise JobError(f"{self.address}: the cluster refused ({reason[0][:300]})")
        return answer

    def _call(self, request: Callable[[], Result]) -> Result:
        try:
            return request()
        except Exception as error:
            raise refused(self.address, error) from error


def _absent(job: str) -> UsageError:
    return UsageError(f"{job}: the cluster has no such job; 'dino-ray status' lists those it has")


def _state(raw: Mapping[str, Any]) -> JobState:
    started, ended = raw.get("start_time"), raw.get("end_time")
    return JobState(
        id=str(raw.get("submission_id") or ""),
        state=raw["status"],
        message=str(raw.get("message") or ""),
        metadata=dict(raw.get("metadata") or {}),
        node=raw.get("driver_node_id"),
        started=started / 1000 if started else None,
        ended=ended / 1000 if ended else None,
    )
