"""`python -m turnwise_deploy.aws_prerequisites`: what a cluster on AWS needs before its first `ray up`.

Makes a security group, the journal's volume and the bucket of its copies, and prints the values for
deploy/ray/aws.yaml. What has the cluster's name already is taken as it is, but for the group's rules: those
are made what the options say, so that running it again moves an operator to another address.
"""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SSH, _FIRST_ACTOR, _LAST_ACTOR = 22, 50051, 50066


@dataclass(frozen=True)
class Prerequisites:
    """What is wanted, and who may come in."""

    cluster: str
    """Name of the security group and of the volume."""
    zone: str
    """Availability zone of the volume, and so of the head."""
    bucket: str
    operators: Sequence[str]
    """CIDRs from which nodes are reached by SSH."""
    clients: Sequence[str]
    """CIDRs from which actors are called."""
    volume_gb: int = 50
    """For the journal, checkpoints, policies and logs."""

    @property
    def region(self) -> str:
        """The zone's."""
        return self.zone.rstrip("abcdef")


@dataclass(frozen=True)
class _Rule:
    """One thing that a group lets in."""

    protocol: str
    first: int | None
    last: int | None
    source: str
    """A CIDR, or the id of a group."""

    @classmethod
    def of(cls, permission: dict[str, Any]) -> list[_Rule]:
        """The rules that EC2 gives together, by their ports."""
        ports = permission["IpProtocol"], permission.get("FromPort"), permission.get("ToPort")
        sources = [
            *(source["GroupId"] for source in permission.get("UserIdGroupPairs", ())),
            *(source["CidrIp"] for source in permission.get("IpRanges", ())),
            *(source["CidrIpv6"] for source in permission.get("Ipv6Ranges", ())),
        ]
        return [cls(*ports, source) for source in sources]

    def permission(self) -> dict[str, Any]:
        """As EC2 takes it."""
        ports = {} if self.first is None else {"FromPort": self.first, "ToPort": self.last}
        if self.source.startswith("sg-"):
            return {"IpProtocol": self.protocol, **ports, "UserIdGroupPairs": [{"GroupId": self.source}]}
        ranges, cidr = ("Ipv6Ranges", "CidrIpv6") if ":" in self.source else ("IpRanges", "CidrIp")
        return {"IpProtocol": self.protocol, **ports, ranges: [{cidr: self.source}]}


def ensure(ec2: Any, s3: Any, wanted: Prerequisites) -> dict[str, str]:
    """Makes what is missing, by boto3's clients of EC2 and S3; the values for the cluster file, by name."""
    group = _security_group(ec2, wanted)
    _set_rules(ec2, group, _rules(group, wanted))
    _bucket(s3, wanted)
    return {"security group": group, "volume": _volume(ec2, wanted), "bucket": f"s3://{wanted.bucket}"}


def _security_group(ec2: Any, wanted: Prerequisites) -> str:
    """The group of that name in the default VPC, where Ray looks for subnets."""
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not vpcs:
        raise SystemExit(f"{wanted.region} has no default VPC; make one: aws ec2 create-default-vpc")
    vpc = vpcs[0]["VpcId"]
    filters = [{"Name": "group-name", "Values": [wanted.cluster]}, {"Name": "vpc-id", "Values": [vpc]}]
    for group in ec2.describe_security_groups(Filters=filters)["SecurityGroups"]:
        return str(group["GroupId"])
    made = ec2.create_security_group(
        GroupName=wanted.cluster, VpcId=vpc, Description=f"Turnwise cluster {wanted.cluster}"
    )
    return str(made["GroupId"])


def _rules(group: str, wanted: Prerequisites) -> set[_Rule]:
    """Anything among the cluster's own nodes: Ray, the learner's 50050, metrics. Little from elsewhere."""
    return {
        _Rule("-1", None, None, group),
        *(_Rule("tcp", _SSH, _SSH, cidr) for cidr in wanted.operators),
        *(_Rule("tcp", _FIRST_ACTOR, _LAST_ACTOR, cidr) for cidr in wanted.clients),
    }


def _set_rules(ec2: Any, group: str, wanted: set[_Rule]) -> None:
    """New rules come before old ones go: what may go on is not interrupted."""
    (found,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    there = {rule for permission in found["IpPermissions"] for rule in _Rule.of(permission)}
    if wanted - there:
        permissions = [rule.permission() for rule in sorted(wanted - there, key=str)]
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=permissions)
    if there - wanted:
        permissions = [rule.permission() for rule in sorted(there - wanted, key=str)]
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=permissions)


def _volume(ec2: Any, wanted: Prerequisites) -> str:
    tags = [{"Key": "Name", "Value": f"{wanted.cluster}-journal"}]
    filters = [
        {"Name": "tag:Name", "Values": [tags[0]["Value"]]},
        {"Name": "availability-zone", "Values": [wanted.zone]},
    ]
    for volume in ec2.describe_volumes(Filters=filters)["Volumes"]:
        return str(volume["VolumeId"])
    made = ec2.create_volume(
        AvailabilityZone=wanted.zone,
        Size=wanted.volume_gb,
        VolumeType="gp3",
        Encrypted=True,
        TagSpecifications=[{"ResourceType": "volume", "Tags": tags}],
    )
    return str(made["VolumeId"])


def _bucket(s3: Any, wanted: Prerequisites) -> None:
    """A bucket that nothing can make public."""
    if wanted.bucket not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}:
        where = {"CreateBucketConfiguration": {"LocationConstraint": wanted.region}}
        # The one region that S3 refuses to be told of.
        s3.create_bucket(Bucket=wanted.bucket, **({} if wanted.region == "us-east-1" else where))
    names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(
        Bucket=wanted.bucket, PublicAccessBlockConfiguration=dict.fromkeys(names, True)
    )


def _cidr(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        message = f"{error}; wanted a range of addresses such as 203.0.113.7/32"
        raise argparse.ArgumentTypeError(message) from error


def main(arguments: list[str] | None = None) -> None:
    """Makes what is missing and prints what to write into the cluster file."""
    parser = argparse.ArgumentParser(prog="python -m turnwise_deploy.aws_prerequisites", description=__doc__)
    parser.add_argument("--cluster", default="turnwise", help="name of the security group and the volume")
    parser.add_argument("--zone", required=True, help="availability zone, such as us-west-2a")
    parser.add_argument(
        "--bucket", required=True, help="for copies of journal and checkpoints; made if you have none"
    )
    parser.add_argument(
        "--operators", required=True, type=_cidr, nargs="+", metavar="CIDR", help="who may use ssh"
    )
    parser.add_argument(
        "--clients", required=True, type=_cidr, nargs="+", metavar="CIDR", help="who may call the actors"
    )
    parser.add_argument("--volume-gb", type=int, default=Prerequisites.volume_gb, metavar="N")
    wanted = Prerequisites(**vars(parser.parse_args(arguments)))
    try:
        import boto3
    except ModuleNotFoundError as error:
        raise SystemExit("boto3 is missing; install it with: pip install boto3") from error
    made = ensure(
        boto3.client("ec2", region_name=wanted.region), boto3.client("s3", region_name=wanted.region), wanted
    )
    for name, value in made.items():
        print(f"{name}: {value}")  # noqa: T201


if __name__ == "__main__":
    main()
