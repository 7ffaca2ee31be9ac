"""What keeps a Ray that a job starts here to itself: loopback, a token of its own, and a folder that goes with it."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config

TOKEN_BYTES = 32
"""256 bits: nobody guesses them."""

PREFIX = "dino-ray-"
LOCK = "in-use"

SESSIONS = "session_"
"""How the names of all begin that Ray's processes make in their folder by themselves."""

ORPHANED_S = 120.0
"""A folder gets its lock within milliseconds, and what is left of an ended Ray writes for a minute at most."""

CLEARINGS = 2
"""What dying processes wrote during the first is seen to by the second."""

LONGEST_ROOT = 30
"""Characters: a socket's path has 107 at most, of which Ray's names take up to 65, and ours the rest."""

USERS_FOLDER = "RAY_TMPDIR"
"""Who sets it has a place in mind for what Ray leaves, and keeps that."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Have signals to stop wait until what is within is through: clearing up that is cut short leaves something."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    before = {
        signum: signal.signal(signum, lambda number, frame: heard.append(number))
        for signum in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if heard:
        raise KeyboardInterrupt


@contextmanager
def loopback() -> Iterator[None]:
    """Have a Ray that starts within take 127.0.0.1 for its address, as it does on macOS.

    On Linux it would listen on every interface, and it turns a loopback address that it is given into another.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


class TokenMode:
    """Has Ray use the token that it finds where the user put it, though the user asked for no tokens."""

    NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

    def __init__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self.NAMES}
        self._set({**self._before, "RAY_AUTH_MODE": "token"})

    def withdraw(self) -> None:
        """Leave the environment as it was, for the next Ray that this process joins."""
        self._set(self._before)

    def _set(self, values: Mapping[str, str | None]) -> None:
        for name in self.NAMES:
            value = values.get(name)
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        Config.initialize("")  # Ray read its environment when it was imported
        AuthenticationTokenLoader.instance().reset_cache()


class Token(TokenMode):
    """A random token in this process's environment, which Ray's processes inherit: no file holds it.

    Whoever has no token, another user of this machine above all, can run nothing in the Ray that was started with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._set({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(TOKEN_BYTES)})


class SessionFolder:
    """Where Ray keeps sockets, logs and what it spills; removed with the job, or by the next one if that was killed.

    A lock on a file in it, which goes with the process however that ends, says that it is in use.
    """

    def __init__(self) -> None:
        _sweep()
        root = Path(tempfile.gettempdir())
        if len(str(root)) > LONGEST_ROOT:
            root = Path("/tmp")
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        self._lock, unnamed = tempfile.mkstemp(dir=self.path)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.rename(unnamed, self.path / LOCK)  # under its name it was never free
        atexit.register(self.remove)

    def remove(self) -> None:
        atexit.unregister(self.remove)
        _clear(self.path)
        with contextlib.suppress(OSError):
            os.close(self._lock)


def session_folder() -> SessionFolder | None:
    """A folder for one Ray; None where the user has named one, which stays."""
    return None if USERS_FOLDER in os.environ else SessionFolder()


def _sweep() -> None:
    """Remove the folders of jobs that were killed before they could."""
    for root in {Path(tempfile.gettempdir()), Path("/tmp")}:
        for folder in root.glob(f"{PREFIX}*"):
            if _is_abandoned(folder):
                _clear(folder)


def _clear(folder: Path) -> None:
    """Remove a folder, its lock last: by that, the next job knows the folder, should anything of it be left."""
    for _ in range(CLEARINGS):
        with contextlib.suppress(OSError):
            for entry in folder.iterdir():
                if entry.name == LOCK:
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
            if all(entry.name == LOCK for entry in folder.iterdir()):
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
                return


def _is_abandoned(folder: Path) -> bool:
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return False
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return _is_orphaned(folder)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _is_orphaned(folder: Path) -> bool:
    """Whether a folder without a lock is what dying processes of Ray made of a removed one, not one in the making."""
    try:
        aged = time.time() - folder.stat().st_mtime > ORPHANED_S
        return aged and all(entry.name.startswith(SESSIONS) for entry in folder.iterdir())
    except OSError:  # no folder, or another job removes it just now
        return False
