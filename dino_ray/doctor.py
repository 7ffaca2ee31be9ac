"""Checks of a machine, a cluster and the models that ship with the package: ``dino-ray doctor``."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from dino_ray.errors import describe_error

if TYPE_CHECKING:
    from dino_ray.engine.ray.checkup import ClusterFacts, NodeFacts

PACKAGES = ("ray", "torch", "diffusers", "transformers", "pyvips", "zarr", "numpy", "pillow", "pydantic")
MOST_LISTED = 8  # nodes by name in one finding
LEAST_DISK_GB = 2.0  # a 24-megapixel photograph at ×4 needs 1.3 GB of canvas, source and output


@dataclass(frozen=True)
class Finding:
    """One check and how it went."""

    what: str
    sound: bool
    detail: str
    warning: bool = False
    """Sound, but something to know."""

    @property
    def mark(self) -> str:
        """Four letters to print before it."""
        if not self.sound:
            return "BAD "
        return "warn" if self.warning else "ok  "


def examine(address: str) -> Iterator[Finding]:
    """Run the checks one by one.

    Parameters
    ----------
    address
        Of the Ray cluster, as in ``UpscaleConfig.address``; ``none`` leaves Ray out.
    """
    yield Finding(
        "python", sys.version_info >= (3, 11), f"{platform.python_version()}, {os.cpu_count()} CPUs"
    )
    for package in PACKAGES:
        yield _package(package)
    checks: dict[str, Callable[[], str]] = {
        "gpu": _gpu,
        "quantisers": _quantizers,
        "image formats": _formats,
        "disk here": _disk,
        "bundled base net": _base_net,
        "bundled diffusion model": _denoiser,
        "bundled DINO": _dino,
    }
    if address == "local":
        checks["ray"] = _ray
    for what, check in checks.items():
        yield _try(what, check)
    if address not in ("local", "none"):
        yield from _cluster(address)


def _try(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, check())
    except Exception as error:  # a doctor names what is broken and goes on
        return Finding(what, False, str(error).strip() or type(error).__name__)


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, False, f"not installed; pip install {name}")


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none; models run on the CPU"
    count = torch.cuda.device_count()
    properties = [torch.cuda.get_device_properties(i) for i in range(count)]
    return ", ".join(f"{p.name} {p.total_memory / 1e9:.0f} GB" for p in properties)


def _quantizers() -> str:
    """Which of ``--quantize``; a GPU is what bitsandbytes needs besides itself."""
    import torch

    from dino_ray.diffusion.storage import PACKAGES, quantizers

    usable, lacking = [], {}
    for method, installed in quantizers().items():
        package = PACKAGES[method]
        if not installed:
            lacking[package] = f'{package} is not installed (pip install "dino-ray[quantize]")'
        elif package == "bitsandbytes" and not torch.cuda.is_available():
            lacking[package] = f"{package} needs a CUDA device"
        else:
            usable.append(method)
    return "; ".join([", ".join(usable) or "none", *lacking.values()])


def _formats() -> str:
    import pyvips

    from dino_ray.raster.decode import readable_formats

    return (
        f"libvips {'.'.join(str(pyvips.version(i)) for i in range(3))} reads {', '.join(readable_formats())}"
    )


def _disk() -> str:
    free = shutil.disk_usage(os.getcwd()).free / 1e9
    if free < LEAST_DISK_GB:
        raise OSError(f"{free:.1f} GB free; work where there is more, canvases are kept beside the output")
    return f"{free:.0f} GB free"


def _base_net() -> str:
    from dino_ray.upsample import load_net

    load_net("cpu")
    return "loads"


def _denoiser() -> str:
    from dino_ray.diffusion import loading

    description = loading.load("bundled", "cpu").description
    return (
        f"loads; tile {description.tile} px, {description.steps} step{'s' if description.steps > 1 else ''}"
    )


def _dino() -> str:
    from dino_ray.dino import loading

    loading.load("bundled", "cpu")
    facts = loading.describe("bundled")
    return f"loads; {facts.dim} channels, patch {facts.patch} px"


def _ray() -> str:
    from dino_ray.engine.ray import look_at

    return look_at("local")


def _cluster(address: str) -> Iterator[Finding]:
    try:
        from dino_ray.engine.ray.checkup import examine_cluster

        facts = examine_cluster(address)
    except Exception as error:  # no ray here, no cluster there, or not with this token
        yield Finding("ray", False, describe_error(error))
        return
    yield from judge(facts)


def judge(cluster: ClusterFacts) -> Iterator[Finding]:
    """What is to be said of a cluster, from what its nodes said of themselves.

    A cluster that lets in whoever reaches it is not sound: they could run any code on it, as its owner.
    """
    nodes = cluster.nodes
    count = len(nodes) + len(cluster.silent)
    yield Finding("ray", True, f"{cluster.here.ray}; {count} node(s), {cluster.total}")
    for address, reason in sorted(cluster.silent.items()):
        yield Finding(f"node {address}", False, reason)
    yield _token(nodes)
    yield _dashboard(cluster)
    yield _versions(cluster)
    yield _gpus(nodes, cluster.total.gpus)


def _token(nodes: Sequence[NodeFacts]) -> Finding:
    without = [node.address for node in nodes if not node.token]
    if not without:
        return Finding("token authentication", True, "on, on every node that answered")
    return Finding(
        "token authentication",
        False,
        f"off on {_list(without)}: whoever reaches a port of Ray there can run code there; start Ray with "
        "RAY_AUTH_MODE=token and the same token on every node (cluster/security.md)",
    )


def _dashboard(cluster: ClusterFacts) -> Finding:
    if not cluster.dashboard:
        return Finding("dashboard", True, "none")
    if not any(node.open_dashboard for node in cluster.nodes):
        return Finding("dashboard", True, cluster.dashboard)
    return Finding(
        "dashboard",
        True,
        f"{cluster.dashboard} listens on every network interface; keep it behind a firewall, or start Ray with "
        "--dashboard-host 127.0.0.1 and reach it through ssh -L",
        warning=True,
    )


def _versions(cluster: ClusterFacts) -> Finding:
    here = cluster.here
    differ = [
        f"{name} {theirs} on {node.address}"
        for node in cluster.nodes
        for name, theirs, ours in (
            ("ray", node.software.ray, here.ray),
            ("Python", node.software.python, here.python),
            ("dino_ray", node.software.dino_ray, here.dino_ray),
        )
        if theirs != ours
    ]
    known = f"ray {here.ray}, Python {here.python}, dino_ray {here.dino_ray} here"
    if not differ:
        return Finding("versions", True, f"{known} and on every node that answered")
    return Finding(
        "versions", False, f"{known}, but {', '.join(differ)}; install the same on every node, and here"
    )


def _gpus(nodes: Sequence[NodeFacts], count: float) -> Finding:
    troubles = [f"{node.address}: {node.gpu_trouble}" for node in nodes if node.gpu_trouble]
    if troubles:
        return Finding("GPUs of the cluster", False, "; ".join(troubles))
    said = f"{count:g}, and torch can use them" if count else "none; models run on CPUs"
    return Finding("GPUs of the cluster", True, said)


def _list(addresses: Sequence[str]) -> str:
    """Some of them, so that a large cluster's finding is a line."""
    shown = ", ".join(addresses[:MOST_LISTED])
    more = len(addresses) - MOST_LISTED
    return f"{shown} and {more} more" if more > 0 else shown
