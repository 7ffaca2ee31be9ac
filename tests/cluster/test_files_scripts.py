"""Promises of the scripts and the image: linters find nothing, and the scripts do what their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launch_files import CLUSTER, LAUNCHER, ROOT, launcher, locked, pod_specs, project, ray_cluster_spec

BIN = Path(sys.executable).parent
SCRIPTS = ("drain-on-notice.sh", "make-certificates.sh", "slurm/dino-ray.sbatch")
SHELL_KEYS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
CONTAINERFILE = (CLUSTER / "Containerfile").read_text()


def lint(*command: str | Path, stdin: str | None = None) -> str:
    done = subprocess.run([str(c) for c in command], input=stdin, capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing_in_a_script_that_can_be_run(script: str) -> None:
    assert lint(BIN / "shellcheck", CLUSTER / script) == ""
    assert script.endswith(".sbatch") or os.access(CLUSTER / script, os.X_OK)


@pytest.mark.parametrize("name", LAUNCHER)
def test_shellcheck_finds_nothing_in_the_commands_of_a_launcher_file(name: str) -> None:
    config = launcher(name)
    commands = [command for key in SHELL_KEYS for command in config.get(key, ())]
    assert len(commands) >= 4
    for command in commands:
        # Unquoted on purpose: Ray runs `export RAY_HEAD_IP=<address>; command`.
        assert (
            lint(BIN / "shellcheck", "--shell=bash", "--exclude=SC2086", "-", stdin=f"{command}\n") == ""
        ), command


def test_hadolint_finds_nothing_in_the_containerfile() -> None:
    assert lint(BIN / "hadolint", CLUSTER / "Containerfile") == ""


def test_the_image_has_no_root_no_entrypoint_and_nothing_but_the_package() -> None:
    lines = [line.split(maxsplit=1) for line in CONTAINERFILE.splitlines() if line and line[0].isupper()]
    last = dict(lines)  # what counts of USER is the last
    assert last["USER"] == "1000:1000"  # a number: Kubernetes can tell that it isn't root
    assert "ENTRYPOINT" not in last  # ray up starts `bash` in it, KubeRay `ray start`
    copied = [
        word
        for name, rest in lines
        if name == "COPY"
        for word in rest.split()[:-1]
        if not word.startswith("--")
    ]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_the_image_is_built_from_what_the_project_is_locked_and_tested_with() -> None:
    python = CONTAINERFILE.split("library/python:")[1].split("-")[0].rpartition(".")[0]
    assert f"Programming Language :: Python :: {python}" in project()["classifiers"]
    assert "--requirement requirements.lock" in CONTAINERFILE
    assert "/home/ray/.ray" in CONTAINERFILE  # else docker makes it, as root's, when the token is mounted
    for tool in ("openssh-client", "rsync", "wget", "curl"):
        assert tool in CONTAINERFILE


def test_images_and_versions_agree_everywhere() -> None:
    version = project()["version"]
    images = {launcher(name)["docker"]["image"] for name in ("aws.yaml", "gcp.yaml")}
    images |= {
        c["image"]
        for name in ("raycluster.yaml", "rayjob.yaml")
        for s in pod_specs(name)
        for c in s["containers"]
    }
    assert images == {f"registry.example.com/dino-ray:{version}"}
    assert {ray_cluster_spec(n)["rayVersion"] for n in ("raycluster.yaml", "rayjob.yaml")} == {locked("ray")}
    (boto3,) = (c for c in launcher("aws.yaml")["head_setup_commands"] if "boto3" in c)
    # botocore is in the image already; another boto3 would replace it, and break s3fs.
    assert f"boto3=={locked('botocore')} " in f"{boto3} "


# ---- drain-on-notice.sh

CURL = """#!/bin/sh
echo "$@" >>"$FAKE/curl.log"
count=$(grep -c {path} "$FAKE/curl.log")
case "$*" in
*api/token*) echo session ;;
*instance-action*) [ "$count" -ge 3 ] ;;
*preempted*) if [ "$count" -ge 3 ]; then echo TRUE; else echo FALSE; fi ;;
esac
"""


@pytest.mark.parametrize(("cloud", "path"), [("aws", "instance-action"), ("gcp", "preempted")])
def test_a_notice_has_ray_drain_this_node_and_no_notice_does_not(
    tmp_path: Path, cloud: str, path: str
) -> None:
    for name, text in (
        ("curl", CURL.format(path=path)),
        ("ray", '#!/bin/sh\nprintf "%s\\n" "$@" >"$FAKE/ray.log"\n'),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    subprocess.run(
        ["sh", CLUSTER / "drain-on-notice.sh", cloud, "10.0.0.1:6379"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "FAKE": str(tmp_path), "DRAIN_POLL_S": "0"},
        check=True,
        timeout=30,
    )
    assert sum(path in line for line in (tmp_path / "curl.log").read_text().splitlines()) == 3
    arguments = (tmp_path / "ray.log").read_text().splitlines()
    assert arguments[0] == "drain-node"

    from ray.scripts.scripts import drain_node

    parsed = drain_node.make_context(
        "drain-node", arguments[1:]
    ).params  # refuses what this Ray does not have
    assert parsed["address"] == "10.0.0.1:6379"
    assert parsed["node_id"] is None  # the node it runs on
    assert parsed["deadline_remaining_seconds"] > 0


def test_an_unknown_cloud_is_refused(tmp_path: Path) -> None:
    command = ["sh", CLUSTER / "drain-on-notice.sh", "moon", "10.0.0.1:6379"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "give aws or gcp" in done.stderr


# ---- make-certificates.sh


def certificates(folder: Path, *addresses: str) -> None:
    subprocess.run([CLUSTER / "make-certificates.sh", folder, *addresses], check=True, timeout=60)


def test_certificates_are_signed_by_one_authority_for_their_address_and_private(tmp_path: Path) -> None:
    from cryptography import x509

    certificates(tmp_path, "10.0.0.1", "10.0.0.2")
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    for address in ("10.0.0.1", "10.0.0.2"):
        certificate = x509.load_pem_x509_certificate((tmp_path / address / "node.crt").read_bytes())
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert address in map(str, names.get_values_for_type(x509.IPAddress))
        assert (tmp_path / address / "ca.crt").read_bytes() == (tmp_path / "ca.crt").read_bytes()
        assert not (tmp_path / address / "ca.key").exists()
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*"))


def test_a_node_that_is_added_later_has_the_same_authority(tmp_path: Path) -> None:
    certificates(tmp_path, "10.0.0.1")
    before = (tmp_path / "ca.crt").read_bytes(), (tmp_path / "10.0.0.1" / "node.crt").read_bytes()
    certificates(tmp_path, "10.0.0.2")
    assert ((tmp_path / "ca.crt").read_bytes(), (tmp_path / "10.0.0.1" / "node.crt").read_bytes()) == before
    assert (tmp_path / "10.0.0.2" / "ca.crt").read_bytes() == before[0]
