"""Cluster files: the shipped ones are in order, and what is wrong in one is told by its field."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from turnwise_deploy import cluster_keys
from turnwise_deploy.cluster_file import ClusterFileError, load

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "deploy" / "ray"

# The words of deploy/ray that are the reader's to replace, and what somebody might write.
FILLED_IN = {
    "sg-CHANGE-ME": "sg-0a1b2c3d4e5f60718",
    "ami-CHANGE-ME": "ami-0a1b2c3d4e5f60718",
    "vol-CHANGE-ME": "vol-0a1b2c3d4e5f60718",
    "CHANGE-ME": "acme-bots",
}

ON_PREMISE = """
cluster_name: shelf
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2, 10.0.0.3]}
auth: {ssh_user: bot, ssh_private_key: ~/.ssh/shelf}
min_workers: 2
max_workers: 2
head_start_ray_commands:
  - ray stop
  - export RAY_enable_autoscaler_v2=0; ulimit -n 65536 || true; ray start --head --port=6379
  - turnwise cluster place --domain ~/turnwise/domain.yaml --data ~/turnwise-data --actors 2 --insecure
worker_start_ray_commands:
  - ray stop
  - ray start --address=$RAY_HEAD_IP:6379 --resources='{"actor_node":1}'
"""

Config = dict[str, Any]
Spoil = Callable[[Config], object]


def filled_in(name: str) -> str:
    text = (SHIPPED / name).read_text()
    for placeholder, value in FILLED_IN.items():
        text = text.replace(placeholder, value)
    return text


TEXTS = {"aws": filled_in("aws.yaml"), "gcp": filled_in("gcp.yaml"), "local": ON_PREMISE}
# Without aliases, or a change would show where nobody made it.
PLAIN = {kind: json.dumps(yaml.safe_load(text)) for kind, text in TEXTS.items()}


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Fields and messages with which a spoiled cluster file is refused."""

    def fields(kind: str, spoil: Spoil) -> dict[str, str]:
        config = json.loads(PLAIN[kind])
        spoil(config)
        file = tmp_path / "cluster.yaml"
        file.write_text(json.dumps(config))
        with pytest.raises(ClusterFileError) as caught:
            load(file)
        return {problem.field: str(problem) for problem in caught.value.problems}

    return fields


def actor(config: Config) -> Config:
    return config["available_node_types"]["actor"]


@pytest.mark.parametrize("kind", TEXTS)
def test_a_file_with_the_readers_values_is_in_order(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(TEXTS[kind])
    assert load(file).provider == kind


def test_a_local_file_tells_its_machines_and_the_way_in(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(ON_PREMISE)
    cluster = load(file)
    assert (cluster.cluster_name, cluster.head_ip) == ("shelf", "10.0.0.1")
    assert cluster.worker_ips == ("10.0.0.2", "10.0.0.3")
    assert (cluster.ssh_user, cluster.ssh_private_key) == ("bot", Path.home() / ".ssh" / "shelf")
    assert cluster.data == "~/turnwise-data"
    assert cluster.warnings == ()


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.name)
def test_of_a_shipped_file_only_the_readers_own_values_are_missing(file: Path) -> None:
    if "CHANGE-ME" not in file.read_text():
        load(file)
        return
    with pytest.raises(ClusterFileError) as caught:
        load(file)
    assert {problem.wanted for problem in caught.value.problems} == {"your own value in place of CHANGE-ME"}
    assert all(problem.field.startswith("metadata.") for problem in caught.value.problems)
    told = " ".join(problem.got for problem in caught.value.problems)
    missing = [line for line in file.read_text().splitlines() if "CHANGE-ME" in line.partition("# ")[0]]
    assert len(caught.value.problems) == len(missing), told


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_all_that_is_the_readers_stands_at_the_top(name: str) -> None:
    before, end, after = (SHIPPED / name).read_text().partition("# --- End of what is yours to set.")
    assert end
    assert "CHANGE-ME" not in after
    anchors = set(re.findall(r"^ +\w+: &(\w+)", before, re.M))
    assert len(anchors) > 8
    assert set(re.findall(r"\*(\w+)", after)) == anchors


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_command_is_one_that_bash_can_read(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    commands = [command for key in config if key.endswith("_commands") for command in config[key]]
    assert len(commands) > 3
    for command in commands:
        ran = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert not ran.stderr, command


def put(path: str, value: object) -> Spoil:
    """Sets what stands at a dotted path."""
    *way, last = path.split(".")

    def spoil(config: Config) -> None:
        for step in way:
            config = config[step]
        config[last] = value

    return spoil


AWS_TYPOS = {
    "setup_comands": [],
    "provider.regoin": "us-west-2",
    "provider.security_grup": {},
    "auth.ssh_usr": "ubuntu",
    "available_node_types.actor.min_worker": 1,
    "available_node_types.actor.node_config.InstanceTyp": "m6i.large",
    "available_node_types.actor.node_config.SubnetId": "subnet-1",
    "available_node_types.actor.node_config.InstanceMarketOptions.MarketTyp": "spot",
    "available_node_types.head.node_config.MetadataOptions.HttpToken": "required",
}
GCP_TYPOS = {
    "provider.projectid": "acme",
    "available_node_types.actor.node_config.machine_type": "n2-standard-2",
    "available_node_types.actor.node_config.scheduling.provisioningModell": "SPOT",
}


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *(("aws", field, value) for field, value in AWS_TYPOS.items()),
        *(("gcp", field, value) for field, value in GCP_TYPOS.items()),
        ("local", "provider.worker_ip", []),
    ],
)
def test_a_typo_is_told_with_the_name_that_was_meant(
    kind: str, field: str, value: object, refused: Callable[..., dict[str, str]]
) -> None:
    told = refused(kind, put(field, value))
    assert set(told) == {field}
    assert "an unknown key; wanted a known key (did you mean '" in told[field]


