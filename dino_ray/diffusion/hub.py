"""Files of models on the Hugging Face hub, with errors that say what to do. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dino_ray.errors import JobError, UsageError

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
"""``owner/name``, as the hub spells its repositories."""


def snapshot(repo: str, patterns: Iterable[str], *, cached: bool = False, option: str = "--model") -> Path:
    """A local folder that holds the files of ``repo`` matching ``patterns``, downloaded unless cached.

    Without a network, or where ``cached`` says so, what the cache has is used. Messages name ``option``.

    Raises
    ------
    UsageError
        Where there is no such model, it is gated, or it is neither reachable nor cached.
    JobError
        Where a download breaks off.
    """
    import huggingface_hub

    with _explained(repo, option):
        return Path(
            huggingface_hub.snapshot_download(repo, allow_patterns=list(patterns), local_files_only=cached)
        )


def listing(repo: str, patterns: Iterable[str], *, option: str = "--model") -> frozenset[str]:
    """Names, relative to the repository, of the files of ``repo`` matching ``patterns``; downloads none.

    Without a network, the names that the cache holds.
    """
    import huggingface_hub
    from huggingface_hub.errors import DryRunError

    patterns = list(patterns)
    with _explained(repo, option):
        try:
            files = huggingface_hub.snapshot_download(repo, allow_patterns=patterns, dry_run=True)
        except DryRunError:
            index = ["model_index.json"]  # with no pattern, a cache without every file would be refused
            folder = huggingface_hub.snapshot_download(repo, allow_patterns=index, local_files_only=True)
            return names(Path(folder), patterns)
    return frozenset(file.filename for file in files)


def names(folder: Path, patterns: Iterable[str]) -> frozenset[str]:
    """Names, relative to ``folder`` and with forward slashes, of its files matching ``patterns``."""
    paths = (path for pattern in patterns for path in folder.glob(pattern))
    return frozenset(path.relative_to(folder).as_posix() for path in paths if path.is_file())


@contextmanager
def _explained(repo: str, option: str) -> Iterator[None]:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    page = f"https://huggingface.co/{repo}"
    try:
        yield
    except GatedRepoError as error:
        raise UsageError(
            f"{option} {repo}: the hub asks you to accept its licence first: do so at {page}, "
            "then log in on every machine that loads it with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"{option} {repo}: no such model on the Hugging Face hub; check the spelling, "
            "or log in with `hf auth login` if it is private"
        ) from error
    except HfHubHTTPError as error:
        raise UsageError(
            f"{option} {repo}: the Hugging Face hub refused ({_first_line(error)}); try again later"
        ) from error
    except LocalEntryNotFoundError as error:
        raise UsageError(
            f"{option} {repo}: the Hugging Face hub can't be reached and the cache here lacks the model; "
            f"connect, or run `hf download {repo}` elsewhere and give the folder"
        ) from error
    except (HTTPError, OSError, RuntimeError) as error:  # the network, the disk, the transfer library
        raise JobError(
            f"{option} {repo}: the download broke off ({_first_line(error)}); run it again to resume"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
