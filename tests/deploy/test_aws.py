"""The AWS cluster file, launched by Ray's own code into moto: an EC2 within this process."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.ray_nodes import create_node
from turnwise_deploy import aws_prerequisites, journal_volume
from turnwise_deploy.cluster_file import load

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto")

# Ten seconds of computing, most of it moto reading what Amazon has; a busy machine takes its time.
pytestmark = pytest.mark.timeout(240)

FILE = Path(__file__).parents[2] / "deploy" / "ray" / "aws.yaml"
ZONE, REGION = "us-west-2a", "us-west-2"
OPERATORS, CLIENTS = ("203.0.113.7/32",), ("198.51.100.0/24", "2001:db8::/32")
WANTED = aws_prerequisites.Prerequisites("turnwise", ZONE, "acme-checkpoints", OPERATORS, CLIENTS)
WORLD = {"0.0.0.0/0", "::/0"}

Rule = tuple[Any, Any, frozenset[str]]
"""First port, last port, from where."""


@pytest.fixture(autouse=True)
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """An empty AWS, credentials that open nothing, and no way out of this process."""
    from ray.autoscaler._private.aws import config, utils

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "nobody")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setattr(socket.socket, "connect", _refuse)
    monkeypatch.setattr(socket, "getaddrinfo", _refuse)
    # Ray waits for IAM in real time, and keeps clients of an AWS that is gone with the test before.
    monkeypatch.setattr(time, "sleep", lambda _: None)
    for kept in (utils.resource_cache, utils.client_cache, config._get_subnets_or_die):
        kept.cache_clear()
    # Ray's role for the head is made of Amazon's policies, which take moto seconds to read.
    policies = "bootstrapped" in request.fixturenames
    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": policies}}):
        yield


def _refuse(*to: object, **_: object) -> None:
    raise AssertionError(f"something left the process: {to[-1]}")


@cache  # making one takes longer than anything that is asked of it
def ec2() -> Any:
    return boto3.client("ec2", region_name=REGION)


@cache
def s3() -> Any:
    return boto3.client("s3", region_name=REGION)


def prepared() -> dict[str, str]:
    return aws_prerequisites.ensure(ec2(), s3(), WANTED)


def filled_in(folder: Path, made: dict[str, str]) -> Path:
    """The shipped file with what a reader has to put in."""
    text = FILE.read_text()
    for placeholder, value in (
        ("sg-CHANGE-ME", made["security group"]),
        ("vol-CHANGE-ME", made["volume"]),
        ("ami-CHANGE-ME", image()),
        ("s3://CHANGE-ME", made["bucket"]),
    ):
        text = text.replace(placeholder, value)
    file = folder / "aws.yaml"
    file.write_text(text)
    return file


def image() -> str:
    """An image of the reader's own; moto is told to do without Amazon's."""
    return str(ec2().register_image(Name=f"ubuntu {time.monotonic_ns()}")["ImageId"])


def ingress(group: str) -> set[Rule]:
    (found,) = ec2().describe_security_groups(GroupIds=[group])["SecurityGroups"]
    return {
        (
            rule.get("FromPort"),
            rule.get("ToPort"),
            frozenset(
                [
                    *(source["GroupId"] for source in rule["UserIdGroupPairs"]),
                    *(source["CidrIp"] for source in rule["IpRanges"]),
                    *(source["CidrIpv6"] for source in rule.get("Ipv6Ranges", ())),
                ]
            ),
        )
        for rule in found["IpPermissions"]
    }


@pytest.fixture
def bootstrapped() -> Callable[[Path], tuple[dict[str, Any], Any]]:
    """Gives a file as Ray completes it, and Ray's provider."""
    return _bootstrapped


def _bootstrapped(file: Path) -> tuple[dict[str, Any], Any]:
    from ray.autoscaler._private.providers import _NODE_PROVIDERS, _get_node_provider
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(file.read_text()))
    validate_config(config)
    config = _NODE_PROVIDERS["aws"](config["provider"]).bootstrap_config(config)
    return config, _get_node_provider(config["provider"], config["cluster_name"])


def machines() -> list[dict[str, Any]]:
    states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    reservations = ec2().describe_instances(Filters=states)["Reservations"]
    return [machine for reservation in reservations for machine in reservation["Instances"]]


def test_nothing_but_the_actors_is_open_and_ssh_only_to_operators() -> None:
    group = prepared()["security group"]
    rules = ingress(group)
    assert not {source for rule in rules for source in rule[2]} & WORLD
    assert rules == {
        (None, None, frozenset([group])),
        (22, 22, frozenset(OPERATORS)),
        (50051, 50066, frozenset(CLIENTS)),
    }


