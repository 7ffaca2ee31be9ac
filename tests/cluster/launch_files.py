"""The files of cluster/, read for the tests that hold them to their promises."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHER = ("aws.yaml", "gcp.yaml", "onprem.yaml")
KUBERNETES = ("models.yaml", "networkpolicy.yaml", "raycluster.yaml", "rayjob.yaml")
IMAGE = "registry.example.com/dino-ray"


def launcher(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


def kubernetes(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "kuberay" / name).read_text())


def ray_cluster_spec(name: str) -> dict[str, Any]:
    """Of a RayCluster, or of the one that a RayJob has made."""
    spec = kubernetes(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pod_specs(name: str) -> Iterator[dict[str, Any]]:
    """The head's, then the workers'."""
    spec = ray_cluster_spec(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group["template"]["spec"]


def texts() -> list[Path]:
    """Every file that a person or a program reads here, but for the dashboards."""
    files = [ROOT / ".dockerignore", *CLUSTER.rglob("*")]
    return sorted(f for f in files if f.is_file() and "grafana" not in f.parts)


def pages() -> list[Path]:
    return [f for f in texts() if f.suffix == ".md"]


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every scalar in a document, with the key it stands under."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ((key, inner),) if not isinstance(inner, dict | list) else walk(inner)
            if isinstance(inner, list):
                yield from ((key, item) for item in inner if not isinstance(item, dict | list))
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def locked(package: str, lock: str = "requirements.lock") -> str:
    """The version that a lock file pins."""
    found = re.search(rf"^{re.escape(package)}==(\S+)$", (ROOT / lock).read_text(), re.MULTILINE)
    assert found, package
    return found[1]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
