"""Who can reach a cloud cluster's machines, as far as its file tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from turnwise_actor.policy import Problem
from turnwise_actor.policy.domain_file import show

_SSH, _ACTOR = 22, 50051
_WORLD = ("0.0.0.0/0", "::/0")


def network_problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Port 22 open to the world; the actors' port open to nobody."""
    kind = config["provider"]["type"]
    if kind == "aws":
        yield from _aws(config)
    elif kind == "gcp":
        yield from _gcp(config)


def _aws(config: dict[str, Any]) -> Iterator[Problem]:
    """Ray's own group has port 22 open to the world, whatever is given; rules are added to it, none taken.

    A machine with groups of its own is left alone.
    """
    types = config.get("available_node_types", {})
    left_to_ray = [name for name, node_type in types.items() if not _has_groups(node_type)]
    for name in left_to_ray:
        yield Problem(
            f"available_node_types.{name}.node_config.SecurityGroupIds",
            "nothing: Ray makes a group with port 22 open to the world",
            "a group of your own: python -m turnwise_deploy.aws_prerequisites makes one",
        )
    group, field = config["provider"].get("security_group"), "provider.security_group"
    rules = (group or {}).get("IpPermissions", [])
    for index, rule in enumerate(rules):
        if _covers(rule, _SSH) and (world := _world(rule)):
            wanted = "the addresses that operators come from"
            yield Problem(f"{field}.IpPermissions[{index}]", f"port 22 open to {world}", wanted)
    if left_to_ray and not any(_covers(rule, _ACTOR) for rule in rules):
        wanted = "50051-50066, tcp, for the addresses that clients come from"
        yield Problem(f"{field}.IpPermissions", "no rule for the actors' port 50051", wanted)
    if group is not None and types and not left_to_ray:
        wanted = "it left out: Ray leaves the groups in SecurityGroupIds as they are"
        yield Problem(field, show(group), wanted)


def _has_groups(node_type: dict[str, Any]) -> bool:
    given = node_type["node_config"]
    return any(given.get(key) for key in ("SecurityGroupIds", "NetworkInterfaces", "LaunchTemplate"))


def _covers(rule: object, port: int) -> bool:
    if not isinstance(rule, dict):
        return False
    first, last = rule.get("FromPort", 0), rule.get("ToPort", 65535)
    if str(rule.get("IpProtocol")) == "-1" or first == -1:
        return True
    return isinstance(first, int) and isinstance(last, int) and first <= port <= last


def _world(rule: dict[str, Any]) -> str:
    ranges = [*(rule.get("IpRanges") or ()), *(rule.get("Ipv6Ranges") or ())]
    cidrs = [source.get("CidrIp") or source.get("CidrIpv6") for source in ranges if isinstance(source, dict)]
    return ", ".join(cidr for cidr in cidrs if cidr in _WORLD)


def _gcp(config: dict[str, Any]) -> Iterator[Problem]:
    """Without an interface of its own, a machine is put into a network of Ray's choice: the default one."""
    for name, node_type in config.get("available_node_types", {}).items():
        given = node_type["node_config"]
        if not given.get("networkInterfaces") and not given.get("sourceInstanceTemplate"):
            yield Problem(
                f"available_node_types.{name}.node_config.networkInterfaces",
                "nothing: the default network has port 22 open to the world and 50051 to nobody",
                "a subnet of a network with a firewall of your own; docs/cluster.md has the commands",
            )
