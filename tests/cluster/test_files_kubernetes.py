"""Promises of the Kubernetes manifests: the schemas take them, and what they make is closed to strangers."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from launch_files import CLUSTER, KUBERNETES, kubernetes, launcher, pod_specs, ray_cluster_spec

CLUSTERS = ("raycluster.yaml", "rayjob.yaml")
CORE = ("models.yaml", "networkpolicy.yaml")
VERSION = "1.31"

COUNT = {"type": "integer", "minimum": 0}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
TEMPLATE = {"type": "object", "required": ["metadata", "spec"]}  # the pod in it has a schema of its own


def closed(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    properties = {**required, **(optional or {})}
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


HEAD = closed({"serviceType": {"const": "ClusterIP"}, "rayStartParams": STRINGS, "template": TEMPLATE})
WORKERS = closed(
    {
        "groupName": {"type": "string"},
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "rayStartParams": STRINGS,
        "template": TEMPLATE,
    }
)
RAY_CLUSTER = closed(
    {
        "rayVersion": {"type": "string"},
        "authOptions": closed({"mode": {"const": "token"}}),
        "enableInTreeAutoscaling": {"const": True},
        "autoscalerOptions": closed(
            {"version": {"enum": ["v1", "v2"]}, "idleTimeoutSeconds": COUNT, "resources": {"type": "object"}}
        ),
        "headGroupSpec": HEAD,
        "workerGroupSpecs": {"type": "array", "items": WORKERS, "minItems": 1},
    }
)
RAY_JOB = closed(
    {
        "entrypoint": {"type": "string"},
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        "backoffLimit": COUNT,
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": COUNT,
        "rayClusterSpec": RAY_CLUSTER,
    }
)
SPECS = {"RayCluster": RAY_CLUSTER, "RayJob": RAY_JOB}


@pytest.mark.parametrize("name", CORE)
def test_kubernetes_own_kinds_are_valid(name: str) -> None:
    kubernetes_validate.validate(kubernetes(name), VERSION, strict=True)


@pytest.mark.parametrize("name", CLUSTERS)
def test_pods_in_clusters_are_valid(name: str) -> None:
    for spec in pod_specs(name):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        kubernetes_validate.validate(pod, VERSION, strict=True)


@pytest.mark.parametrize("name", CLUSTERS)
def test_clusters_use_the_fields_that_kuberay_has(name: str) -> None:
    document = kubernetes(name)
    assert document["apiVersion"] == "ray.io/v1"
    jsonschema.validate(document["spec"], SPECS[document["kind"]])


@pytest.mark.skipif(
    "KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS: folder of ray.io_*.yaml of a KubeRay"
)
@pytest.mark.parametrize("name", CLUSTERS)
def test_clusters_are_valid_by_kuberays_own_definitions(name: str) -> None:
    document = kubernetes(name)
    path = Path(os.environ["KUBERAY_CRDS"], f"ray.io_{document['kind'].lower()}s.yaml")
    versions = yaml.safe_load(path.read_text())["spec"]["versions"]
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    jsonschema.validate({**document, "metadata": {}}, refusing_unknown_fields(schema))


def refusing_unknown_fields(schema: Any) -> Any:
    """As ``kubectl apply`` does with --validate=strict."""
    if isinstance(schema, list):
        return [refusing_unknown_fields(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: refusing_unknown_fields(inner) for key, inner in schema.items()}
    if made.get("x-kubernetes-int-or-string") is True:
        made.pop("type", None)
    if made.get("type") == "object" and isinstance(made.get("properties"), dict):
        made.setdefault("additionalProperties", False)
    return made


def test_the_job_has_the_cluster_that_stays() -> None:
    """Two files for two uses; what they share must not drift apart."""
    assert ray_cluster_spec("rayjob.yaml") == ray_cluster_spec("raycluster.yaml")


@pytest.mark.parametrize("name", CLUSTERS)
def test_pods_run_without_root_and_without_rights_they_do_not_need(name: str) -> None:
    head, *workers = pod_specs(name)
    for spec in (head, *workers):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec.get("hostNetwork")
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert not any("hostPort" in port for port in container.get("ports", ()))
            assert not any("hostPath" in volume for volume in spec["volumes"])
    assert all(spec["automountServiceAccountToken"] is False for spec in workers)


@pytest.mark.parametrize("name", CLUSTERS)
def test_workers_hold_a_gpu_each_scale_between_two_bounds_and_share_memory(name: str) -> None:
    spec = ray_cluster_spec(name)
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    for group in spec["workerGroupSpecs"]:
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for pod in pod_specs(name):
        (container,) = pod["containers"]
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        (shm,) = (volume for volume in pod["volumes"] if volume["name"] == "shm")
        assert shm["emptyDir"]["medium"] == "Memory"
        names = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == names
    _, worker = pod_specs(name)
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_job_asks_for_workers_within_the_cluster_s_bounds() -> None:
    entrypoint = shlex.split(kubernetes("rayjob.yaml")["spec"]["entrypoint"])
    least, most = map(int, entrypoint[entrypoint.index("--workers") + 1].split(":"))
    (group,) = ray_cluster_spec("rayjob.yaml")["workerGroupSpecs"]
    assert group["minReplicas"] <= least <= most <= group["maxReplicas"]
    places = [a for a in entrypoint if "://" in a]
    assert len(places) == 3  # source, output, job folder: a lost head costs nothing
    assert all(place.startswith("s3://") for place in places)


def test_the_network_policy_holds_for_every_pod_and_lets_in_no_address() -> None:
    policy = kubernetes("networkpolicy.yaml")["spec"]
    label = policy["podSelector"]["matchLabels"]
    for name in CLUSTERS:
        spec = ray_cluster_spec(name)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert label.items() <= group["template"]["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress"]
    peers = [peer for rule in policy["ingress"] for peer in rule["from"]]
    assert peers
    assert all("podSelector" in peer and "ipBlock" not in peer for peer in peers)


def test_nothing_is_offered_outside_of_kubernetes() -> None:
    kinds = {name: kubernetes(name)["kind"] for name in KUBERNETES}
    assert not {"Service", "Ingress", "Gateway", "HTTPRoute", "Secret"} & set(kinds.values()), kinds


def test_kustomize_is_given_every_file_of_the_cluster_that_stays() -> None:
    kustomization = launcher("kuberay/kustomization.yaml")
    assert sorted(kustomization["resources"]) == sorted({*KUBERNETES} - {"rayjob.yaml"})
    assert all((CLUSTER / "kuberay" / name).exists() for name in kustomization["resources"])
    (image,) = kustomization["images"]
    images = {c["image"] for spec in pod_specs("raycluster.yaml") for c in spec["containers"]}
    assert images == {f"{image['name']}:{image['newTag']}"}