def test_typos_within_a_list_are_told_with_their_place(refused: Callable[..., dict[str, str]]) -> None:
    def spoil(config: Config) -> None:
        actor(config)["node_config"]["BlockDeviceMappings"][0]["Ebss"] = {}

    told = refused("aws", spoil)
    assert set(told) == {"available_node_types.actor.node_config.BlockDeviceMappings[0].Ebss"}


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("aws", "setup_commands", "pip install turnwise"),
        ("aws", "max_workers", "four"),
        ("aws", "provider.type", "awss"),
        ("aws", "provider.region", None),
        ("aws", "cluster_name", 7),
        ("gcp", "provider.project_id", ""),
        ("gcp", "available_node_types.actor.resources.actor_node", 0.5),
        ("gcp", "head_node_type", "nobody"),
        ("local", "provider.worker_ips", "10.0.0.2"),
        ("local", "provider.worker_ips", ["10.0.0.1", "10.0.0.2"]),
        ("local", "provider.worker_ips", ["10.0.0.2"]),
        ("aws", "available_node_types.head.node_config.ImageId", "ami-CHANGE-ME"),
    ],
)
def test_a_wrong_value_is_told_by_its_field(
    kind: str, field: str, value: object, refused: Callable[..., dict[str, str]]
) -> None:
    assert set(refused(kind, put(field, value))) == {field}


