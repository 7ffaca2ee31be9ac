"""Asks the head of a cluster whether it lets this process in: Ray itself would try for long, and blame the network."""

from __future__ import annotations

import os

from ray._private import ray_constants, services
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode
from ray.exceptions import AuthenticationError

from dino_ray.engine.ray.private import TokenMode
from dino_ray.errors import UsageError

ANSWER_S = 5.0
"""A head that is busy for longer is left to Ray, which is more patient."""

WHAT_TO_DO = "put the cluster's into ~/.ray/auth_token, or set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


def admitted(address: str) -> TokenMode | None:
    """See to it that the cluster at ``address`` takes this process for one of its own.

    Without ``RAY_AUTH_MODE``, Ray uses a token for clusters only that it finds by itself; here a cluster that asks for
    one is given it, wherever it was named.

    Returns
    -------
    TokenMode or None
        What was changed for that, to be withdrawn once the cluster is left.

    Raises
    ------
    UsageError
        If the cluster asks for a token, and there is none here, or another.
    """
    where = _head(address)
    if where is None:
        return None
    mode = os.environ.get("RAY_AUTH_MODE")
    if get_authentication_mode() == AuthenticationMode.TOKEN:
        _check_token(address)
        if not _lets_in(where):
            raise _refused(address, "the token here is not the cluster's")
        return None
    if _lets_in(where):
        return None
    if mode is not None:
        raise UsageError(
            f"--address {address}: the cluster asks for a token, and RAY_AUTH_MODE is {mode!r} here; set "
            f"RAY_AUTH_MODE=token and {WHAT_TO_DO}"
        )
    _check_token(address)
    switched = TokenMode()
    try:
        if not _lets_in(where):
            raise _refused(address, "the token here is not the cluster's")
    except BaseException:
        switched.withdraw()
        raise
    return switched


def _head(address: str) -> str | None:
    """``host:port`` of what is named; None where it is left to Ray to say what is wrong."""
    if address == "local":
        return None
    try:
        found: str | None = services.canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError, OSError, RuntimeError):
        return None
    return found


def _lets_in(where: str) -> bool:
    """Whether the head answers a question of this process; also True if it can't be asked so."""
    try:
        import grpc  # type: ignore[import-untyped]  # comes with ray[default]; a bare Ray does without
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
    except ImportError:
        return True
    with init_grpc_channel(where, ray_constants.GLOBAL_GRPC_OPTIONS) as channel:
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            head.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(limit=1), timeout=ANSWER_S)
        except grpc.RpcError as error:
            return bool(error.code() != grpc.StatusCode.UNAUTHENTICATED)
    return True


def _check_token(address: str) -> None:
    try:
        found = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    except (
        AuthenticationError
    ) as error:  # a file that is named and not there, or empty; Ray explains at length
        raise _refused(address, f"the token can't be read ({str(error).partition('. ')[0]})") from error
    if not found:
        raise _refused(address, "the cluster asks for a token, and there is none here")


def _refused(address: str, why: str) -> UsageError:
    return UsageError(f"--address {address}: {why}; {WHAT_TO_DO}")
