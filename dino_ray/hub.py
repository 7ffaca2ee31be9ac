"""Files of models on the Hugging Face hub, with errors that say what to do. No torch.

What the cache holds whole is taken from there, and the network is not asked: a model stays what it was when it was
first fetched, until another revision of it is named.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from dino_ray.errors import JobError, UsageError

log = logging.getLogger(__name__)

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
"""``owner/name``, as the hub spells its repositories."""

_bars: ContextVar[bool] = ContextVar("bars", default=False)


@dataclass(frozen=True)
class Repo:
    """A model on the hub, as an option names it."""

    id: str
    """``owner/name``."""
    revision: str | None = None
    """A branch, a tag or a commit; None: its main branch."""
    option: str = "--model"
    """That named it, for messages."""
    licence: str = ""
    """That its authors ask to accept before they let it be fetched; empty where it is not known here."""

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"

    @property
    def asked(self) -> str:
        """How messages begin."""
        return f"{self.option} {self}"

    def cached(self, *anchors: str) -> Path | None:
        """The folder in the local cache that holds one of the files ``anchors`` of it; None where there is none."""
        import huggingface_hub

        for name in anchors:
            found = huggingface_hub.try_to_load_from_cache(self.id, name, revision=self.revision)
            if isinstance(found, str):
                return Path(found).parents[name.count("/")]
        return None


def parse(name: str, option: str = "--model", licence: str = "") -> Repo | None:
    """What ``owner/name`` or ``owner/name@revision`` means; None where ``name`` is not spelled so."""
    repo, at, revision = name.partition("@")
    if not REPO_ID.fullmatch(repo) or (at and not revision):
        return None
    return Repo(repo, revision or None, option, licence)


def named_in_cache(name: str) -> list[str]:
    """Ids of the models in the local cache whose last part is ``name``."""
    from huggingface_hub import constants

    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        return []
    found = Path(constants.HF_HUB_CACHE).expanduser().glob(f"models--*--{name}")
    return sorted(path.name.removeprefix("models--").replace("--", "/", 1) for path in found)


def cache() -> Path:
    """The local cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def snapshot(
    repo: Repo,
    patterns: Iterable[str],
    *,
    whole: Callable[[Path], bool] | None = None,
    cached: bool = False,
) -> Path:
    """A local folder that holds the files of ``repo`` matching ``patterns``, downloaded unless cached.

    Parameters
    ----------
    patterns
        Names, or patterns where ``whole`` is given. What was fetched in part before is fetched on.
    whole
        Whether a folder of the cache holds all that is asked for. Default: whether it has a file of each name.
    cached
        Ask no network, whatever is missing.

    Raises
    ------
    UsageError
        Where there is no such model, it is gated, or it is neither reachable nor cached.
    JobError
        Where a download breaks off.
    """
    import huggingface_hub

    patterns = list(patterns)
    found = repo.cached(*(name for name in [*_ANCHORS, *patterns] if "*" not in name))
    if found is not None and (whole(found) if whole else all((found / name).is_file() for name in patterns)):
        return found
    if whole and not cached and not _bars.get():
        log.info("%s: what the cache lacks of it is fetched from the Hugging Face hub", repo)
    revision = {} if repo.revision is None else {"revision": repo.revision}
    with _explained(repo), _quiet():
        return Path(
            huggingface_hub.snapshot_download(
                repo.id, allow_patterns=patterns, local_files_only=cached, **revision
            )
        )


_ANCHORS = ("model_index.json", "config.json")
"""Files that nearly every model has, by which its folder in the cache is found."""


def listing(repo: Repo, patterns: Iterable[str]) -> frozenset[str]:
    """Names, relative to the repository, of the files of ``repo`` matching ``patterns``; downloads none.

    Without a network, the names that the cache holds.
    """
    import huggingface_hub
    from huggingface_hub.errors import DryRunError

    patterns = list(patterns)
    revision = {} if repo.revision is None else {"revision": repo.revision}
    with _explained(repo), _quiet():
        try:
            files = huggingface_hub.snapshot_download(
                repo.id, allow_patterns=patterns, dry_run=True, **revision
            )
        except DryRunError:
            folder = repo.cached(*_ANCHORS)
            if folder is None:  # with no pattern, a cache without every file would be refused
                folder = huggingface_hub.snapshot_download(
                    repo.id, allow_patterns=list(_ANCHORS), local_files_only=True, **revision
                )
            return names(Path(folder), patterns)
    return frozenset(file.filename for file in files)


def names(folder: Path, patterns: Iterable[str]) -> frozenset[str]:
    """Names, relative to ``folder`` and with forward slashes, of its files matching ``patterns``."""
    paths = (path for pattern in patterns for path in folder.glob(pattern))
    return frozenset(path.relative_to(folder).as_posix() for path in paths if path.is_file())


@contextmanager
def bars_shown() -> Iterator[None]:
    """Have downloads draw their progress on stderr, which they don't elsewhere."""
    token = _bars.set(True)
    try:
        yield
    finally:
        _bars.reset(token)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the hub library's bars, unless they are wanted, and its warnings: what is wrong is raised."""
    from huggingface_hub import constants, utils
    from huggingface_hub.utils import logging as hub_logging

    verbosity = hub_logging.get_verbosity()
    silenced = not _bars.get() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    silenced = silenced and not utils.are_progress_bars_disabled()
    hub_logging.set_verbosity_error()
    if silenced:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if silenced:
            utils.enable_progress_bars()


@contextmanager
def _explained(repo: Repo) -> Iterator[None]:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{repo.id}"
    try:
        yield
    except GatedRepoError as error:
        licence = f"its licence ({repo.licence})" if repo.licence else "its licence"
        raise UsageError(
            f"{repo.asked}: is gated: the hub asks you to accept {licence} first: do so at {page}, "
            "then log in on every machine that loads it with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UsageError(
            f"{repo.asked}: no such model on the Hugging Face hub; check the spelling, "
            "or log in with `hf auth login` if it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(
            f"{repo.asked}: the model on the hub has no such revision; {page}/commits lists them"
        ) from error
    except HfHubHTTPError as error:
        raise UsageError(
            f"{repo.asked}: the Hugging Face hub refused ({_first_line(error)}); try again later"
        ) from error
    except LocalEntryNotFoundError as error:
        revision = "" if repo.revision is None else f" --revision {repo.revision}"
        raise UsageError(
            f"{repo.asked}: the Hugging Face hub can't be reached and the cache here ({cache()}) lacks the model; "
            f"connect, or run `hf download {repo.id}{revision}` elsewhere and give the folder"
        ) from error
    except (HTTPError, OSError, RuntimeError) as error:  # the network, the disk, the transfer library
        raise JobError(
            f"{repo.asked}: the download broke off ({_first_line(error)}); run it again to resume"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
