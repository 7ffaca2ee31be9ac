"""How each file of a command gets to the cluster and back. Decides; moves nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dino_ray import places
from dino_ray.config import option_name
from dino_ray.diffusion import lora_file
from dino_ray.errors import UsageError
from dino_ray.jobfolder import default_place

Way = Literal["as_is", "storage", "port"]
"""``as_is``: the cluster opens it under the same name. ``storage``: through the object store that the user named.
``port``: through the one port of Ray's dashboard."""

_FOLDER_DIGITS = 16


@dataclass(frozen=True)
class Means:
    """What this machine and the cluster have in common.

    Attributes
    ----------
    shared
        Folders that this machine and every node see under the same name.
    storage
        Address of an object store that both can write.
    """

    shared: tuple[str, ...] = ()
    storage: str | None = None

    def way(self, place: str | Path) -> Way:
        """How a source or a result travels."""
        if places.is_url(place) or self.sees(place):
            return "as_is"
        return "storage" if self.storage is not None else "port"

    def sees(self, place: str | Path) -> bool:
        """Whether a path lies in a shared folder, also once links are followed."""
        real = os.path.realpath(places.local_path(place))
        roots = [os.path.realpath(folder) for folder in self.shared]
        return any(os.path.commonpath([real, root]) == root for root in roots)


def means(shared: bool, shared_dirs: Sequence[str], storage: str | None) -> Means:
    """What ``--shared``, ``--shared-dir`` and ``--storage`` declare.

    Parameters
    ----------
    shared
        Whether every path that the command names is seen by all.

    Raises
    ------
    UsageError
        If a folder is not there, or the storage is no address of a folder in an object store.
    """
    for folder in shared_dirs:
        if not os.path.isdir(folder):
            raise UsageError(
                f"--shared-dir {folder}: is no folder of this machine; name one that it shares with the cluster"
            )
    if storage is not None:
        if not places.is_url(storage) or storage.startswith(places.WEB):
            raise UsageError(
                f"--storage {places.shown(storage)}: name a folder of an object store, such as s3://bucket/jobs"
            )
        if places.shown(storage) != storage:
            raise UsageError(
                f"--storage {places.shown(storage)}: leave credentials out of the address; set them in the environment"
            )
        storage = storage.rstrip("/")
    roots = ("/",) if shared else tuple(os.path.abspath(folder) for folder in shared_dirs)
    return Means(roots, storage)


def for_cluster(options: Mapping[str, Any], common: Means, results: Sequence[str]) -> dict[str, Any]:
    """The config's given options, as they have to be on the cluster.

    Parameters
    ----------
    options
        By field name; only what was given.
    results
        Where they go, as the user has it.

    Raises
    ------
    UsageError
        If an option names a folder that the cluster does not see.
    """
    there = {name: value for name, value in options.items() if name != "address"}
    for name in ("model", "components", "vae", "dino", "dino_adapter", "image_prompt"):
        value = there.get(name)
        adapter = name == "dino_adapter"  # the others may be names of something on the hub
        if value is not None and (adapter or os.path.exists(os.path.expanduser(value))):
            path = os.path.abspath(os.path.expanduser(value))
            if not common.sees(path):
                kind = "folder" if os.path.isdir(path) else "file"
                raise UsageError(
                    f"{option_name(name)} {value}: is a {kind} of this machine; have the "
                    "cluster's nodes see it under the same name and say so with --shared-dir"
                    f"{'' if adapter else ', or name a model of the hub'}"
                )
            there[name] = path
    if "lora" in there:
        there["lora"] = tuple(_lora(option, common) for option in there["lora"])
    job_dir = there.get("job_dir")
    if job_dir is not None and not places.is_url(job_dir):
        if not common.sees(job_dir):
            raise UsageError(
                f"--job-dir {job_dir}: is a folder of this machine; name an address such as s3://bucket/job, or one "
                "that all nodes see (--shared-dir)"
            )
        there["job_dir"] = os.path.abspath(job_dir)
    elif job_dir is None and (seen := _beside(results, common)) is not None:
        there["job_dir"] = seen
    there["shared"] = "job_dir" in there
    return there


def _lora(option: str, common: Means) -> str:
    """A ``--lora`` as it has to be on the cluster; what is no file here may be one of the hub."""
    name, weight = lora_file.split(option)
    path = os.path.abspath(os.path.expanduser(name))
    if not os.path.exists(path):
        return option
    if not common.sees(path):
        raise UsageError(
            f"--lora {option}: is a file of this machine; have the cluster's nodes see it under the same name and say "
            "so with --shared-dir, or name one of the hub"
        )
    return path + weight


def _beside(results: Sequence[str], common: Means) -> str | None:
    """What ``--job-dir`` has to be for job folders to lie beside results that all nodes see; None if they do not."""
    if any(places.is_url(result) or not common.sees(result) for result in results):
        return None
    paths = [Path(os.path.abspath(places.local_path(result))) for result in results]
    if len(paths) == 1:
        return default_place(str(paths[0]))
    folders = {str(path.parent) for path in paths}
    return folders.pop() if len(folders) == 1 else None


def folder_name(job: str, job_dir: str | None, targets: Sequence[str]) -> str:
    """Name of the driver's folder: the job's own, unless a later job may have to go on with what this one leaves."""
    seed = job if job_dir is None else "\n".join([job_dir, *targets])
    return hashlib.sha256(os.fsencode(seed)).hexdigest()[:_FOLDER_DIGITS]
