"""Checks of a machine, a cluster and the models that ship with the package: ``dino-ray doctor``."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

PACKAGES = ("ray", "torch", "diffusers", "transformers", "pyvips", "zarr", "numpy", "pillow", "pydantic")
LEAST_DISK_GB = 2.0  # a 24-megapixel photograph at ×4 needs 1.3 GB of canvas, source and output


@dataclass(frozen=True)
class Finding:
    """One check and how it went."""

    what: str
    sound: bool
    detail: str


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
        "image formats": _formats,
        "disk here": _disk,
        "bundled base net": _base_net,
        "bundled diffusion model": _denoiser,
        "bundled DINO": _dino,
    }
    if address != "none":
        checks["ray"] = lambda: _ray(address)
    for what, check in checks.items():
        yield _try(what, check)


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


def _ray(address: str) -> str:
    from dino_ray.engine.ray import look_at

    return look_at(address)