def test_a_command_that_yaml_takes_for_a_mapping_is_told_with_the_cure(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(ON_PREMISE.replace('"actor_node":1', '"actor_node": 1'))
    with pytest.raises(ClusterFileError, match=r"worker_start_ray_commands\[1\].*in quotes"):
        load(file)


def without(part: str) -> Spoil:
    """Takes a part out of every command that starts Ray or the bot."""

    def spoil(config: Config) -> None:
        for key in ("head_start_ray_commands", "worker_start_ray_commands"):
            config[key] = [command.replace(part, "") for command in config[key]]

    return spoil


@pytest.mark.parametrize(
    ("kind", "spoil", "field"),
    [
        ("aws", put("max_workers", 1), "max_workers"),
        ("aws", lambda config: actor(config).update(min_workers=0, max_workers=1), "max_workers"),
        ("aws", lambda config: actor(config)["resources"].clear(), "available_node_types"),
        ("aws", lambda config: config["head_start_ray_commands"].pop(), "head_start_ray_commands"),
        ("local", without("turnwise cluster place"), "head_start_ray_commands"),
        ("local", without("RAY_enable_autoscaler_v2=0"), "head_start_ray_commands"),
        ("local", without("actor_node"), "worker_start_ray_commands"),
        ("local", lambda config: config["provider"].pop("head_ip"), "provider.head_ip"),
        ("gcp", lambda config: config["provider"].pop("region"), "provider.region"),
        ("gcp", put("auth", {"ssh_private_key": "~/.ssh/id"}), "auth.ssh_user"),
        ("local", lambda config: config.pop("auth"), "auth.ssh_user"),
        ("aws", lambda config: config.pop("cluster_name"), "cluster_name"),
        (
            "aws",
            put("provider.security_group", {"GroupName": "mine"}),
            "provider.security_group",
        ),
        (
            "gcp",
            lambda config: actor(config)["node_config"].pop("networkInterfaces"),
            "available_node_types.actor.node_config.networkInterfaces",
        ),
    ],
)
def test_a_cluster_that_could_not_work_is_refused(
    kind: str, spoil: Spoil, field: str, refused: Callable[..., dict[str, str]]
) -> None:
    assert field in refused(kind, spoil)


RULE = {"IpProtocol": "tcp", "FromPort": 50051, "ToPort": 50066, "IpRanges": [{"CidrIp": "198.51.100.0/24"}]}
WORLD_22 = {"IpProtocol": "tcp", "FromPort": 0, "ToPort": 1023, "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}
RULES = "provider.security_group.IpPermissions"
GROUPS = "available_node_types.actor.node_config.SecurityGroupIds"


@pytest.mark.parametrize(
    ("rules", "fields"),
    [
        (None, {GROUPS, RULES}),
        ([RULE], {GROUPS}),
        ([{**RULE, "ToPort": 50050, "FromPort": 443}], {GROUPS, RULES}),
        ([RULE, WORLD_22], {GROUPS, f"{RULES}[1]"}),
    ],
)
def test_a_group_left_to_ray_is_told_of_with_its_open_and_closed_ports(
    rules: list[Config] | None, fields: set[str], refused: Callable[..., dict[str, str]]
) -> None:
    def spoil(config: Config) -> None:
        del actor(config)["node_config"]["SecurityGroupIds"]
        if rules is not None:
            config["provider"]["security_group"] = {"IpPermissions": rules}

    assert set(refused("aws", spoil)) == fields


def test_all_mistakes_are_told_at_once(refused: Callable[..., dict[str, str]]) -> None:
    def spoil(config: Config) -> None:
        config.update(setup_commands="a string", upscaling_sped=1)
        config["provider"]["regin"] = "x"
        actor(config)["node_config"]["ImageID"] = "x"
        config["metadata"]["place"] = "turnwise cluster place CHANGE-ME"

    told = refused("aws", spoil)
    node = "available_node_types.actor.node_config.ImageID"
    assert set(told) == {"setup_commands", "upscaling_sped", "provider.regin", node, "metadata.place"}
    assert told["setup_commands"] == "setup_commands: got 'a string'; wanted of the type array"


@pytest.mark.parametrize(
    "text", ["a: [", "- a", "provider: {}\nprovider: {}", "a: &a [*a]", "a: 2026-01-01", "\x00"]
)
def test_a_file_that_is_no_cluster_file_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ClusterFileError, match=re.escape(str(file))):
        load(file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterFileError, match="No such file"):
        load(tmp_path / "none.yaml")


def test_what_only_ray_up_will_miss_is_a_warning(tmp_path: Path) -> None:
    config = json.loads(PLAIN["aws"])
    config["file_mounts"] = {"~/turnwise": str(tmp_path / "nowhere"), "~/there": str(tmp_path)}
    config["head_start_ray_commands"][-1] += " --insecure"
    file = tmp_path / "cluster.yaml"
    file.write_text(json.dumps(config))
    assert [problem.field for problem in load(file).warnings] == [
        "file_mounts.~/turnwise",
        "head_start_ray_commands",
    ]


def botocore_keys(shape: Any, known: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of a shape of botocore's, as deep as `known` goes."""
    while shape.type_name == "list":
        shape = shape.member
    return {
        name: botocore_keys(member, known[name]) if known.get(name) else None
        for name, member in shape.members.items()
    }


def test_the_keys_for_machines_of_aws_are_those_that_botocore_knows() -> None:
    session = pytest.importorskip("botocore.session").get_session()
    run_instances = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    known = dict(cluster_keys.NODE_CONFIG["aws"])
    for name in cluster_keys.AWS_FOR_RAY:
        del known[name]
    wanted = dict(botocore_keys(run_instances, known))
    for name in cluster_keys.AWS_SET_BY_RAY:
        del wanted[name]
    assert known == wanted


def keys_that_ray_reads(folder: str) -> Iterator[str]:
    import ray.autoscaler

    read = re.compile(r"""(?:provider_config|\["provider"\])(?:\.get\(|\[)\s*"([a-z]\w*)""")
    for file in (Path(ray.autoscaler.__file__).parent / "_private" / folder).rglob("*.py"):
        yield from read.findall(file.read_text())


@pytest.mark.parametrize("kind", sorted(cluster_keys.PROVIDER))
def test_every_provider_key_that_ray_reads_is_known(kind: str) -> None:
    read = set(keys_that_ray_reads(kind))
    assert len(read) > 2
    # list_of_node_ips is the coordinator's own, not a cluster file's.
    assert read - {"list_of_node_ips"} <= set(cluster_keys.PROVIDER[kind])