def test_making_it_again_changes_nothing_but_the_addresses() -> None:
    made = prepared()
    moved = aws_prerequisites.Prerequisites("turnwise", ZONE, "acme-checkpoints", ("192.0.2.1/32",), CLIENTS)
    assert aws_prerequisites.ensure(ec2(), s3(), moved) == made
    assert {rule for rule in ingress(made["security group"]) if rule[0] == 22} == {
        (22, 22, frozenset(["192.0.2.1/32"]))
    }
    blocked = s3().get_public_access_block(Bucket="acme-checkpoints")["PublicAccessBlockConfiguration"]
    assert len(blocked) == 4
    assert all(blocked.values())


def test_the_shipped_file_makes_a_head_on_demand_and_spot_workers_behind_that_group(
    tmp_path: Path, bootstrapped: Callable[[Path], tuple[dict[str, Any], Any]]
) -> None:
    made = prepared()
    file, rules = filled_in(tmp_path, made), ingress(made["security group"])
    load(file)
    config, provider = bootstrapped(file)
    assert ingress(made["security group"]) == rules
    assert config["available_node_types"]["actor"]["resources"] == {"actor_node": 1}
    create_node(config, provider, "head", "head")
    for _ in range(2):
        create_node(config, provider, "actor", "worker")

    kinds = {machine["InstanceType"]: machine for machine in machines()}
    head, worker = kinds["m6i.xlarge"], kinds["m6i.large"]
    assert len(machines()) == 3
    assert "InstanceLifecycle" not in head
    assert worker["InstanceLifecycle"] == "spot"
    for machine in machines():
        assert [group["GroupId"] for group in machine["SecurityGroups"]] == [made["security group"]]
        assert machine["Placement"]["AvailabilityZone"] == ZONE
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
    assert head["IamInstanceProfile"]["Arn"].endswith("ray-autoscaler-v1")
    assert "IamInstanceProfile" not in worker

    provider.terminate_nodes(provider.non_terminated_nodes({}))
    assert machines() == []
    assert ec2().describe_volumes(VolumeIds=[made["volume"]])["Volumes"][0]["State"] == "available"


def test_the_group_that_ray_would_make_is_open_to_the_world_whatever_the_rules(
    tmp_path: Path, bootstrapped: Callable[[Path], tuple[dict[str, Any], Any]]
) -> None:
    """Why the file names a group of its own. Once this fails, `provider.security_group` may do."""
    file = filled_in(tmp_path, prepared())
    config = yaml.safe_load(file.read_text())
    own = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": OPERATORS[0]}]}
    config["provider"]["security_group"] = {"GroupName": "rays", "IpPermissions": [own]}
    for node_type in config["available_node_types"].values():
        node_type["node_config"].pop("SecurityGroupIds")
    file.write_text(yaml.dump(config))
    config, _ = bootstrapped(file)
    (group,) = config["available_node_types"]["head"]["node_config"]["SecurityGroupIds"]
    assert any(rule[0] == 22 and rule[2] & WORLD for rule in ingress(group))


def run_machine() -> str:
    where = {"AvailabilityZone": ZONE}
    (machine,) = ec2().run_instances(ImageId=image(), MinCount=1, MaxCount=1, Placement=where)["Instances"]
    return str(machine["InstanceId"])


def test_the_journal_follows_the_head_from_machine_to_machine() -> None:
    volume, first, second = prepared()["volume"], run_machine(), run_machine()
    for _ in range(2):  # the setup commands may run again
        journal_volume.attach_aws(ec2(), volume, first, wait_s=0.0)
    with pytest.raises(journal_volume.VolumeError, match=f"{volume}: attached to {first}"):
        journal_volume.attach_aws(ec2(), volume, second, wait_s=0.0)
    ec2().detach_volume(VolumeId=volume, InstanceId=first)  # as AWS does when it terminates a machine
    journal_volume.attach_aws(ec2(), volume, second, wait_s=0.0)
    (attached,) = ec2().describe_volumes(VolumeIds=[volume])["Volumes"][0]["Attachments"]
    assert attached["InstanceId"] == second


def test_the_values_are_printed_as_the_file_wants_them(capsys: pytest.CaptureFixture[str]) -> None:
    aws_prerequisites.main(
        ["--zone", ZONE, "--bucket", "b-1-acme", "--operators", "203.0.113.7/32", "--clients", "0.0.0.0/0"]
    )
    said = capsys.readouterr().out
    assert "security group: sg-" in said
    assert "volume: vol-" in said
    assert "bucket: s3://b-1-acme" in said


def test_an_address_that_is_no_range_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        aws_prerequisites.main(
            ["--zone", ZONE, "--bucket", "b", "--operators", "203.0.113.7/24", "--clients", "::/0"]
        )
    assert "has host bits set; wanted a range of addresses" in capsys.readouterr().err
