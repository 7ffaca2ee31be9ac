"""A cluster, as its dashboard's HTTP port shows it: jobs, logs, and a store for parcels. Needs ``ray[default]``."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlsplit

from dino_ray import places
from dino_ray.errors import JobError, UsageError, describe_error

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Where ``ray start --head`` serves its dashboard."""

_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"

OLDEST_RAY = (2, 50)
"""As pyproject.toml asks for: older clusters lack what the engine calls."""

REACH_S = 5.0
"""A dashboard that takes longer to accept a connection is of no use."""
ANSWER_S = 120.0
"""The longest silence in the middle of an answer: storing a part waits for other uploads."""
AGENT_S = 60.0
"""A head that has just started finds no agent for a job for some seconds."""
RETRY_S = 1.0
DOWNLOAD_S = 7 * 24 * 3600
"""Ray ends a file that is being read after this; its own default would be 30 s."""

_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _FIRST_ERROR = 401, 403, 404, 400

State = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
Result = TypeVar("Result")


class Unreachable(JobError):
    """The dashboard does not answer now; it may again."""


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


def named(address: str | None) -> str:
    """The dashboard's address: as given, as Ray's own variables have it, or this machine's.

    Raises
    ------
    UsageError
        If it is no HTTP address.
    """
    variables = (os.environ.get(name, "") for name in (_ADDRESS_VARIABLE, "RAY_ADDRESS"))
    found = address or next((value for value in variables if value.startswith("http")), DEFAULT_ADDRESS)
    found = found if "://" in found else f"http://{found}"
    parts = urlsplit(found)
    try:
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        valid = False
    if not valid or parts.username or parts.query or address in ("auto", "local", "none"):
        raise UsageError(
            f"--address {places.shown(address or found)}: jobs are submitted to Ray's dashboard; name it as "
            "http://HEAD:8265"
        )
    return found.rstrip("/")


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
        _check_reachable(address)
        client_class = _client_class()
        try:
            with _meant(address):
                self._client = client_class(address, headers=_headers(address))
        except Exception as error:
            raise _refused(address, error) from error
        self.ray_version = str(self._json("GET", "/api/version").get("ray_version", ""))
        _check_version(self.ray_version)

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
            raise _refused(self.address, error) from error


def _absent(job: str) -> UsageError:
    return UsageError(f"{job}: the cluster has no such job; 'dino-ray status' lists those it has")


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens: the client would wait for minutes."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=REACH_S).close()
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--address {address}: nothing answers there ({describe_error(error)}); is it the dashboard of a running "
            "cluster, and is a tunnel to it open?"
        ) from error


def _client_class() -> Any:
    """Ray's client for jobs, with a limit of time on each request."""
    try:
        import aiohttp  # noqa: F401  part of ray[default]: without it the client's class can be imported, not used
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise UsageError(
            f"submit, status and cancel need ray[default] ({error}); pip install 'dino-ray[cluster]'"
        ) from error
    for noisy in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    class Client(JobSubmissionClient):  # type: ignore[misc]
        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.setdefault("timeout", (REACH_S, ANSWER_S))
            return super()._do_request(*args, **kwargs)

    return Client


def _headers(address: str) -> dict[str, str]:
    """Those that the user sets for Ray's own command, and the token if the cluster asks for one."""
    try:
        headers = dict(json.loads(os.environ.get("RAY_JOB_HEADERS") or "{}"))
    except (ValueError, TypeError) as error:
        raise UsageError(f"RAY_JOB_HEADERS: is no JSON object ({error}); mend or unset it") from error
    if any(name.lower() == "authorization" for name in headers) or not _asks_for_token(address):
        return headers
    token = _token()
    if token is None:
        raise UsageError(
            f"--address {address}: the cluster asks for a token, and there is none here; put the cluster's into "
            "~/.ray/auth_token, or set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    return {**headers, "Authorization": f"Bearer {token}"}


def _asks_for_token(address: str) -> bool:
    import requests

    try:
        answer = requests.get(f"{address}/api/authentication_mode", timeout=(REACH_S, ANSWER_S))
        return bool(answer.json().get("authentication_mode") == "token")
    except requests.exceptions.JSONDecodeError:  # a Ray from before there were tokens
        return False
    except requests.exceptions.ConnectionError as error:  # it took the connection, so something is there
        raise _no_dashboard(address) from error
    except requests.exceptions.RequestException as error:
        raise _refused(address, error) from error


def _no_dashboard(address: str) -> UsageError:
    return UsageError(
        f"--address {address}: what answers there is no Ray dashboard; name it as http://HEAD:8265"
    )


def _token() -> str | None:
    """From where Ray itself takes it, in its order; the mode need not be set on this machine."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named_path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named_path or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        if named_path:
            raise UsageError(
                f"RAY_AUTH_TOKEN_PATH {path}: is not there; name the file of the token"
            ) from None
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the token can't be read ({describe_error(error)})") from error


@contextlib.contextmanager
def _meant(address: str) -> Iterator[None]:
    """Have Ray's client take the address that it is given: its own variable, where it is set, would win."""
    before = os.environ.get(_ADDRESS_VARIABLE)
    os.environ[_ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADDRESS_VARIABLE]
        else:
            os.environ[_ADDRESS_VARIABLE] = before


def _check_version(version: str) -> None:
    digits = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if digits < OLDEST_RAY:
        oldest = ".".join(map(str, OLDEST_RAY))
        raise UsageError(f"the cluster runs Ray {version}; dino-ray needs {oldest} or later there")


def _refused(address: str, error: Exception) -> UsageError | JobError:
    """What Ray's client or the connection says, as one line."""
    if isinstance(error, UsageError | JobError):
        return error
    import requests

    if isinstance(error, requests.exceptions.HTTPError) and error.response is not None:
        status = error.response.status_code
    else:
        status = None
    text = str(error)
    if type(error).__name__ == "AuthenticationError" or status in (_UNAUTHORIZED, _FORBIDDEN):
        wrong = "is not the cluster's" if "Forbidden" in text or status == _FORBIDDEN else "is missing"
        return UsageError(
            f"--address {address}: the token {wrong}; put the cluster's into ~/.ray/auth_token, or set "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    if isinstance(error, requests.exceptions.JSONDecodeError) or "Version check returned 404" in text:
        return _no_dashboard(address)
    if isinstance(error, requests.exceptions.RequestException | OSError):
        return Unreachable(f"{address}: the dashboard does not answer ({describe_error(error)[:200]})")
    if "No available agent" in text:
        return JobError("No available agent: the cluster's head is still starting; try again in a minute")
    last = [line for line in text.strip().splitlines() if line.strip()] or [type(error).__name__]
    return JobError(f"{address}: the cluster refused ({last[-1][:300]})")


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
