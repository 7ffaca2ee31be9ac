"""Where a job keeps its files: a local folder, a shared mount, or an object store (any fsspec address).

A *place* is a str: a path, or an address such as ``s3://bucket/job/manifest.json``. Credentials, endpoints
and regions are configured the way fsspec and the store's own library are (``AWS_ENDPOINT_URL``,
``FSSPEC_S3_KEY``, ``~/.aws``); nothing of that kind passes through here. Whatever goes wrong at a place is
raised as one line for the user.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from dino_ray import storage_errors
from dino_ray.errors import DinoRayError, JobError, UsageError

Bytes = bytes | bytearray | memoryview

# Two letters at least, so that C:\ is a path. Chained addresses, such as zip://a::s3://b, may begin with a scheme
# alone; without another behind it, "a::b" is the name of a file.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::.*://)")
_LOCAL_SCHEMES = ("file", "local")
WEB = ("http://", "https://")
# Where credentials and tokens live in an address; of chained ones, in each.
_USER_INFO = re.compile(r"//[^/@\s]*@")
_QUERY = re.compile(r"[?#][^:\s]*(?:(?!::):[^:\s]*)*")
PARTIAL = ".partial"
"""How the names of files end that are still being written."""

# Other processes write to the same places, so remembered listings would be wrong.
OPTIONS: dict[str, Any] = {"use_listings_cache": False}
# As with every other client, proxies and .netrc of the environment count.
_WEB_OPTIONS: dict[str, Any] = {"client_kwargs": {"trust_env": True}}


def is_url(place: str | Path) -> bool:
    """Whether a place is an address for fsspec; ``file://`` addresses are paths.

    A `Path` never is one: it makes one slash of two.
    """
    text = str(place)
    return bool(_ADDRESS.match(text)) and urlsplit(text).scheme not in _LOCAL_SCHEMES


def local_path(place: str | Path) -> Path:
    """The path of a place that is none of fsspec's."""
    text = str(place)
    if _ADDRESS.match(text):
        text = unquote(urlsplit(text).path)
    return Path(text)


def shown(place: str | Path) -> str:
    """A place for a message: on one line, whatever is in its name, and without user, password, query and fragment."""
    text = str(place)
    if is_url(text):
        text = _QUERY.sub("", _USER_INFO.sub("//", text))
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def join(place: str | Path, *names: str) -> str:
    """The place of something inside a folder."""
    if is_url(place):
        return "/".join([str(place).rstrip("/"), *names])
    return os.path.join(local_path(place), *names)


def base_name(place: str | Path) -> str:
    """The last part of a place."""
    return str(place).rstrip("/").rpartition("/")[2] if is_url(place) else local_path(place).name


def exists(place: str | Path) -> bool:
    """Whether a file or a folder is there; in an object store a folder is whatever has something in it.

    Raises
    ------
    JobError
        If that can't be found out.
    """
    with explained(place, "read"):
        if is_url(place):
            files, path = filesystem(place)
            return bool(files.exists(path))
        try:
            os.stat(local_path(place))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def list_files(place: str | Path) -> dict[str, int]:
    """Name and size in bytes of every file right in a folder; nothing for one that is not there.

    One scan of the directory, or one listing of the prefix.

    Raises
    ------
    JobError
        If the folder can't be read.
    """
    with explained(place, "read"):
        if is_url(place):
            files, path = filesystem(place)
            try:
                entries = files.ls(path, detail=True)
            except FileNotFoundError:
                return {}
            inside = ((e["name"].rsplit("/", 1)[-1], e) for e in entries if e["type"] == "file")
            return {name: int(e["size"]) for name, e in inside if name}
        try:
            with os.scandir(local_path(place)) as found:
                return {entry.name: entry.stat().st_size for entry in found if _is_file(entry)}
        except FileNotFoundError:
            return {}


def list_names(place: str | Path) -> set[str]:
    """Names of the files and folders right in a folder; nothing for one that is not there.

    Raises
    ------
    JobError
        If the folder can't be read.
    """
    with explained(place, "read"), contextlib.suppress(FileNotFoundError):
        if is_url(place):
            files, path = filesystem(place)
            found = (entry["name"].rstrip("/") for entry in files.ls(path, detail=True))
            return {name.rpartition("/")[2] for name in found if name != path.rstrip("/")}
        return set(os.listdir(local_path(place)))
    return set()


def is_folder(place: str | Path) -> bool:
    """Whether a folder is there; in an object store, whether anything lies under that name.

    Raises
    ------
    JobError
        If that can't be found out.
    """
    with explained(place, "read"):
        if is_url(place):
            files, path = filesystem(place)
            return bool(files.isdir(path))
        return local_path(place).is_dir()


def is_file(place: str | Path) -> bool:
    """Whether a file is there.

    Raises
    ------
    JobError
        If that can't be found out.
    """
    with explained(place, "read"):
        if is_url(place):
            files, path = filesystem(place)
            return bool(files.isfile(path))
        return local_path(place).is_file()


def state_of(place: str | Path) -> list[int | str] | None:
    """What is different once a file has been written again: its size, and its time or its store's mark; None for none.

    Raises
    ------
    JobError
        If that can't be found out.
    """
    with explained(place, "read"):
        try:
            if is_url(place):
                files, path = filesystem(place)
                return [int(files.size(path)), str(files.ukey(path))]
            facts = local_path(place).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return [facts.st_size, facts.st_mtime_ns]


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except FileNotFoundError:  # a writer has just renamed it
        return False


