"""Getting through to a cluster's dashboard: its address, the token it asks for, and what its refusals mean."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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

_UNAUTHORIZED, _FORBIDDEN = 401, 403


class Unreachable(JobError):
    """The dashboard does not answer now; it may again."""


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


def connect(address: str) -> Any:
    """Ray's own client of the dashboard at an address.

    Raises
    ------
    UsageError
        If nothing answers there within seconds, it asks for a token that is missing or wrong, it is no dashboard, or
        its Ray is too old.
    """
    _check_reachable(address)
    kind = _client_class()
    try:
        with _meant(address):
            client = kind(address, headers=_headers_for(address))
        answer = client._do_request("GET", "/api/version")
        _check_version(str(answer.json().get("ray_version", "")))
    except Exception as error:
        raise refused(address, error) from error
    return client


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


def _headers_for(address: str) -> dict[str, str]:
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
        raise refused(address, error) from error


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


def refused(address: str, error: Exception) -> UsageError | JobError:
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
