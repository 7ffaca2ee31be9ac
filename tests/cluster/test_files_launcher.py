"""Promises of the cluster launcher's files: Ray takes them, and what they start is closed to strangers."""

from __future__ import annotations

from typing import Any

import pytest
from launch_files import LAUNCHER, launcher
from ray.autoscaler._private.util import prepare_config, validate_config

RAY_PORTS = (6379, 8265, 10001)
CLOUDS = ("aws.yaml", "gcp.yaml")
COMMANDS = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_itself_finds_the_file_valid(name: str) -> None:
    validate_config(prepare_config(launcher(name)))


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_refuses_a_misspelt_key_so_that_the_test_above_means_something(name: str) -> None:
    import jsonschema

    wrong = {**launcher(name), "idle_timeout_minute": 5}
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("name", LAUNCHER)
def test_every_start_of_ray_has_tokens_turned_on_and_the_token_comes_by_file(name: str) -> None:
    config = launcher(name)
    starts = [c for key in COMMANDS for c in config[key] if "ray start" in c]
    assert len(starts) == 2
    for command in starts:
        assert command.startswith("export RAY_AUTH_MODE=token")
        assert "RAY_AUTH_TOKEN=" not in command
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("~/.ray/auth_token" in command for command in config["setup_commands"])


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_dashboard_listens_on_loopback_and_replicas_stay_off_the_head(name: str) -> None:
    (start,) = (c for c in launcher(name)["head_start_ray_commands"] if "ray start" in c)
    assert "--dashboard-host=127.0.0.1" in start
    assert "--num-cpus=0 --num-gpus=0" in start


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_are_spot_machines_with_gpus_between_two_bounds(name: str) -> None:
    config = launcher(name)
    worker = config["available_node_types"]["gpu-spot"]
    assert 1 <= worker["min_workers"] <= worker["max_workers"] == config["max_workers"]
    assert worker["resources"]["GPU"] >= 1
    spot = worker["node_config"].get("InstanceMarketOptions") or worker["node_config"].get("scheduling")
    assert "spot" in (spot.get("MarketType") or spot.get("provisioningModel")).lower()
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert head["max_workers"] == 0


@pytest.fixture
def started_on_aws(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Ray's own steps make of aws.yaml, at an AWS that is played: nodes and the security group they are in."""
    moto = pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with moto.mock_aws():
        import boto3
        from ray.autoscaler._private.aws import config as aws

        made = aws._configure_security_group(aws._configure_subnet(prepare_config(launcher("aws.yaml"))))
        groups = boto3.client("ec2", region_name="us-west-2").describe_security_groups()["SecurityGroups"]
    name = made["provider"]["security_group"]["GroupName"]
    return {"config": made, "groups": [group for group in groups if group["GroupName"] == name]}


def test_on_aws_no_port_of_ray_is_open_to_anybody_outside_the_group(started_on_aws: dict[str, Any]) -> None:
    (group,) = started_on_aws["groups"]
    for node_type in started_on_aws["config"]["available_node_types"].values():
        assert node_type["node_config"]["SecurityGroupIds"] == [group["GroupId"]]
    open_to_addresses = [
        rule for rule in group["IpPermissions"] if rule.get("IpRanges") or rule.get("Ipv6Ranges")
    ]
    assert open_to_addresses  # SSH, at least: without rules this test would say nothing
    for rule in open_to_addresses:
        assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
        assert not any(rule["FromPort"] <= port <= rule["ToPort"] for port in RAY_PORTS)