def read_bytes(place: str | Path, most: int | None = None) -> bytes:
    """All of a file, or as many bytes from its start.

    Raises
    ------
    JobError
        If it is not there or can't be read.
    """
    with explained(place, "read"):
        if is_url(place):
            files, path = filesystem(place)
            if most is None:
                return bytes(files.cat_file(path))
            with files.open(path, "rb", block_size=max(most, 1)) as file:
                return bytes(file.read(most))
        with open(local_path(place), "rb") as local:
            return local.read(-1 if most is None else most)


def write_bytes_whole(place: str | Path, content: Bytes, durable: bool = True) -> None:
    """Write a file that is there whole or not at all, whenever this process dies; an older one is replaced.

    Parameters
    ----------
    place
        In a folder that exists.
    durable
        Whether it must also outlive a power cut once this has returned. Object stores promise that anyway.

    Raises
    ------
    JobError
        If it can't be written; what was there before still is.
    """
    with explained(place, "written"):
        if is_url(place):
            files, path = filesystem(place)
            files.pipe_file(path, bytes(content))
        else:
            write_local(local_path(place), content, durable)


def write_local(path: Path, content: Bytes, durable: bool = True) -> None:
    """`write_bytes_whole` for a path, for callers who say themselves what went wrong.

    Raises
    ------
    OSError
        If it can't be written; what was there before still is.
    """
    # Not the process's id: on a shared mount other machines have the same ones.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        try:
            rest = memoryview(content).cast("B")
            while rest:  # a disk that is nearly full takes a part of it first
                rest = rest[os.write(handle, rest) :]
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)  # where network mounts report a full disk
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    if durable and os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def make_folder(place: str | Path) -> None:
    """Make a folder and those above it; object stores have no folders to be made.

    Raises
    ------
    JobError
        If it can't be made.
    """
    if not is_url(place):
        with explained(place, "written"):
            local_path(place).mkdir(parents=True, exist_ok=True)


def remove(place: str | Path) -> None:
    """Remove a file, if it is there.

    Raises
    ------
    JobError
        If it can't be removed.
    """
    with explained(place, "removed"), contextlib.suppress(FileNotFoundError):
        if is_url(place):
            files, path = filesystem(place)
            files.rm_file(path)
        else:
            local_path(place).unlink()


def remove_tree(place: str | Path) -> None:
    """Remove a folder and all in it, if it is there.

    Raises
    ------
    JobError
        If something in it can't be removed.
    ValueError
        If the place is a whole disk or bucket.
    """
    if is_url(place):
        files, path = filesystem(place)
        parts = path.strip("/").split("/")
        if parts == [""] or (len(parts) == 1 and "memory" not in files.protocol):
            raise ValueError(f"{place} is a whole bucket")
        with explained(place, "removed"), contextlib.suppress(FileNotFoundError):
            files.rm(path, recursive=True)
    else:
        folder = local_path(place)
        if os.path.realpath(folder) == os.path.realpath(folder / ".."):
            raise ValueError(f"{place} is a whole disk")
        with explained(place, "removed"), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)


def remove_leftovers(place: str | Path) -> int:
    """Remove what writers that died left unfinished in a folder; call it while nobody writes there.

    Returns
    -------
    int
        How many there were. Object stores never show what is unfinished.
    """
    if is_url(place):
        return 0
    left = [name for name in list_files(place) if name.endswith(PARTIAL)]
    for name in left:
        remove(join(place, name))
    return len(left)


def free_bytes(place: str | Path) -> int | None:
    """Room on the disk that holds, or would hold, a place; None where nobody knows, as in object stores.

    Raises
    ------
    JobError
        If the disk can't be asked.
    """
    if is_url(place):
        return None
    with explained(place, "read"):
        return shutil.disk_usage(_existing(place)).free


def same_disk(place: str | Path, other: str | Path) -> bool:
    """Whether two local places lie, or would lie, on one disk."""
    if is_url(place) or is_url(other):
        return False
    return _existing(place).stat().st_dev == _existing(other).stat().st_dev


def _existing(place: str | Path) -> Path:
    """The place, or the first folder above it that is there."""
    path = Path(os.path.abspath(local_path(place)))
    while not path.exists():
        path = path.parent
    return path


@contextlib.contextmanager
def explained(place: str | Path, doing: Literal["read", "written", "removed"]) -> Iterator[None]:
    """Whatever the storage raises within becomes a JobError: what failed, why, and what to do."""
    try:
        yield
    except DinoRayError:
        raise
    except Exception as error:
        # Disks raise OSError; object stores raise whatever their libraries define.
        if is_url(place):
            reason = storage_errors.of_remote(error)
        elif isinstance(error, OSError):
            reason = storage_errors.of_disk(error)
        else:
            raise
        raise JobError(f"{shown(place)}: cannot be {doing}: {reason}, then resume") from error


def filesystem(place: str | Path) -> tuple[Any, str]:
    """Fsspec's file system of an address, and the path within it.

    Raises
    ------
    UsageError
        If nothing installed knows addresses of that kind.
    """
    try:
        from fsspec.core import url_to_fs

        web = _WEB_OPTIONS if str(place).startswith(WEB) else {}
        found: tuple[Any, str] = url_to_fs(str(place), **OPTIONS, **web)
    except ImportError as error:
        raise UsageError(
            f"{shown(place)}: needs a package that is not here ({error}); pip install 'dino-ray[remote]'"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{shown(place)}: is an address of no known kind; use s3://, https:// or a path"
        ) from error
    return found
