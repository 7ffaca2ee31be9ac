"""Promises of every file in cluster/: no port for strangers, no secret in it, tokens on."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from launch_files import CLUSTER, LAUNCHER, launcher, ray_cluster_spec, texts, walk

WORLD = re.compile(r"0\.0\.0\.0|::/0")
SECRETS = re.compile(
    r"-----BEGIN|\bAKIA[0-9A-Z]{16}|\bASIA[0-9A-Z]{16}|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|://[^/\s:@]+:[^/\s@]+@"
)
SECRET_NAMES = re.compile(r"token|secret|password|passwd|credential|(access|private|api)_?key", re.IGNORECASE)
HEX_BITS = 3.0
"""Of entropy per character: random hexadecimal has almost 4, words and placeholders written in it less."""

YAML = sorted(CLUSTER.rglob("*.yaml"))


def relative(path: Path) -> str:
    return str(path.relative_to(CLUSTER.parent))


@pytest.mark.parametrize("path", texts(), ids=relative)
def test_nothing_is_opened_to_every_address(path: Path) -> None:
    text = path.read_text()
    assert WORLD.search(text) is None
    assert not re.search(r"docker run[^\n]*\s(-p|--publish|--network[= ]host)", text)
    hosts = re.findall(r"--dashboard-host[= ](\S+)", text)
    assert set(hosts) <= {"127.0.0.1"}


@pytest.mark.parametrize("path", texts(), ids=relative)
def test_nothing_looks_like_a_secret(path: Path) -> None:
    text = path.read_text()
    assert SECRETS.search(text) is None
    for word in re.findall(r"\b[0-9a-fA-F]{32,}\b", text):
        shares = [n / len(word) for n in Counter(word.lower()).values()]
        assert -sum(share * math.log2(share) for share in shares) < HEX_BITS, word


@pytest.mark.parametrize("path", YAML, ids=relative)
def test_no_yaml_gives_a_secret_a_value(path: Path) -> None:
    """Names of Secrets, places of files and modes are no secrets; values would stand under such keys."""
    named_only = {"token", "required"}
    for document in yaml.safe_load_all(path.read_text()):
        for key, value in walk(document):
            if SECRET_NAMES.search(str(key)) and isinstance(value, str):
                assert value in named_only or value.startswith("~/"), (key, value)
        for container in containers(document):
            for variable in container.get("env", ()):
                if SECRET_NAMES.search(variable["name"]):
                    assert "value" not in variable, variable["name"]


def containers(document: object) -> list[dict[str, list[dict[str, str]]]]:
    if isinstance(document, dict):
        own = document.get("containers", [])
        return [*own, *(c for inner in document.values() for c in containers(inner))]
    if isinstance(document, list):
        return [c for inner in document for c in containers(inner)]
    return []


def test_every_way_to_a_cluster_turns_tokens_on() -> None:
    """Each in its own tongue; a new file has to be added here, with the place where it does so."""
    on = {
        **dict.fromkeys(
            (*LAUNCHER, "Containerfile", "lan.md", "slurm/dino-ray.sbatch"), "RAY_AUTH_MODE=token"
        ),
        "kuberay/raycluster.yaml": "mode: token",
        "kuberay/rayjob.yaml": "mode: token",
    }
    starting = {
        relative(f).removeprefix("cluster/")
        for f in texts()
        if re.search(r"ray.? start --head|headGroupSpec|\"\$\{ray\[@\]\}\" --head", f.read_text())
    }
    assert starting <= on.keys()
    for name, how in on.items():
        assert how in (CLUSTER / name).read_text(), name


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_is_new_enough_for_tokens_by_the_ray_that_is_named(name: str) -> None:
    spec = ray_cluster_spec(name)
    assert spec["authOptions"] == {"mode": "token"}
    assert tuple(map(int, spec["rayVersion"].split(".")[:2])) >= (
        2,
        52,
    )  # KubeRay refuses tokens for older ones


def test_every_start_by_hand_in_the_pages_has_tokens_on() -> None:
    for page in CLUSTER.rglob("*.md"):
        for line in re.findall(r"^.*ray start (?:--head|--address).*$", page.read_text(), re.MULTILINE):
            assert line.startswith("RAY_AUTH_MODE=token "), (page.name, line)


def test_launcher_files_bring_no_key_and_no_rule_of_their_own() -> None:
    for name in LAUNCHER:
        config = launcher(name)
        assert "IpPermissions" not in config["provider"].get("security_group", {})
        assert "gcp_credentials" not in config["provider"]
